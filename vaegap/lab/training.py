"""Training a VAE: the paper's schedule and a fast one, with checkpoints that continue bit-exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.models import VAE
from vaegap.progress import bar

__all__ = ["PAPER_EPOCHS", "Schedule", "TrainResult", "annealing_weight", "learning_rate", "train"]

PAPER_EPOCHS = sum(3**i for i in range(8))  # 3,280: stages of 1, 3, 9, ..., 2,187 epochs


@dataclass(frozen=True)
class Schedule:
    """How a model is trained.

    Args:
        epochs: passes over the data.
        batch_size: images a step.
        kind: "fast": `lr` after a 2 % warm-up, falling to 0 by cosine; "paper": 1e-3 · 10^(−i/7) for 3^i epochs,
            i = 0..7, stretched to `epochs` if that is not 3,280 (Burda et al. 2016; official code run.py:131-156);
            "constant": `lr`.
        lr: peak learning rate of "fast", rate of "constant"; unused by "paper".
        anneal: fraction of training over which the weight of the entropy rises from 0 to 1; 0 for no annealing.
        adam_eps: Adam's epsilon (1e-4 in the official code).
        clip: bound on the gradient norm; None for no clipping.

    Example:
        >>> Schedule(epochs=10).kind
        'fast'
    """

    epochs: int
    batch_size: int = 200
    kind: str = "fast"
    lr: float = 3e-3
    anneal: float = 0.125
    adam_eps: float = 1e-8
    clip: float | None = 200.0

    def __post_init__(self) -> None:
        if self.kind not in ("fast", "paper", "constant"):
            raise InputError(f"unknown schedule {self.kind!r}; choose 'fast', 'paper' or 'constant'")
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.anneal <= 1:
            raise InputError(f"a schedule needs epochs and batch_size >= 1 and anneal in [0, 1]; got {self}")

    @staticmethod
    def paper(epochs: int = PAPER_EPOCHS, anneal_epochs: int = 400) -> Schedule:
        """The main tables' schedule for MNIST and Fashion-MNIST, optionally shortened as a whole."""
        return Schedule(epochs, 100, "paper", 1e-3, anneal_epochs / PAPER_EPOCHS, 1e-4, None)


