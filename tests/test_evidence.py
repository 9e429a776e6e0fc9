"""What the estimate of log p(x) flags: modes that q* misses, and chains that are stuck."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import best_member
from torch import Tensor

from vaegap import VAE, ais, wrap
from vaegap.evidence import log_evidence
from vaegap.exact import LinearGaussianVAE
from vaegap.posteriors import Posterior


def two_modes() -> tuple[VAE, Tensor, Tensor, Posterior]:
    """x1 = z1 for z1 > 0 and -2 z1 below, so x1 = 2 has two solutions; q sits on the one with less mass."""
    narrow = {"likelihood": "gaussian", "likelihood_options": {"scale": 0.2}}
    vae = VAE(2, 2, encoder_hidden=(), decoder_hidden=(4,), activation="relu", **narrow, seed=0)
    first, _, last = vae.decoder
    linear = vae.head.linear
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()
        first.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
        last.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]))
        linear.bias.copy_(torch.tensor([1.92, 0.48, 2 * math.log(0.19), 2 * math.log(0.19)]))
    x = torch.tensor([[2.0, 0.5], [2.0, 0.5]])
    one, two = torch.linspace(-6, 6, 601), torch.linspace(-4, 4, 201)
    points = torch.cartesian_prod(one, two).unsqueeze(1)
    log_p = vae.log_joint(x, points.expand(-1, 2, -1)).double().logsumexp(0) + math.log(0.02 * 0.04)
    return vae, x, log_p.detach(), vae.encode(x).detach()


def test_a_missed_mode_is_flagged() -> None:
    vae, x, log_p, q = two_modes()
    evidence = log_evidence(vae, x, q, num_chains=32, num_temperatures=20, check_modes=True, seed=0)
    short = log_p - evidence.ais.per_image
    assert (short > 0.8).all(), "the toy is meant to fool a narrow q"
    assert set(evidence.missed) == {0, 1}
    for i, excess in evidence.missed.items():
        assert abs(excess - short[i].item()) < 0.5
    assert evidence.source in ("prior", "mixture"), "where q* misses mass on most images, log p̂ comes from a wide base"
    assert evidence.bound.mean == max(b.mean for b in (evidence.ais, evidence.iwae, *evidence.wide.values()))
    assert (log_p - evidence.bound.per_image).abs().max() < 0.4
    wide = ais(vae, x, 100, 60, "prior", seed=0)
    assert ((wide.per_image - log_p).abs() < 4 * wide.mcse_per_image).all() and wide.mcse_per_image.max() < 0.3


def test_no_mode_is_missed_where_there_is_one(oracle: tuple[LinearGaussianVAE, Tensor]) -> None:
    vae, x = oracle
    q, _, _ = best_member("full_gaussian", vae, x)
    assert log_evidence(vae, x, q, check_modes=True, seed=0).missed == {}


def test_stuck_chains_are_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Image 1's posterior is so narrow against its base that hardly a proposal is accepted."""

    def decode(z: Tensor) -> Tensor:
        return z

    vae = wrap(lambda x: (x * 0, x * 0), decode, 2, likelihood="gaussian", scale=1.0)

    def log_likelihood(x: Tensor, z: Tensor) -> Tensor:
        return -0.5 * (x - z).square().sum(-1) * (1 + 1e10 * (x[:, 0] == 1))

    monkeypatch.setattr(vae, "log_likelihood", log_likelihood)
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.0]])
    bound = ais(vae, x, 8, 3, "prior", seed=0)
    assert bound.flagged is not None and set(bound.flagged) == {1}
    assert "accepts" in bound.flagged[1]


def test_chains_that_never_move_are_flagged() -> None:
    """A finite value with a gradient that is NaN: every proposal of every image is refused."""
    vae = wrap(lambda x: (x, x * 0), lambda z: z + (z[..., :1] * 0).sqrt(), 2, likelihood="gaussian", scale=1.0)
    bound = ais(vae, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 8, 3, seed=0)
    assert bound.flagged is not None and set(bound.flagged) == {0, 1}
    assert ais(vae, torch.zeros(2, 2), 8, 1, seed=0).flagged in (None, {}), "one temperature leaves nothing to move"
