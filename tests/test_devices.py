"""Everything that is promised "on CPU or GPU", on a pretended device: no tensor of the CPU meets one of the device.

Not a run on a real GPU, and no replacement for one: see `pretend_device`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_device import DEVICE, Elsewhere, pretend_device
from somebody import LATENT, SIX, D, Dense, fc
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vaegap import VAE, ais, audit, bdmc, certifying, elbo, evidence, gaps, iwae, optimize_local, rounds, wrap
from vaegap.adapters import Layers, from_state_dict
from vaegap.errors import InputError
from vaegap.exact import linear_gaussian_vae, quadrature
from vaegap.lab import checkpoints
from vaegap.lab.training import Schedule, train
from vaegap.posteriors import FAMILIES

QUICK: dict[str, Any] = {"num_samples": 30, "certify": 2, "worst": 1}  # of an audit


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, and few steps and temperatures: where tensors are does not depend on their number."""
    ascend, anneal = rounds.ascend, evidence.ais

    def short(joint: Any, q: Any, steps: int, *rest: Any) -> Any:
        return ascend(joint, q, min(steps, 2), *rest)

    monkeypatch.setattr(rounds, "ascend", short)
    monkeypatch.setattr(evidence, "ais", lambda *a, **k: anneal(*a, **{**k, "num_temperatures": 3}))
    monkeypatch.setattr(certifying, "_LADDER", (3,))
    with pretend_device() as where:
        yield where


def make(**options: Any) -> VAE:
    return VAE(D, LATENT, encoder_hidden=(5,), decoder_hidden=(6,), seed=0, **options)


class Misplaced(Dense):
    """Somebody who forgot to register a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(D)

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z) * self.scale


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 6))
        self.body = nn.Sequential(nn.Linear(3, 36), nn.ReLU(), nn.Unflatten(1, (4, 3, 3)))
        self.last = nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.last(self.body(z))


@pytest.mark.parametrize(
    "mix",
    [
        lambda a: a + torch.ones(2),
        lambda a: torch.cat([a, torch.ones(1)]),
        lambda a: torch.stack([a[0], torch.tensor(1.0)]),
        lambda a: torch.ones(2)[a.long()],
        lambda a: a.index_select(0, torch.tensor([0])),
        lambda a: a.numpy(),
        lambda a: torch.randn(2, generator=torch.Generator(), device=a.device),
        lambda a: torch.randn(2, generator=torch.Generator(a.device)),
    ],
)
def test_the_device_refuses_what_cuda_refuses(mix: Callable[[Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"device|\.cpu\(\)"):
        mix(torch.ones(2, device=DEVICE))


def test_the_device_allows_what_cuda_allows() -> None:
    a = torch.tensor([1.0, 2.0], device=DEVICE)
    a[torch.tensor([1])] = 5.0  # an index of the CPU
    a += torch.tensor(1.0)  # a number of the CPU
    a.copy_(a.cpu())
    assert isinstance(a, Elsewhere) and not isinstance(a.cpu(), Elsewhere) and a.tolist() == [2, 6]


def test_a_misplaced_tensor_is_caught_and_named_with_its_cure(x: Tensor) -> None:
    """The laboratory can fail; and whoever makes this mistake on a GPU reads what to do."""
    with pytest.raises(InputError, match=r"on another device than the model's \(lazy:0\): move it there"):
        audit(Misplaced().to(DEVICE), x, **QUICK)


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_are_those_of_the_cpu(family: str, x: Tensor) -> None:
    """The pretended device draws the CPU's random numbers, so that equal seeds give equal bounds."""
    here, there = make(family=family), make(family=family).to(DEVICE)
    for bound in (elbo, iwae):
        mine, other = bound(here, x, 30, seed=0), bound(there, x, 30, seed=0)
        assert isinstance(other.per_image, Elsewhere)
        torch.testing.assert_close(other.per_image.cpu(), mine.per_image)


@pytest.mark.parametrize("base", ["posterior", "prior", "mixture"])
@pytest.mark.parametrize("schedule", ["sigmoid", "linear", "adaptive"])
def test_annealing(base: str, schedule: str, x: Tensor) -> None:
    vae = make().to(DEVICE)
    bound = ais(vae, x, 2, 4, base, schedule, 2, seed=0)
    torch.testing.assert_close(bound.per_image.cpu(), ais(make(), x, 2, 4, base, schedule, 2, seed=0).per_image)
    if base != "mixture":
        assert isinstance(bdmc(vae, 3, 2, 4, base, schedule, 2, seed=0).upper.per_image, Elsewhere)


@pytest.mark.parametrize("family", FAMILIES)
def test_gaps_of_every_family(family: str, x: Tensor) -> None:
    result = gaps(make(family=family).to(DEVICE), x, (family,), 20, 2, 3, 2, check_modes=True, keep_flows=True, seed=0)
    assert result.posteriors[family].mean.device == DEVICE and result.identity_error < 1e-6


@pytest.mark.parametrize(
    "likelihood, options",
    [
        ("gaussian", {"scale": 0.5}),
        ("gaussian", {"scale": None}),
        ("discretized_logistic", {}),
        ("categorical", {"levels": 4}),
    ],
)
def test_likelihoods(likelihood: str, options: dict[str, Any], x: Tensor) -> None:
    vae = make(likelihood=likelihood, likelihood_options=options).to(DEVICE)
    assert bdmc(vae, 3, 2, 3, num_leapfrog=2, seed=0).lower.per_image.device == DEVICE
    assert optimize_local(vae, x, seed=0, num_eval=4).bound.per_image.device == DEVICE


