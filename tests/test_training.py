"""Training: the paper's schedule, annealing, checkpoints that continue bit by bit, and errors that name the cure."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import FAMILY_NAMES
from torch import Tensor

from vaegap import VAE, InputError, elbo
from vaegap.lab import checkpoints
from vaegap.lab.training import PAPER_EPOCHS, Schedule, _clip, annealing_weight, learning_rate, train


def toy(family: str = "gaussian", seed: int = 0) -> VAE:
    return VAE(12, 2, family, (8,), (8,), seed=seed)


def images(num: int = 120) -> Tensor:
    """Two prototypes with flipped pixels: there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    prototypes = (torch.rand(2, 12, generator=generator) < 0.5).float()
    chosen = prototypes[torch.randint(2, (num,), generator=generator)]
    flips = (torch.rand(num, 12, generator=generator) < 0.1).float()
    return (chosen - flips).abs()


QUICK = Schedule(epochs=4, batch_size=20, lr=1e-2)


def test_the_papers_schedule() -> None:
    """1 + 3 + 9 + ... + 2,187 = 3,280 epochs at 1e-3 * 10^(-i/7), and the rate changes exactly there."""
    assert PAPER_EPOCHS == 3280 == sum(3**i for i in range(8))
    paper = Schedule.paper()
    assert (paper.epochs, paper.batch_size, paper.adam_eps, paper.clip) == (3280, 100, 1e-4, None)
    epoch = 0
    for i in range(8):
        for _ in range(3**i):
            assert learning_rate(paper, epoch / 3280) == pytest.approx(1e-3 * 10 ** (-i / 7), rel=1e-12), epoch
            assert learning_rate(paper, (epoch + 0.999) / 3280) == pytest.approx(1e-3 * 10 ** (-i / 7), rel=1e-12)
            epoch += 1
    assert learning_rate(paper, 1.0) == pytest.approx(1e-4)
    short = Schedule.paper(epochs=328)
    assert learning_rate(short, 0.99) == pytest.approx(1e-4) and short.anneal == paper.anneal


def test_the_fast_and_constant_schedules() -> None:
    fast = Schedule(100, lr=3e-3)
    rates = [learning_rate(fast, p / 1000) for p in range(1000)]
    assert rates[0] == 0 and rates[10] == pytest.approx(1.5e-3) and max(rates) == pytest.approx(3e-3)
    assert rates.index(max(rates)) == 20
    assert rates[20:] == sorted(rates[20:], reverse=True) and rates[-1] < 1e-7 * 100
    assert rates[510] == pytest.approx(1.5e-3, rel=1e-6), "half way down the cosine"
    assert {learning_rate(Schedule(5, kind="constant", lr=1e-4), p / 7) for p in range(7)} == {1e-4}


def test_annealing_weight() -> None:
    paper = Schedule.paper()
    assert annealing_weight(paper, 0.0) == 0 and annealing_weight(paper, 200 / 3280) == pytest.approx(0.5)
    assert annealing_weight(paper, 400 / 3280) == pytest.approx(1.0) and annealing_weight(paper, 0.9) == 1.0
    assert annealing_weight(replace(paper, anneal=0.0), 0.0) == 1.0


