"""Models that others trained give the same numbers through an adapter, and no file runs code when it is opened."""

from __future__ import annotations

import io
import json
import math
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from vaegap import InputError, ais, elbo, linear_gaussian_vae, wrap
from vaegap.adapters import FastDecoderVAE, as_model, from_functions, from_pythae
from vaegap.energy import LogJoint
from vaegap.lab.weights import read_images, read_program, read_weights
from vaegap.layouts import Layers, choose_activation, from_state_dict, guess_layers
from vaegap.likelihoods import Categorical, DiscretizedLogistic

D, LATENT = 12, 3


class Dense(nn.Module):
    """A user's own VAE: encode and decode, no interface of ours."""

    def __init__(self, outputs: int = D) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, 8), nn.Tanh(), nn.Linear(8, outputs))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return h[:, :3], h[:, 3:]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


@pytest.fixture
def model() -> Dense:
    torch.manual_seed(0)
    return Dense().eval()


@pytest.fixture
def x() -> Tensor:
    return (torch.rand(7, D, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def same_elbo(one, two, x: Tensor, tolerance: float = 1e-5) -> None:
    first, second = elbo(one, x, 20, seed=0).per_image, elbo(two, x, 20, seed=0).per_image
    assert torch.allclose(first, second, atol=tolerance), (first - second).abs().max()


# ---- wrap -----------------------------------------------------------------------------------------------------------


def test_an_encoder_may_speak_in_many_ways(model: Dense, x: Tensor) -> None:
    reference = wrap(model.encode, model.decode, LATENT)
    ways = {
        "one tensor": model.encoder,
        "normal": lambda v: Normal(model.encode(v)[0], (0.5 * model.encode(v)[1]).exp()),
        "independent": lambda v: Independent(Normal(model.encode(v)[0], (0.5 * model.encode(v)[1]).exp()), 1),
    }
    for encode in ways.values():
        same_elbo(wrap(encode, model.decode, LATENT), reference, x)
    scales = {"log_sigma": lambda s: s / 2, "sigma": lambda s: (s / 2).exp(), "variance": lambda s: s.exp()}
    for name, change in scales.items():
        encode = lambda v, change=change: (model.encode(v)[0], change(model.encode(v)[1]))  # noqa: E731
        same_elbo(wrap(encode, model.decode, LATENT, encoder_scale=name), reference, x)


def test_a_full_covariance_encoder_keeps_its_correlations(model: Dense, x: Tensor) -> None:
    tril = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.1, 1.2]])
    vae = wrap(lambda v: MultivariateNormal(model.encode(v)[0], scale_tril=tril), model.decode, LATENT)
    z = torch.randn(4, len(x), LATENT)
    expected = MultivariateNormal(model.encode(x)[0], scale_tril=tril).log_prob(z)
    assert torch.allclose(vae.encode(x).log_prob(z), expected, atol=1e-4)


def test_a_decoder_may_return_logits_probabilities_or_a_distribution(model: Dense, x: Tensor) -> None:
    reference = wrap(model.encode, model.decode, LATENT)
    same_elbo(wrap(model.encode, lambda z: Bernoulli(logits=model.decode(z)), LATENT), reference, x)
    same_elbo(wrap(model.encode, lambda z: Independent(Bernoulli(logits=model.decode(z)), 1), LATENT), reference, x)
    pictures = wrap(model.encode, lambda z: Bernoulli(logits=model.decode(z).view(-1, 1, 3, 4)), LATENT)
    same_elbo(pictures, reference, x)
    probabilities = wrap(model.encode, lambda z: model.decode(z).sigmoid(), LATENT, probabilities=True)
    same_elbo(probabilities, reference, x)


def test_a_scale_that_the_decoder_predicts(x: Tensor) -> None:
    model = Dense(2 * D)

    def normal(z: Tensor) -> Normal:
        mean, log_scale = model.decode(z).chunk(2, -1)
        return Normal(mean, log_scale.exp())

    same_elbo(wrap(model.encode, model.decode, LATENT, "gaussian", scale=None), wrap(model.encode, normal, LATENT), x)


@pytest.mark.parametrize("likelihood", [Categorical(4), DiscretizedLogistic(4)], ids=lambda v: v.name)
def test_discrete_pixels(likelihood) -> None:
    model = Dense(D * likelihood.params_per_pixel)
    levels = torch.randint(4, (5, D)).float()
    x = levels if likelihood.name == "categorical" else levels / 3
    vae = wrap(model.encode, model.decode, LATENT, likelihood)
    z = torch.randn(6, 5, LATENT)
    assert torch.allclose(vae.log_likelihood(x, z), vae.decode(z).log_prob(x), atol=1e-4)
    assert elbo(vae, x, 10, seed=0).mean < 0


