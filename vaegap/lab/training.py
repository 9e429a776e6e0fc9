"""Training a VAE: the paper's schedule and a fast one, with checkpoints that continue bit-exactly."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaegap.errors import InputError
from vaegap.lab.gradients import Step
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
        origin: what was known of the code when training began (the first time).
    """

    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    resumed_from: int = 0
    origin: dict[str, Any] = field(default_factory=dict)


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
    origin: Mapping[str, Any] | None = None,
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
        on_milestone: see above; called with the model in evaluation mode, before the epoch's checkpoint is written,
            and not for epochs that lie before the checkpoint (`zoo.trained` keeps their weights).
        encoder_only: leave the decoder as it is (the paper's section 5.3).
        origin: what to keep with the checkpoint on the code that began this training.
        progress: show a bar.

    Returns:
        a `TrainResult`; the model is left in evaluation mode.

    Raises:
        InputError: images the likelihood cannot have produced, or a checkpoint of another training.
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
    run = _Training(vae, schedule, seed, encoder_only, x.device, dict(origin or {}))
    result, path = run.result, None if checkpoint is None else Path(checkpoint)
    identity = run.identity(x) if path is not None else {}
    if path is not None and path.exists():
        run.restore(path, identity)
    epochs = range(len(result.history), schedule.epochs)
    result.resumed_from = epochs.start
    saved = start = time.monotonic()
    before = result.seconds
    shown = bar(epochs, desc="train", initial=epochs.start, total=schedule.epochs, show=progress, unit="epoch")
    for epoch in shown:
        value = run.epoch(x, epoch)
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
        if path is not None and (last or time.monotonic() - saved > checkpoint_seconds):
            run.save(path, identity)
            saved = time.monotonic()
    run.step.release()
    for p in vae.parameters():
        p.requires_grad_(True)
    vae.eval()
    return result


class _Training:
    """All that an epoch changes, and so all that a checkpoint holds."""

    def __init__(
        self,
        vae: VAE,
        schedule: Schedule,
        seed: int,
        encoder_only: bool,
        device: torch.device,
        origin: dict[str, Any],
    ) -> None:
        self.vae, self.schedule, self.seed, self.encoder_only = vae, schedule, seed, encoder_only
        self.step = Step(vae)
        fused = device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam([self.step.weights], lr=0.0, eps=schedule.adam_eps, fused=fused)
        self.generator = torch.Generator(device).manual_seed(seed)
        torch.manual_seed(seed)  # batch-norm and posteriors draw nothing else; kept for layers that would
        self.result = TrainResult(origin=origin)

    def identity(self, x: Tensor) -> dict[str, Any]:
        """What a checkpoint must agree with before it is continued: everything that decides the weights."""
        pixels = hashlib.sha256(x.detach().cpu().contiguous().numpy().data).hexdigest()
        return {
            "schedule": asdict(self.schedule),
            "seed": self.seed,
            "config": self.vae.config,
            "images": len(x),
            "data": pixels,
            "encoder_only": self.encoder_only,
            "device": x.device.type,
        }

    def epoch(self, x: Tensor, epoch: int) -> float:
        """One pass over shuffled data; returns the mean ELBO (not annealed) seen on the way."""
        schedule, optimizer = self.schedule, self.optimizer
        self.vae.train()
        if self.encoder_only:
            self.vae.decoder.eval()
        order = torch.randperm(len(x), generator=self.generator, device=x.device)
        total = x.new_zeros(())
        batches = order.split(schedule.batch_size)
        for step, index in enumerate(batches):
            progress = (epoch + step / len(batches)) / schedule.epochs
            weight = annealing_weight(schedule, progress)
            optimizer.param_groups[0]["lr"] = learning_rate(schedule, progress)
            total += self.step(x.index_select(0, index), weight, self.generator)
            if schedule.clip is not None:
                _clip(self.step.weights, schedule.clip)
            optimizer.step()
        return total.item() / len(x)

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write a checkpoint."""
        from vaegap.lab import checkpoints

        tensors = {f"model.{k}": v for k, v in self.vae.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["generator"] = self.generator.get_state()
        result = self.result
        meta = {"identity": identity, "history": result.history, "seconds": result.seconds, "origin": result.origin}
        checkpoints.save(path, tensors, meta)

    def restore(self, path: Path, identity: dict[str, Any]) -> None:
        """Take up a checkpoint, unless it is another training's."""
        from vaegap.lab import checkpoints

        tensors, meta = checkpoints.load(path)
        known = meta["identity"]  # checkpoints of older versions know less of themselves
        wrong = [_WORDS.get(name, name) for name in identity if known.get(name, identity[name]) != identity[name]]
        if wrong:
            raise InputError(
                f"{path} is a checkpoint of another run (its {' and its '.join(wrong)} differ): "
                "move it away or change the path"
            )
        self.vae.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        pieces: dict[str, list[tuple[int, Tensor]]] = {}  # older checkpoints hold one for every parameter
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, i, name = key.split(".", 2)
                pieces.setdefault(name, []).append((int(i), value.flatten()))
        state = {name: torch.cat([v for _, v in sorted(parts, key=itemgetter(0))]) for name, parts in pieces.items()}
        state["step"] = state["step"][0]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: state}, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.result.history, self.result.seconds = meta["history"], meta["seconds"]
        self.result.origin = meta.get("origin", {})


def _clip(weights: Tensor, bound: float) -> None:
    """`torch.nn.utils.clip_grad_norm_`; on a CPU, gradients within the bound are not multiplied by 1."""
    assert weights.grad is not None
    scale = bound / (torch.dot(weights.grad, weights.grad).sqrt() + 1e-6)  # on a CPU, in half the time of the norm
    if scale.device.type != "cpu" or not scale >= 1:  # elsewhere, asking for the value would make the host wait
        weights.grad.mul_(scale.clamp(max=1.0))


_WORDS = {
    "config": "model's settings",
    "images": "numbers of images",
    "data": "images",
    "encoder_only": "trained parts (encoder_only)",
    "device": "device, whose random numbers cannot be continued on another,",
}