@dataclass
class TrainResult:
    """What training leaves behind besides the weights.

    Args:
        history: one dict an epoch: epoch, elbo (nats per image, running mean over the epoch with the annealed
            weight taken out), seconds.
        seconds: wall time over all starts.
        resumed_from: the epoch of the checkpoint it continued from; 0 for a fresh start.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_from: int = 0


def learning_rate(schedule: Schedule, progress: float) -> float:
    """Learning rate at a fraction of training in [0, 1)."""
    if schedule.kind == "constant":
        return schedule.lr
    if schedule.kind == "paper":
        epoch, stage = progress * PAPER_EPOCHS, 0
        while stage < 7 and epoch >= (3 ** (stage + 1) - 1) / 2:
            stage += 1
        return 1e-3 * 10 ** (-stage / 7)
    if progress < 0.02:
        return schedule.lr * (progress / 0.02)
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * (progress - 0.02) / 0.98))


def annealing_weight(schedule: Schedule, progress: float) -> float:
    """Weight λ of the entropy term, E_q[log p(x, z) − λ log q(z|x)]; the prior is never annealed (run.py:119-124)."""
    return min(1.0, progress / schedule.anneal) if schedule.anneal > 0 else 1.0


def train(
    vae: VAE,
    x: Tensor,
    schedule: Schedule,
    *,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    milestones: tuple[int, ...] = (),
    on_milestone: Callable[[int, VAE], None] | None = None,
    encoder_only: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Maximise the (annealed) ELBO with one sample an image, in place.

    Args:
        vae: the model, changed in place.
        x: training images (N, D).
        schedule: how.
        seed: of shuffling and sampling.
        checkpoint: file to save to at epoch ends, and to continue from if it is there. On a CPU, continuing gives
            bit by bit the weights of an uninterrupted run with the same number of threads.
        checkpoint_seconds: least time between two checkpoints.
        milestones: epochs after which `on_milestone(epoch, vae)` is called.
        on_milestone: see above; called with the model in evaluation mode.
        encoder_only: leave the decoder as it is (the paper's section 5.3).
        progress: show a bar.

    Returns:
        a `TrainResult`; the model is left in evaluation mode.

    Raises:
        InputError: images the likelihood cannot have produced.
        RuntimeError: the loss is no longer finite; the message names the epoch and the cure.

    Example:
        >>> vae = VAE(6, 2, encoder_hidden=(4,), decoder_hidden=(4,), seed=0)
        >>> x = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        >>> len(train(vae, x, Schedule(epochs=2, batch_size=10), progress=False).history)
        2
    """
    x = vae.check(x)
    for p in vae.decoder.parameters():
        p.requires_grad_(not encoder_only)
    params = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(params, lr=0.0, eps=schedule.adam_eps, fused=x.device.type in ("cpu", "cuda"))
    generator = torch.Generator(x.device).manual_seed(seed)
    torch.manual_seed(seed)  # batch-norm and posteriors draw nothing else; kept for layers that would
    identity = {"schedule": asdict(schedule), "seed": seed, "config": vae.config, "images": len(x)}
    result = TrainResult()
    if checkpoint is not None and Path(checkpoint).exists():
        _restore(Path(checkpoint), identity, vae, optimizer, generator, result)
    epochs = range(len(result.history), schedule.epochs)
    result.resumed_from = epochs.start
    saved = start = time.monotonic()
    before = result.seconds
    shown = bar(epochs, desc="train", initial=epochs.start, total=schedule.epochs, show=progress, unit="epoch")
    for epoch in shown:
        value = _epoch(vae, x, schedule, epoch, optimizer, params, generator, encoder_only)
        result.seconds = before + time.monotonic() - start
        result.history.append({"epoch": epoch + 1, "elbo": value, "seconds": result.seconds})
        shown.set_postfix(elbo=f"{value:.2f}", refresh=False)
        if not math.isfinite(value):
            raise RuntimeError(
                f"training diverged in epoch {epoch + 1}: the ELBO is {value}. Lower lr ({schedule.lr:g}), or set clip"
            )
        if epoch + 1 in milestones and on_milestone is not None:
            vae.eval()
            on_milestone(epoch + 1, vae)
        last = epoch + 1 == schedule.epochs
        if checkpoint is not None and (last or time.monotonic() - saved > checkpoint_seconds):
            _save(Path(checkpoint), identity, vae, optimizer, generator, result)
            saved = time.monotonic()
    for p in vae.parameters():
        p.requires_grad_(True)
    vae.eval()
    return result


def _epoch(
    vae: VAE,
    x: Tensor,
    schedule: Schedule,
    epoch: int,
    optimizer: torch.optim.Adam,
    params: list[Any],
    generator: torch.Generator,
    encoder_only: bool,
) -> float:
    """One pass over shuffled data; returns the mean ELBO (not annealed) seen on the way."""
    vae.train()
    if encoder_only:
        vae.decoder.eval()
    order = torch.randperm(len(x), generator=generator, device=x.device)
    total = x.new_zeros(())
    batches = order.split(schedule.batch_size)
    for step, index in enumerate(batches):
        progress = (epoch + step / len(batches)) / schedule.epochs
        weight = annealing_weight(schedule, progress)
        optimizer.param_groups[0]["lr"] = learning_rate(schedule, progress)
        batch = x[index]
        z, log_q = vae.encode(batch).rsample_and_log_prob(1, generator=generator)
        log_joint = vae.log_joint(batch, z)
        loss = (weight * log_q - log_joint).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if schedule.clip is not None:
            torch.nn.utils.clip_grad_norm_(params, schedule.clip)
        optimizer.step()
        total += (log_joint - log_q).detach().sum()
    return total.item() / len(x)


def _save(
    path: Path,
    identity: dict[str, Any],
    vae: VAE,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    result: TrainResult,
) -> None:
    from vaegap.lab import checkpoints

    tensors = {f"model.{k}": v for k, v in vae.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["generator"] = generator.get_state()
    meta = {"identity": identity, "history": result.history, "seconds": result.seconds}
    checkpoints.save(path, tensors, meta)


def _restore(
    path: Path,
    identity: dict[str, Any],
    vae: VAE,
    optimizer: torch.optim.Adam,
    generator: torch.Generator,
    result: TrainResult,
) -> None:
    from vaegap.lab import checkpoints

    tensors, meta = checkpoints.load(path)
    if meta["identity"] != identity:
        raise InputError(
            f"{path} is a checkpoint of another run (model, schedule, seed or data differ): "
            "move it away or change the path"
        )
    vae.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, i, name = key.split(".", 2)
            state.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(tensors["generator"])
    result.history, result.seconds = meta["history"], meta["seconds"]