def test_oracles() -> None:
    vae = linear_gaussian_vae(data_dim=4, latent_dim=2).to(DEVICE)
    x = vae.simulate(3)
    grid = quadrature(vae, x, points=31)
    assert (grid.log_p - vae.log_evidence(x)).abs().max() < 1e-2
    assert (grid.mass(vae.encode(x).detach()) - 1).abs().max() < 1e-2 and (vae.exact_gaps(x).approximation > 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_continues_where_it_was(family: str, x: Tensor, tmp_path: Path) -> None:
    def trained(checkpoint: Path | None, **options: Any) -> VAE:
        vae = make(family=family).to(DEVICE)
        train(vae, x, Schedule(epochs=3, batch_size=4), checkpoint=checkpoint, progress=False, **options)
        return vae

    def stop(epoch: int, vae: VAE) -> None:
        raise InterruptedError

    whole, path = trained(None), tmp_path / "training.safetensors"
    with pytest.raises(InterruptedError):
        trained(path, checkpoint_seconds=0, milestones=(3,), on_milestone=stop)
    continued = trained(path)
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), continued.parameters(), strict=True))
    checkpoints.save_model(tmp_path / "model.safetensors", continued)
    assert checkpoints.load_model(tmp_path / "model.safetensors", DEVICE).device == DEVICE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_audit_of_somebodys_network(dtype: torch.dtype, model: Dense, x: Tensor) -> None:
    report = audit(model.to(DEVICE, dtype), x, x.to(DEVICE), check_modes=False, **QUICK)
    assert report.model["device"] == "lazy:0"


def test_audit_of_a_convolutional_network() -> None:
    x = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"likelihood": "gaussian", "scale": 0.3, "data_shape": (1, 6, 6)}
    report = audit(Conv().to(DEVICE), x, check_modes=False, **QUICK, **options)
    assert "on lazy:0" in report.to_html() and '"lazy:0"' in report.to_json()


def test_audit_of_a_distribution_under_a_prior(model: Dense, x: Tensor) -> None:
    model.to(DEVICE)

    def decode(z: Tensor) -> Distribution:
        return Independent(Bernoulli(logits=model.decode(z)), 1)

    wide = Independent(Normal(torch.zeros(LATENT, device=DEVICE), 2 * torch.ones(LATENT, device=DEVICE)), 1)
    assert audit(wrap(model.encode, decode, LATENT, prior=wide), x, **QUICK).parts["images"].active_units >= 0


def test_a_prior_left_on_the_cpu_is_named(model: Dense, x: Tensor) -> None:
    prior = Independent(Normal(torch.zeros(LATENT), 2 * torch.ones(LATENT)), 1)
    vae = wrap(model.encode, model.decode, LATENT, prior=prior).to(DEVICE)
    with pytest.raises(InputError, match=r"the prior .* are on different devices; .* build the prior from tensors"):
        audit(vae, x, **QUICK)
    with pytest.raises(InputError, match="or the prior that it gets samples of, is on another device"):
        bdmc(vae, 2, 2, 3)


@pytest.mark.parametrize("scale", ["logvar", "log_sigma"])
def test_a_state_dict_stays_where_it_is(scale: str, x: Tensor) -> None:
    state, layers = fc(SIX), Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6"))
    del state["fc2.bias"]
    there = from_state_dict({k: v.to(DEVICE) for k, v in state.items()}, layers, encoder_scale=scale)
    assert there.device == DEVICE
    mine = elbo(from_state_dict(state, layers, encoder_scale=scale), x, seed=0)
    torch.testing.assert_close(elbo(there, x, seed=0).per_image.cpu(), mine.per_image)


@pytest.mark.parametrize("family", FAMILIES)
def test_torchs_default_device_changes_nothing(family: str, x: Tensor) -> None:
    plain = elbo(oracle := linear_gaussian_vae(data_dim=4, latent_dim=2), oracle.simulate(3), seed=0)
    with torch.device(DEVICE):  # as after torch.set_default_device("cuda")
        result = gaps(make(family=family), x, (family,), 20, 2, 3, certify=2, keep_flows=True, seed=0)
        bound = elbo(oracle := linear_gaussian_vae(data_dim=4, latent_dim=2), oracle.simulate(3), seed=0)
    assert result.posteriors[family].mean.device == bound.per_image.device == DEVICE
    torch.testing.assert_close(bound.per_image.cpu(), plain.per_image)


@pytest.mark.parametrize("count", [4, 100])
def test_an_audit_under_a_default_device(count: int, x: Tensor) -> None:
    with torch.device(DEVICE):
        assert "on lazy:0" in audit(Dense(), x, num_images=count, check_modes=False, **QUICK).to_html()


def test_a_training_does_not_continue_on_another_device(x: Tensor, tmp_path: Path) -> None:
    schedule, path = Schedule(epochs=2, batch_size=4), tmp_path / "training.safetensors"
    train(make(), x, schedule, checkpoint=path, progress=False)
    with pytest.raises(InputError, match="its device, whose random numbers"):
        train(make().to(DEVICE), x, schedule, checkpoint=path, progress=False)
