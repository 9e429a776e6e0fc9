"""The gradient of a training step, by hand and by autograd, against the loss written down."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import FAMILY_NAMES
from torch import Tensor

from vaegap import VAE
from vaegap.lab.gradients import Step

X = (torch.rand(7, 12, generator=torch.Generator().manual_seed(0)) < 0.4).double()


def model(**settings: Any) -> VAE:
    """A VAE in double precision whose every weight matters."""
    vae = VAE(
        **({"data_shape": 12, "latent_dim": 3, "encoder_hidden": (8,), "decoder_hidden": (9,)} | settings), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return vae.double()


def by_autograd(vae: VAE, weight: float) -> tuple[Tensor, Tensor]:
    """Σ log p − log q of the batch, and the gradient of the mean loss, straight from the definitions."""
    z, log_q = vae.encode(X).rsample_and_log_prob(1, generator=torch.Generator().manual_seed(5))
    log_joint = vae.log_joint(X, z)
    (weight * log_q - log_joint).mean().backward()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in vae.parameters() if p.requires_grad]
    return (log_joint - log_q).sum(), torch.cat([g.flatten() for g in grads])


def check(vae: VAE, weight: float, by_hand: bool) -> None:
    value, grad = by_autograd(vae, weight)
    step = Step(vae)
    assert step.by_hand == by_hand
    for _ in range(2):  # a step leaves nothing behind that the next one would add to
        torch.testing.assert_close(step(X, weight, torch.Generator().manual_seed(5)), value.detach())
        torch.testing.assert_close(step.weights.grad, grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("hidden", [(8,), (8, 5, 6)])
@pytest.mark.parametrize("encoder_only", [False, True])
def test_by_hand(weight: float, hidden: tuple[int, ...], encoder_only: bool) -> None:
    vae = model(encoder_hidden=hidden, decoder_hidden=hidden[::-1])
    for p in vae.decoder.parameters():
        p.requires_grad_(not encoder_only)
    check(vae, weight, by_hand=True)


@pytest.mark.parametrize("shift", [-60.0, 60.0])
def test_no_gradient_beyond_the_bounds_of_the_scale(shift: float) -> None:
    vae = model()
    with torch.no_grad():
        vae.head.linear.bias[4] += shift
    check(vae, 1.0, by_hand=True)
    assert vae.head.linear.bias.grad[4] == 0


@pytest.mark.parametrize(
    "settings",
    [
        *({"family": name} for name in FAMILY_NAMES if name != "gaussian"),
        {"activation": "tanh"},
        {"encoder_hidden": ()},
        {"decoder_hidden": ()},
        {"likelihood": "gaussian"},
    ],
    ids=str,
)
def test_any_other_model(settings: dict[str, Any]) -> None:
    vae = model(**settings)
    check(vae, 0.7, by_hand=settings == {"decoder_hidden": ()})


def test_weights_move_with_the_vector_until_they_are_released() -> None:
    vae = model()
    step = Step(vae)
    step.weights.zero_()
    assert all(not p.any() for p in vae.parameters())
    step.release()
    step.weights.fill_(1.0)
    assert all(not p.any() for p in vae.parameters())
    assert len({p.untyped_storage().data_ptr() for p in vae.parameters()}) == len(list(vae.parameters()))
