"""The two flows of section 5.3 are those that were published, not only flows that agree with themselves."""

from __future__ import annotations

import pytest
import torch
from oracles import member, noise
from torch import Tensor

from vaegap.posteriors import Posterior

PUBLISHED = ["flow_on_z", "blind_aux_flow"]


def net(q: Posterior, name: str, given: Tensor) -> Tensor:
    """A network with tanh units and the weights that all images share."""
    layer = 0
    while f"{name}_w{layer}" in q.params:
        given = given if layer == 0 else given.tanh()
        given = given @ q.params[f"{name}_w{layer}"][0] + q.params[f"{name}_b{layer}"][0]
        layer += 1
    return given


def step(q: Posterior, name: str, given: Tensor, changed: Tensor) -> Tensor:
    """x ↦ x ⊙ sigmoid(s(given)) + t(given)."""
    scale, shift = net(q, name, given).chunk(2, -1)
    return changed * scale.sigmoid() + shift


@pytest.mark.parametrize("name", PUBLISHED)
def test_nothing_of_the_image_enters_but_the_gaussian(name: str) -> None:
    q = member(name, "amortized", count=3, dim=4)
    for key, value in q.params.items():
        assert len(value) == (3 if key in ("mean", "logvar") else 1), key
    assert not any(key.startswith("start") for key in q.params), "v_0 has no network"


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_bend_the_latents_themselves_by_the_published_formula(name: str) -> None:
    q = member(name, "amortized", count=3, dim=4)
    eps = noise(q, samples=5)
    first, second = (eps[..., :4], eps[..., 4:])
    z = q.params["mean"] + (q.params["logvar"] / 2).exp() * first
    expected: tuple[Tensor, ...]
    if name == "flow_on_z":
        a, b = z[..., :2], z[..., 2:]
        for k in range(2):
            b = step(q, f"ab{k}", a, b)
            a = step(q, f"ba{k}", b, a)
        expected = (torch.cat([a, b], -1),)
    else:
        v = second
        for k in range(2):
            v = step(q, f"v{k}", z, v)
            z = step(q, f"z{k}", v, z)
        expected = (z, v)
    found, _ = q.family.transform(q.params, eps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_auxiliary_reverse_model_is_a_tanh_network_of_z() -> None:
    q = member("blind_aux_flow", "amortized", count=3, dim=4)
    z, v = q.family.transform(q.params, noise(q, samples=5))[0]
    mean, logvar = net(q, "reverse", z).chunk(2, -1)
    expected = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(v).sum(-1)
    torch.testing.assert_close(q.family.reverse_log_prob(q.params, (z, v)), expected)
