"""State dicts of plain MLPs become the VAE that they were, by name or by shape."""

from __future__ import annotations

import pytest
import torch
from somebody import HEADS, SIX, D, fc, same_elbo
from torch import Tensor, nn

from vaegap import InputError, wrap
from vaegap.layouts import Layers, choose_activation, from_state_dict, guess_layers


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(7, D, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def test_six_layers_by_name(x: Tensor) -> None:
    state = fc(SIX)
    f = nn.functional

    def layer(name: str, h: Tensor) -> Tensor:
        return f.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def encode(v: Tensor) -> Tensor:
        return layer("fc3", f.elu(layer("fc2", f.elu(layer("fc1", v)))))

    def decode(z: Tensor) -> Tensor:
        return layer("fc6", f.elu(layer("fc5", f.elu(layer("fc4", z)))))

    vae = from_state_dict(state, Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6")), activation="elu")
    same_elbo(vae, wrap(encode, decode, 3), x)
    assert repr(guess_layers(state)) == repr(Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6")))
    prefixed = {f"module.{k}": v.half() for k, v in state.items()}
    same_elbo(from_state_dict(prefixed, activation="elu"), vae, x, 0.05)


def test_separate_heads_are_found_whatever_their_order() -> None:
    assert repr(guess_layers(fc(HEADS))) == "Layers(encoder=fc1 mean=fc21 logvar=fc22 decoder=fc3,fc4)"
    named = {"enc": (D, 8), "log_var": (8, 3), "mu": (8, 3), "out": (3, D)}
    assert repr(guess_layers(fc(named))) == "Layers(encoder=enc mean=mu logvar=log_var decoder=out)"
    shuffled = {"decoder.0": (3, 8), "decoder.2": (8, D), "encoder.0": (D, 8), "encoder.2": (8, 6)}
    assert repr(guess_layers(fc(shuffled))) == "Layers(encoder=encoder.0,encoder.2 decoder=decoder.0,decoder.2)"


def test_log_sigma_heads(x: Tensor) -> None:
    state = fc(HEADS)
    doubled = {k: 2 * v if k.startswith("fc22") else v for k, v in state.items()}
    same_elbo(from_state_dict(state, encoder_scale="log_sigma"), from_state_dict(doubled), x)


@pytest.mark.parametrize(
    ("sizes", "layers", "says"),
    [
        (SIX, Layers(("fc1", "fc9"), ("fc4",)), "no linear layer 'fc9'"),
        (SIX, Layers(("fc1", "fc3"), ("fc4", "fc5", "fc6")), "does not use: fc2"),
        (SIX | {"fc3": (9, 8)}, Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6")), "latent sizes do not match"),
        (SIX | {"fc2": (7, 9)}, Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6")), "followed by one with 7"),
        (SIX | {"fc6": (8, D + 1)}, Layers(("fc1", "fc2", "fc3"), ("fc4", "fc5", "fc6")), "pixels need 12"),
        ({"a": (D, 5)}, None, "no way to read"),
    ],
)
def test_layers_that_do_not_fit_are_named(sizes, layers, says: str) -> None:
    with pytest.raises(InputError, match=says):
        from_state_dict(fc(sizes), layers)


def test_the_activation_that_explains_images_best() -> None:
    state = fc(SIX)
    state["fc6.weight"] *= 20  # an opinionated decoder: the wrong activation costs many nats
    truth = from_state_dict(state, activation="tanh")
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = (truth.decoder_params(z) > 0).float()
        optimizer = torch.optim.Adam([*truth.features.parameters(), *truth.head.parameters()], 1e-2)
    for _ in range(200):
        q = truth.encode(x)
        zs, log_q = q.rsample_and_log_prob(1)
        loss = (log_q - truth.log_joint(x, zs)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    names = ["fc1", "fc2", "fc3", "fc4", "fc5", "fc6"]
    linears = [m for m in truth.modules() if isinstance(m, nn.Linear)]
    order = [linears[i] for i in sorted(range(6), key=lambda i: id(linears[i]) in {id(m) for m in truth.decoder})]
    trained = {}
    for name, layer in zip(names, order, strict=True):
        trained[f"{name}.weight"], trained[f"{name}.bias"] = layer.weight.detach(), layer.bias.detach()
    chosen, values = choose_activation(trained, x)
    assert chosen == "tanh"
    assert set(values) == {"elu", "tanh", "relu"}