def test_another_prior_is_another_model() -> None:
    """z ~ N(m, s²) in front of W z + b is z ~ N(0, I) in front of (W s) z + (W m + b)."""
    plain = linear_gaussian_vae(6, 2, seed=3)
    loc, scale = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    shifted = wrap(
        lambda v: (loc + scale * plain.encode(v).mean, plain.encode(v).params["logvar"] + 2 * scale.log()),
        lambda z: plain.decoder((z - loc) / scale),
        2,
        "gaussian",
        prior=Independent(Normal(loc, scale), 1),
        scale=plain.noise,
        module=plain,
    )
    x = plain.simulate(20, seed=0)
    assert torch.allclose(elbo(shifted, x, 2000, seed=0).per_image, elbo(plain, x, seed=0).per_image, atol=0.2)
    estimate = ais(shifted, x, num_temperatures=20, seed=0)
    assert abs(estimate.mean - plain.log_evidence(x).mean().item()) < 4 * estimate.mcse + 0.02
    first = shifted.sample_prior(5, torch.Generator().manual_seed(1))
    assert torch.equal(first, shifted.sample_prior(5, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_single_precision_results(model: Dense, x: Tensor, dtype: torch.dtype) -> None:
    reference = elbo(wrap(model.encode, model.decode, LATENT), x, 50, seed=0)
    half = model.to(dtype)
    seen: set[torch.dtype] = set()
    half.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    vae = wrap(half.encode, half.decode, LATENT)
    bound = elbo(vae, x, 50, seed=0)
    assert seen == {dtype}
    assert vae.encode(x).mean.dtype == torch.float32
    assert abs(bound.mean - reference.mean) < 0.1


def test_an_operation_without_half_precision_is_named_with_its_cure(model: Dense, x: Tensor) -> None:
    def refuses(z: Tensor) -> Tensor:
        raise RuntimeError("\"some_kernel\" not implemented for 'Half'")

    with pytest.raises(InputError, match=r"call \.float\(\)"):
        elbo(wrap(model.half().encode, refuses, LATENT), x, 4)


def test_modules_are_found_behind_functions() -> None:
    layer, other = nn.Linear(2, 2), nn.Dropout()
    holder = type("Holder", (), {"call": lambda self, z: self.net(z)})()
    holder.net = other
    vae = wrap(lambda v: (layer(v), layer(v)), holder.call, 2)
    assert set(vae.registered) == {layer, other}
    assert set(vae.parameters()) == set(layer.parameters())


# ---- layouts --------------------------------------------------------------------------------------------------------


def fc(sizes: dict[str, tuple[int, int]], seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, (inputs, outputs) in sizes.items():
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=g) / math.sqrt(inputs)
        state[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=g)
    return state


SIX = {"fc1": (D, 8), "fc2": (8, 9), "fc3": (9, 6), "fc4": (3, 9), "fc5": (9, 8), "fc6": (8, D)}
HEADS = {"fc1": (D, 8), "fc21": (8, 3), "fc22": (8, 3), "fc3": (3, 8), "fc4": (8, D)}


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


# ---- programs and pythae --------------------------------------------------------------------------------------------


def test_a_plain_decoder_gets_hand_written_gradients(model: Dense, x: Tensor) -> None:
    slow = wrap(model.encode, lambda z: model.decoder(z), LATENT)
    fast = from_functions(model.encode, model.decoder, x)
    assert isinstance(fast, FastDecoderVAE)
    assert fast.latent_dim == LATENT
    same_elbo(fast, slow, x)
    z = torch.randn(4, len(x), LATENT)
    assert LogJoint(fast, x).layers is not None
    assert torch.allclose(LogJoint(fast, x).grad(z), LogJoint(slow, x).grad(z), atol=1e-4)


def test_torchscript(model: Dense, x: Tensor, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript; files remain
        scripted = torch.jit.trace_module(model, {"encode": x, "decode": torch.zeros(7, LATENT)})
        scripted.save(tmp_path / "vae.pt")
    vae = as_model(read_program(tmp_path / "vae.pt"), x)
    same_elbo(vae, wrap(model.encode, model.decode, LATENT), x)


@pytest.fixture
def exported(model: Dense, tmp_path: Path) -> tuple[Path, Path]:
    many = {0: torch.export.Dim.DYNAMIC}
    for name, module, size in (("encoder", model.encoder, D), ("decoder", model.decoder, LATENT)):
        program = torch.export.export(module, (torch.zeros(4, size),), dynamic_shapes={"input": many})
        torch.export.save(program, tmp_path / f"{name}.pt2")
    return tmp_path / "encoder.pt2", tmp_path / "decoder.pt2"


def test_torch_export(model: Dense, x: Tensor, exported: tuple[Path, Path]) -> None:
    vae = as_model(tuple(read_program(path) for path in exported), x)
    same_elbo(vae, wrap(model.encode, model.decode, LATENT), x)


def test_pythae(x: Tensor) -> None:
    pythae = pytest.importorskip("pythae.models", reason="pythae is not installed: pip install 'vaegap[pythae]'")
    torch.manual_seed(0)
    for loss in ("bce", "mse"):
        config = pythae.VAEConfig(input_dim=(1, 3, 4), latent_dim=2, reconstruction_loss=loss)
        model = pythae.VAE(config)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            model({"data": x.view(-1, 1, 3, 4)})["loss"].backward()
            optimizer.step()
        vae = from_pythae(model)
        with torch.no_grad():
            losses = torch.stack([model({"data": x.view(-1, 1, 3, 4)})["loss"] for _ in range(2000)])
        constant = 0.0 if loss == "bce" else -0.5 * D * math.log(2 * math.pi)  # pythae leaves it out
        ours = elbo(vae, x, 2000, seed=0)
        error = math.hypot(ours.mcse, losses.std().item() / math.sqrt(len(losses)))
        assert abs(ours.mean - (constant - losses.mean().item())) < 5 * error + 1e-3
        assert isinstance(vae, FastDecoderVAE) == (loss == "bce")
    with pytest.raises(InputError, match="use vaegap.wrap"):
        from_pythae(pythae.AE(pythae.AEConfig(input_dim=(1, 3, 4), latent_dim=2)))


def test_what_is_no_model_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="cannot be audited as it is"):
        as_model(nn.Linear(2, 2), x)


# ---- files ----------------------------------------------------------------------------------------------------------


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


def test_weights_from_both_kinds_of_file(tmp_path: Path) -> None:
    state = fc(SIX)
    save_file(state, tmp_path / "w.safetensors")
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found, config = read_weights(tmp_path / name)
        assert config == {}
        assert all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize("reader", [read_weights, read_images, read_program], ids=lambda f: f.__name__)
@pytest.mark.parametrize("how", ["torch", "torch-old", "pickle"])
def test_a_pickle_that_would_run_code_stays_shut(reader, how: str, tmp_path: Path, sprung: Path) -> None:
    path = tmp_path / "bad.pt"
    state = {"fc1.weight": torch.zeros(2, 2), "trap": Trap(sprung)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(InputError, match=r"safetensors|state_dict"):
        reader(path)
    assert not sprung.exists()


def test_an_array_of_objects_stays_shut(tmp_path: Path, sprung: Path) -> None:
    np.save(tmp_path / "bad.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"numpy\.save"):
        read_images(tmp_path / "bad.npy")
    assert not sprung.exists()


def rewritten(path: Path, change) -> Path:
    """A copy of a zip file whose members went through change(name, bytes)."""
    target = path.with_name("bad.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item.filename)))
    return target


def test_an_exported_program_with_pickles_stays_shut(exported: tuple[Path, Path], sprung: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": Trap(sprung)}, buffer)
    swapped = rewritten(exported[0], lambda name, data: buffer.getvalue() if name.endswith("model.pt") else data)
    with pytest.raises(InputError, match="stays shut"):
        read_program(swapped)

    def pickled(name: str, data: bytes) -> bytes:
        return data.replace(b'"use_pickle": false', b'"use_pickle": true')

    with pytest.raises(InputError, match="pickled values"):
        read_program(rewritten(exported[0], pickled))

    def evil(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        return json.dumps(json.loads(data) | {"extra": {"expr_str": f"open('{sprung}', 'w')"}}).encode()

    with pytest.raises(InputError, match="no plain expression"):
        read_program(rewritten(exported[0], evil))
    assert not sprung.exists()


def test_images_from_files(tmp_path: Path) -> None:
    x = torch.arange(24).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", x.numpy())
    np.savez(tmp_path / "x.npz", images=x.numpy())
    torch.save(x, tmp_path / "x.pt")
    save_file({"x": x}, tmp_path / "x.safetensors")
    for suffix in ("npy", "npz", "pt", "safetensors"):
        assert torch.equal(read_images(tmp_path / f"x.{suffix}").long(), x)
    with pytest.raises(InputError, match="there is no file"):
        read_images(tmp_path / "none.npy")
    (tmp_path / "broken.npy").write_bytes(b"not an array")
    with pytest.raises(InputError, match="cannot be read"):
        read_images(tmp_path / "broken.npy")