def test_annealing_touches_the_entropy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """At weight 0 the loss is -log p(x, z): q collapses onto a mode, which no ELBO would do."""
    monkeypatch.setattr("vaegap.lab.training.annealing_weight", lambda schedule, progress: 0.0)
    collapsed, x = toy(), images()
    train(collapsed, x, replace(QUICK, epochs=20), progress=False)
    monkeypatch.undo()
    normal = toy()
    train(normal, x, replace(QUICK, epochs=20), progress=False)
    with torch.no_grad():
        assert collapsed.encode(x).stddev.mean() < 0.6 * normal.encode(x).stddev.mean()
        assert collapsed.encode(x).mean.abs().mean() < 2.0, "the prior still acts"


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"epochs": 1, "kind": "cosine"}, {"epochs": 1, "anneal": 1.5}])
def test_impossible_schedules(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Schedule(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_training_raises_the_elbo(family: str) -> None:
    vae, x = toy(family), images()
    before = elbo(vae, x, 50, seed=0)
    result = train(vae, x, replace(QUICK, epochs=8), progress=False)
    after = elbo(vae, x, 50, seed=0)
    assert after.mean > before.mean + 4 * (before.mcse + after.mcse)
    assert [h["epoch"] for h in result.history] == list(range(1, 9)) and not vae.training
    assert result.history[-1]["elbo"] == pytest.approx(after.mean, abs=1.0), "the annealing weight is taken out"
    assert all(p.requires_grad for p in vae.parameters())


def weights(vae: VAE) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in vae.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(v, two[k]) for k, v in one.items())


def test_the_seed_decides() -> None:
    runs = []
    for seed in (0, 0, 1):
        vae = toy()
        torch.manual_seed(seed + 100)
        train(vae, images(), QUICK, seed=seed, progress=False)
        runs.append(weights(vae))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


class Killed(Exception):
    pass


def killed_run(path: Path, at: int) -> None:
    def die(epoch: int, vae: VAE) -> None:
        raise Killed

    with pytest.raises(Killed):
        train(
            toy(),
            images(),
            QUICK,
            checkpoint=path,
            checkpoint_seconds=0,
            milestones=(at,),
            on_milestone=die,
            progress=False,
        )


@pytest.mark.parametrize("at", [2, 4])
def test_a_killed_run_continues_bit_by_bit(tmp_path: Path, at: int) -> None:
    whole = toy()
    straight = train(whole, images(), QUICK, progress=False)
    path = tmp_path / "c.safetensors"
    killed_run(path, at)
    vae = toy(seed=5)  # its own weights must not matter
    torch.manual_seed(99)
    result = train(vae, images(), QUICK, checkpoint=path, progress=False)
    assert result.resumed_from == at - 1
    assert same(weights(vae), weights(whole))
    assert [h["elbo"] for h in result.history] == [h["elbo"] for h in straight.history]
    again = train(toy(), images(), QUICK, checkpoint=path, progress=False)
    assert again.resumed_from == 4 and len(again.history) == 4, "a finished run is not trained further"


def test_a_checkpoint_with_pieces_of_the_optimizer_is_continued(tmp_path: Path) -> None:
    """Older versions kept Adam's state parameter by parameter."""
    path = tmp_path / "c.safetensors"
    killed_run(path, 3)
    tensors, meta = checkpoints.load(path)
    sizes = [p.numel() for p in toy().parameters()]
    for name in ("exp_avg", "exp_avg_sq"):
        pieces = tensors.pop(f"adam.0.{name}").split(sizes)
        tensors |= {f"adam.{i}.{name}": piece for i, piece in enumerate(pieces)}
    tensors |= {f"adam.{i}.step": tensors["adam.0.step"] for i in range(len(sizes))}
    checkpoints.save(path, {k: v.clone() for k, v in tensors.items()}, meta)
    vae, whole = toy(seed=5), toy()
    assert train(vae, images(), QUICK, checkpoint=path, progress=False).resumed_from == 2
    train(whole, images(), QUICK, progress=False)
    assert same(weights(vae), weights(whole))


FRESH = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from test_training import QUICK, images, toy, train
vae = toy(seed=3)
result = train(vae, images(), QUICK, checkpoint=sys.argv[1], progress=False)
assert result.resumed_from == 2
torch.save(vae.state_dict(), sys.argv[1] + ".pt")
"""


def test_a_fresh_process_continues_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    killed_run(path, 3)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    here = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", FRESH, str(path), here], check=True, env=environment, timeout=120)
    whole = toy()
    train(whole, images(), QUICK, progress=False)
    assert same(torch.load(f"{path}.pt", weights_only=True), weights(whole))


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    train(toy(), images(), QUICK, checkpoint=path, progress=False)
    before = path.read_bytes()
    others = [
        (toy(), images(), replace(QUICK, lr=2e-2), 0),
        (toy(), images(), QUICK, 1),
        (toy(), images(60), QUICK, 0),
        (VAE(12, 2, "gaussian", (8,), (9,), seed=0), images(), QUICK, 0),
        (toy(), 1 - images(), QUICK, 0),
    ]
    for vae, x, schedule, seed in others:
        with pytest.raises(InputError, match="another run"):
            train(vae, x, schedule, seed=seed, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="its images differ"):
        train(toy(), 1 - images(), QUICK, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="encoder_only"):
        train(toy(), images(), QUICK, checkpoint=path, encoder_only=True, progress=False)
    assert path.read_bytes() == before


def test_divergence_names_the_epoch_and_keeps_the_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    wild = Schedule(5, 20, "constant", 1e30, clip=None)
    with pytest.raises(RuntimeError, match=r"epoch \d.*Lower lr"):
        train(toy(), images(), wild, checkpoint=path, checkpoint_seconds=0, progress=False)
    if path.exists():
        assert all(torch.isfinite(v).all() for k, v in checkpoints.load(path)[0].items() if k.startswith("model"))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, float("inf"), float("nan")])
def test_clipping_is_torchs(size: float) -> None:
    ours, theirs = torch.zeros(17), torch.nn.Parameter(torch.zeros(17))
    grad = torch.randn(17, generator=torch.Generator().manual_seed(0)) * size
    ours.grad, theirs.grad = grad.clone(), grad.clone()
    torch.nn.utils.clip_grad_norm_([theirs], 2.5)
    _clip(ours, 2.5)
    if size < 0.1:
        assert torch.equal(ours.grad, grad), "gradients within the bound stay as they are"
    torch.testing.assert_close(theirs.grad, ours.grad, equal_nan=True)


def test_encoder_only_leaves_the_decoder_alone() -> None:
    vae = VAE((3, 32, 32), 4, "gaussian", (4, 4, 4), (4, 4, 4), architecture="conv", seed=0)
    x = (torch.rand(8, 3072, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    before = weights(vae)
    train(vae, x, Schedule(2, 4, lr=1e-2), encoder_only=True, progress=False)
    after = weights(vae)
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all(not k.startswith("decoder") for k in moved), "batch-norm statistics included"
    assert any(k.startswith("features") for k in moved) and any(k.startswith("head") for k in moved)
    assert all(p.requires_grad for p in vae.parameters())


def test_milestones(tmp_path: Path) -> None:
    seen = []

    def look(epoch: int, vae: VAE) -> None:
        assert not vae.training
        seen.append(epoch)
        torch.manual_seed(0)
        torch.randn(3)

    watched, plain = toy(), toy()
    train(watched, images(), QUICK, milestones=(1, 3), on_milestone=look, progress=False)
    train(plain, images(), QUICK, progress=False)
    assert seen == [1, 3] and same(weights(watched), weights(plain)), "looking must not change the run"


def test_unusable_images() -> None:
    x = images()
    x[3, 1] = 0.5
    with pytest.raises(InputError, match="image 3"):
        train(toy(), x, QUICK, progress=False)
