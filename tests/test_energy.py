"""log p(x, z) and its hand-written gradient against autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vaegap import VAE, energy, wrap
from vaegap.energy import LogJoint
from vaegap.models import Model


def joint_of(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Model, Tensor, Tensor]:
    vae = VAE(9, 3, encoder_hidden=(5,), decoder_hidden=(8, 7), seed=0, **options).to(dtype)
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(6, 9, generator=generator) < 0.5).to(dtype)
    z = 2 * torch.randn(10, 6, 3, generator=generator, dtype=dtype)
    return vae, x, z


def autograd(model: Model, x: Tensor, z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_(True)
    return torch.autograd.grad(model.log_joint(x, leaf).sum(), leaf)[0]


CASES: list[dict[str, Any]] = [
    {"activation": "elu"},
    {"activation": "tanh"},
    {"activation": "relu"},
    {"likelihood": "gaussian", "likelihood_options": {"scale": 0.4}},
    {"likelihood": "gaussian", "likelihood_options": {"scale": None}},  # no gradient of its own: through autograd
    {"likelihood": "discretized_logistic"},
]


@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-11), (torch.float32, 1e-3)])
def test_gradient_and_value(options: dict[str, Any], dtype: torch.dtype, atol: float) -> None:
    vae, x, z = joint_of(dtype, **options)
    joint, before = LogJoint(vae, x), z.clone()
    written = joint.layers is not None
    assert written == (options.get("likelihood", "bernoulli") == "bernoulli" or "0.4" in str(options))
    grad, value = joint.grad(z), joint.value(z)
    assert grad.dtype == value.dtype == dtype and not value.requires_grad
    torch.testing.assert_close(grad, autograd(vae, x, z), atol=atol, rtol=1e-5)
    torch.testing.assert_close(value, vae.log_joint(x, z).detach(), atol=atol, rtol=1e-6)
    assert torch.equal(z, before), "the states must survive"


def test_linear_decoder_and_wrapped_models() -> None:
    vae = VAE(9, 3, encoder_hidden=(), decoder_hidden=(), seed=0).double()
    _, x, z = joint_of()
    torch.testing.assert_close(LogJoint(vae, x).grad(z), autograd(vae, x, z))
    shift = torch.distributions.Independent(torch.distributions.Normal(torch.ones(3).double(), 2.0), 1)
    layer = nn.Linear(3, 9).double()
    other = wrap(lambda a: (a[:, :3], a[:, :3]), layer, 3, prior=shift)
    torch.testing.assert_close(LogJoint(other, x).grad(z), autograd(other, x, z))


def test_bfloat16_forces_are_close_and_values_exact() -> None:
    vae, x, z = joint_of(torch.float32)
    exact, rough = LogJoint(vae, x), LogJoint(vae, x, torch.bfloat16)
    assert torch.equal(rough.value(z), exact.value(z))
    one, two = exact.grad(z), rough.grad(z)
    assert two.dtype == torch.float32
    assert not torch.equal(one, two)
    assert (one - two).norm() < 0.02 * one.norm()
    assert torch.equal(rough.grad(z), two), "a force must be deterministic"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_subset(dtype: torch.dtype | None) -> None:
    vae, x, z = joint_of(torch.float32)
    joint, index = LogJoint(vae, x, dtype), torch.tensor([4, 1])
    some = joint.subset(index)
    torch.testing.assert_close(some.value(z[:, index]), joint.value(z)[:, index])
    torch.testing.assert_close(some.grad(z[:, index]), joint.grad(z)[:, index], atol=2e-2 if dtype else 1e-5, rtol=1e-2)
    assert joint.value(z).shape == (10, 6), "the parent keeps its images"


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x, z = joint_of()
    joint = LogJoint(vae, x)
    whole = joint.value(z), joint.grad(z)
    for rows in (1, 25):  # blocks of one image, and of two with a rest
        monkeypatch.setattr(energy, "_ROWS", rows)
        torch.testing.assert_close(joint.value(z), whole[0])
        torch.testing.assert_close(joint.grad(z), whole[1])


def test_a_decoder_without_gradients_is_refused() -> None:
    from vaegap import InputError

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        return 2 * z

    model = wrap(lambda x: (x, x * 0), decode, 2, likelihood="gaussian", scale=1.0)
    with pytest.raises(InputError, match="differentiable"):
        LogJoint(model, torch.zeros(3, 2)).grad(torch.zeros(4, 3, 2))


def test_blocks_shrink_with_the_decoders_output() -> None:
    """256 levels a pixel: a block of 2,048 samples would take gigabytes."""
    vae = VAE(784, 2, decoder_hidden=(4,), likelihood="categorical", likelihood_options={"levels": 256}, seed=0)
    joint = LogJoint(vae, torch.zeros(100, 784))
    assert max(part.stop - part.start for part in joint._blocks(torch.zeros(4, 100, 2))) * 4 * 784 * 256 <= 2**22
