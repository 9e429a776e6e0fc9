"""An audit tells the truth about models whose truth is known, and says what is wrong with the others."""

from __future__ import annotations

import base64
import math
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Bernoulli
from typer.testing import CliRunner

from vaegap import VAE, Audit, InputError, audit, linear_gaussian_vae, load_images, optimize_local, wrap
from vaegap.advice import advise
from vaegap.audited import Certificate, Part
from vaegap.doubts import doubts
from vaegap.examining import examine
from vaegap.lab.cli import app
from vaegap.readings import scale_readings

QUICK = {"certify": 10, "num_samples": 60, "num_images": 16, "check_modes": False}


# ---- a model whose gaps are known exactly ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle():
    return linear_gaussian_vae(encoder_error=0.3)


@pytest.fixture(scope="module")
def report(oracle) -> Audit:
    return audit(oracle, oracle.simulate(60, seed=1), oracle.simulate(50, seed=2), num_images=40, num_samples=200,
                 certify=30)  # fmt: skip


def test_gaps_are_the_exact_ones(oracle, report: Audit) -> None:
    for name, seed, num in (("training", 1, 60), ("held-out", 2, 50)):
        part = report.parts[name]
        exact = oracle.exact_gaps(oracle.simulate(num, seed=seed)[part.table.index.tolist()])
        truth = {"log_p": exact.log_p, "L_q": exact.elbo, "L_star_gaussian": exact.best_gaussian,
                 "approximation_gaussian": exact.approximation, "amortization_gaussian": exact.amortization,
                 "inference": exact.log_p - exact.elbo, "L_star_full_gaussian": exact.log_p}  # fmt: skip
        summary = part.summary
        for quantity, values in truth.items():
            row = summary.loc[quantity]
            assert abs(row["mean"] - values.mean().item()) < 4 * row["mcse"] + 0.02, quantity
        assert part.active_units == part.latent_dim == 5
        assert part.missed == {}
        assert part.refined is not None
        assert 0 < part.refined.gain < exact.amortization.mean() + 0.05
    assert report.certificate is not None
    assert abs(report.certificate.width) < 0.1
    assert not [f for f in report.findings if f.severity == "warning"]


def test_advice_says_what_each_cure_can_gain(report: Audit) -> None:
    summary = report.parts["held-out"].summary
    gains = {a.kind: a for a in report.advice}
    assert gains["encoder"].gain == summary.loc["amortization_gaussian", "mean"]
    assert gains["family"].gain == summary.loc["approximation_gaussian", "mean"]
    both, total = gains["encoder"].gain + gains["family"].gain, summary.loc["inference", "mean"]
    assert math.isclose(both, total, abs_tol=1e-6)
    assert f"{gains['encoder'].gain:.1f} of {total:.1f} nats are amortization" in gains["encoder"].text
    assert f"would buy at most {gains['family'].gain:.1f}" in gains["family"].text
    assert [a.gain for a in report.advice] == sorted((a.gain for a in report.advice), reverse=True)
    assert all(a.low <= a.gain <= a.high for a in report.advice)


def test_json_comes_back_as_it_was(report: Audit, tmp_path: Path) -> None:
    written = report.to_json(tmp_path / "audit.json")
    back = Audit.from_json((tmp_path / "audit.json").read_text())
    assert back.to_json() == written
    assert repr(back) == repr(report)
    assert back.summary.equals(report.summary)
    for wrong in ("[]", "{", '{"schema": 0}'):
        with pytest.raises(InputError):
            Audit.from_json(wrong)


def test_the_page_asks_for_nothing(report: Audit, tmp_path: Path) -> None:
    report.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?:|//\w|<script|<link|@import|url\(", re.sub(r'base64,[^"]*"', "", page))
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 4  # a ladder and the worst images, for both sets
    for source in sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    for word in ("training", "held-out", "BDMC width", "amortization gap", "active units", "k̂", "IWAE"):
        assert word in page


def test_the_terminal_report_is_plain_text(report: Audit) -> None:
    text = repr(report)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 105
    for word in (
        "log p̂(x)",
        "L[q*] full-covariance",
        "amortization gap",
        "BDMC width",
        "Advice",
        "training",
        "held-out",
    ):
        assert word in text


def test_the_same_seed_gives_the_same_numbers(oracle) -> None:
    x = oracle.simulate(8, seed=1)
    first, second = (audit(oracle, x, certify=0, num_samples=50, check_modes=False) for _ in range(2))
    assert first.summary.equals(second.summary)


# ---- other people's models ------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """Somebody's convolutional VAE with batch norm and a Gaussian likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(64, 4)
        self.up = nn.Sequential(nn.Linear(2, 64), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.head(self.down(x)).chunk(2, -1)

    def decode(self, z: Tensor) -> Tensor:
        return self.last(self.up(z))


def ramps(num: int, seed: int = 0) -> Tensor:
    """Pictures (num, 1, 8, 8) with two degrees of freedom and a little noise."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, num, 1, 1, 1, generator=g)
    axis = torch.linspace(-1, 1, 8)
    return a * axis + b * axis[:, None] + 0.3 * torch.randn(num, 1, 8, 8, generator=g)


def test_a_convolutional_model_with_gaussian_pixels() -> None:
    torch.manual_seed(0)
    net, x = Conv(), ramps(300)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        mean, logvar = net.encode(x)
        out = net.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum()
        optimizer.zero_grad()
        (((out - x) ** 2).sum() / (2 * 0.3**2) + kl).backward()
        optimizer.step()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    vae = wrap(net.encode, net.decode, 2, "gaussian", data_shape=(1, 8, 8), scale=0.3)
    result = audit(vae, x, ramps(50, seed=1), **QUICK)
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # batch statistics too
    assert [f.kind for f in result.findings if f.kind == "training_mode"] == ["training_mode"]
    assert result.shape == (1, 8, 8)
    for part in result.parts.values():
        s = part.summary
        slack = 4 * s["mcse"].max() + 0.02
        assert s.loc["L_q", "mean"] < s.loc["L_star_gaussian", "mean"] + slack
        assert s.loc["L_star_gaussian", "mean"] < s.loc["L_star_full_gaussian", "mean"] + slack
        assert s.loc["L_star_full_gaussian", "mean"] < s.loc["log_p", "mean"] + slack
    assert "data:image/png" in result.to_html()


def test_a_scripted_model_and_a_pythae_model_give_a_report() -> None:
    """That they give the right numbers is shown in test_adapters."""
    pythae = pytest.importorskip("pythae.models", reason="pythae is not installed: pip install 'vaegap[pythae]'")
    torch.manual_seed(0)
    model = pythae.VAE(pythae.VAEConfig(input_dim=(1, 8, 8), latent_dim=2, reconstruction_loss="bce"))
    x = (ramps(200) > 0).float()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model({"data": x})["loss"].backward()
        optimizer.step()
    result = audit(model, x, **QUICK)
    assert result.model["likelihood"] == "bernoulli"
    summary = result.parts["images"].summary
    assert summary.loc["L_q", "mean"] < summary.loc["log_p", "mean"]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = model.encoder.layers[0], model.decoder.layers
            self.mean, self.logvar = model.encoder.embedding, model.encoder.log_var

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.encoder(x)
            return self.mean(h), self.logvar(h)

        def decode(self, z: Tensor) -> Tensor:
            return self.decoder[1][0](self.decoder[0](z))

    plain = Plain().eval()
    scripted = torch.jit.trace_module(plain, {"encode": x.flatten(1), "decode": torch.zeros(3, 2)})
    again = audit(scripted, x, **QUICK)
    error = summary["mcse"] + again.parts["images"].summary["mcse"]
    assert ((summary["mean"] - again.parts["images"].summary["mean"]).abs() < 5 * error + 0.05).all()


# ---- bad input, named with its cure ---------------------------------------------------------------------------------


def binary(num: int = 20, pixels: int = 20) -> Tensor:
    return (torch.rand(num, pixels, generator=torch.Generator().manual_seed(0)) < 0.5).float()


@pytest.mark.parametrize("scale", ["log_sigma", "sigma", "variance"])
def test_an_encoder_that_returns_something_else_than_a_log_variance(oracle, scale: str) -> None:
    change = {"log_sigma": lambda s: s / 2, "sigma": lambda s: (s / 2).exp(), "variance": lambda s: s.exp()}[scale]

    def encode(v: Tensor) -> tuple[Tensor, Tensor]:
        q = oracle.encode(v)
        return q.mean, change(q.params["logvar"])

    x = oracle.simulate(30, seed=1)
    best = optimize_local(oracle, x, seed=0).posterior
    vae = wrap(encode, oracle.decoder, 5, "gaussian", scale=oracle.noise)
    (found,) = scale_readings(vae, x, best)
    assert found.kind == "scale"
    assert f"encoder_scale='{scale}'" in found.cure
    assert not scale_readings(
        wrap(encode, oracle.decoder, 5, "gaussian", encoder_scale=scale, scale=oracle.noise), x, best
    )


def test_mean_and_log_variance_swapped(oracle) -> None:
    def encode(v: Tensor) -> tuple[Tensor, Tensor]:
        q = oracle.encode(v)
        return q.params["logvar"], q.mean

    x = oracle.simulate(30, seed=1)
    vae = wrap(encode, oracle.decoder, 5, "gaussian", scale=oracle.noise)
    (found,) = scale_readings(vae, x, optimize_local(oracle, x, seed=0).posterior)
    assert found.cure.startswith("return (mean, logvar)")


def test_the_audit_itself_warns_of_a_wrong_scale(oracle) -> None:
    vae = wrap(lambda v: (oracle.encode(v).mean, oracle.encode(v).params["logvar"] / 2), oracle.decoder, 5, "gaussian",
               scale=oracle.noise)  # fmt: skip
    result = audit(vae, oracle.simulate(30, seed=1), **(QUICK | {"certify": 0}))
    assert result.findings[0].kind == "scale"
    assert "log-sigma" in repr(result)


def pair(pixels: int = 20, latent: int = 3) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Linear(pixels, 2 * latent), nn.Linear(latent, pixels)


def test_probabilities_given_as_logits() -> None:
    x = torch.cat([torch.zeros(20, 15), torch.ones(20, 5)], 1)
    encoder, decoder = pair()
    with torch.no_grad():
        decoder.bias.copy_(8 * x[0] - 4)
    for decode in (lambda z: decoder(z).sigmoid(), lambda z: Bernoulli(logits=decoder(z).sigmoid())):
        (found,) = examine(wrap(encoder, decode, 3).eval(), x)
        assert found.kind == "probabilities"
        assert "probabilities=True" in found.cure
    assert examine(wrap(encoder, decoder, 3).eval(), x) == []


def test_logits_given_as_probabilities() -> None:
    encoder, decoder = pair()
    with pytest.raises(InputError, match="they are logits"):
        examine(wrap(encoder, decoder, 3, probabilities=True), binary())
    with pytest.raises(InputError, match=r"Bernoulli\(logits=\.\.\.\)"):
        examine(wrap(encoder, lambda z: Bernoulli(probs=decoder(z)), 3), binary())


def test_images_on_another_scale() -> None:
    encoder, decoder = pair()
    with pytest.raises(InputError, match=r"x >= 127\.5"):
        audit(wrap(encoder, decoder, 3), 255 * binary())
    with pytest.raises(InputError, match="x / 255"):
        audit(wrap(encoder, lambda z: Bernoulli(logits=decoder(z)), 3), 255 * binary())
    with pytest.raises(InputError, match="scaled as in training"):
        audit(wrap(encoder, decoder, 3, "gaussian"), 255 * binary())
    bounded = nn.Sequential(encoder, nn.Tanh())
    (found,) = examine(wrap(bounded, lambda z: decoder(z).sigmoid(), 3, "gaussian", scale=0.1).eval(), 255 * binary())
    assert found.kind == "pixel_range"
    assert "x / 255" in found.cure
    with pytest.raises(InputError, match="divide by 255"):
        audit(wrap(encoder, nn.Linear(3, 40), 3, "discretized_logistic"), 255 * binary())


@pytest.mark.parametrize(
    ("latent", "outputs", "options", "says"),
    [
        (4, 20, {}, "latent_dim=4"),
        (3, 19, {}, "19 numbers an image"),
        (3, 20, {"likelihood": "gaussian", "scale": None}, "need 40"),
        (3, 20, {"data_shape": (1, 4, 4)}, "says 16"),
        (3, 20, {"data_shape": (1, 4, 5)}, "encoder failed on input of shape"),
    ],
)
def test_sizes_that_do_not_match(latent: int, outputs: int, options: dict, says: str) -> None:
    vae = wrap(nn.Linear(20, 6), nn.Linear(3, outputs), latent, **options)
    with pytest.raises(InputError, match=says):
        audit(vae, binary())


def test_a_decoder_for_other_latents() -> None:
    with pytest.raises(InputError, match="does latent_dim=3 match the decoder"):
        audit(wrap(nn.Linear(20, 6), nn.Linear(5, 20), 3), binary())


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(0, 20), "holds no images"),
        (torch.zeros(20), "holds no images"),
        (np.array(["a", "b"]), "no array of numbers"),
        (binary().index_fill(1, torch.tensor([3]), torch.nan), "NaN"),
        (torch.zeros(3, 20, dtype=torch.complex64), "complex"),
    ],
    ids=["none", "one row", "text", "nan", "complex"],
)
def test_images_that_are_none(x: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        audit(wrap(*pair(), 3), x)


def test_an_encoder_that_depends_on_chance_or_on_the_batch() -> None:
    encoder, decoder = pair()
    drop = wrap(lambda v: encoder(nn.functional.dropout(v, training=True)), decoder, 3)
    assert [f.kind for f in examine(drop.eval(), binary())] == ["random_encoder"]
    batch = wrap(lambda v: encoder(v - v.mean(0)), decoder, 3)
    assert [f.kind for f in examine(batch.eval(), binary())] == ["batch_dependent"]


def test_encoders_that_return_nonsense() -> None:
    _, decoder = pair()
    for encode, says in (
        (lambda v: (v[:, :3],) * 3, "returns 3 values"),
        (lambda v: {"mean": v}, "returns a dict"),
        (lambda v: (v[:, :3], v[:, :3] + 1e4), "not usable for 20 of 20 images"),
        (lambda v: torch.distributions.Laplace(v[:, :3], 1.0), "Laplace"),
    ):
        with pytest.raises(InputError, match=says):
            audit(wrap(encode, decoder, 3), binary())


# ---- doubts and advice from numbers alone ---------------------------------------------------------------------------


def made_up(name: str, report: Audit, **changes: object) -> Part:
    fields = vars(report.parts[name]) | changes
    return Part(**fields)


def test_doubts_are_raised(report: Audit) -> None:
    number = int(report.parts["training"].table.index[0])
    part = made_up("training", report, khat=[0.9] * 40, missed={number: 2.5}, stuck={number: "stuck"})
    wide = Certificate(0.4, 0.01, 30, 160, 16)
    found = {f.kind: f for f in doubts({"training": part}, wide, 0.1, False)}
    assert set(found) == {"sandwich", "khat", "missed_modes", "stuck", "unchecked_modes"}
    assert "0.40 nats" in found["sandwich"].message
    assert f"images {number}; up to 2.5 nats" in found["missed_modes"].message
    assert "40 of 40 training images" in found["khat"].message


def test_overfitting_and_idle_latents_are_advised_on(report: Audit) -> None:
    table = report.parts["held-out"].table.copy()
    table[["amortization_gaussian", "inference"]] += 30.0
    table["log_p"] -= 50.0
    held = made_up("held-out", report, table=table, activity=[1.0, 0.001, 0.0, 1.0, 1.0])
    advice = {a.kind: a for a in advise({"training": report.parts["training"], "held-out": held}, "gaussian")}
    assert "2 of 5 latents are inactive" in advice["units"].text
    assert 20 < advice["encoder_overfits"].gain < 40
    assert 30 < advice["decoder_overfits"].gain < 70


# ---- the command ----------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 8), nn.ELU(), nn.Linear(8, 16))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z):
        return self.decoder(z)


def make_vae():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    np.save(tmp_path / "images.npy", binary(12, 16).numpy().astype(np.uint8).reshape(12, 4, 4))
    np.save(tmp_path / "grey.npy", (255 * binary(12, 16)).numpy().astype(np.uint8))
    return tmp_path


SHORT = ["--certify", "5", "--num-images", "8", "--no-modes"]


def test_the_command_audits_a_python_file(files: Path) -> None:
    words = [f"{files}/model.py:make_vae", "--data", f"{files}/images.npy", "--out", f"{files}/r.html",
             "--json", f"{files}/r.json", *SHORT]  # fmt: skip
    result = CliRunner().invoke(app, ["audit", *words])
    assert result.exit_code == 0, result.output
    assert "amortization gap" in result.output
    assert (files / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert len(Audit.from_json((files / "r.json").read_text()).parts["images"].table) == 8


def test_the_command_audits_weights_with_and_without_code(files: Path) -> None:
    torch.manual_seed(1)
    sizes = {"encoder.0": (16, 8), "encoder.2": (8, 4), "decoder.0": (2, 8), "decoder.2": (8, 16)}
    state = {}
    for name, (inputs, outputs) in sizes.items():
        layer = nn.Linear(inputs, outputs)
        state |= {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
    save_file(state, files / "w.safetensors")
    data = ["--data", f"{files}/grey.npy", "--threshold", "127.5", "--checkpoint", f"{files}/w.safetensors", *SHORT]
    outputs = []
    for more in ([], ["--activation", "elu"], [f"{files}/model.py:make_vae"]):
        result = CliRunner().invoke(app, ["audit", *more, *data])
        assert result.exit_code == 0, result.output
        outputs.append([line for line in result.output.splitlines() if line.startswith("L[q] (the ELBO)")])
    assert outputs[1] == outputs[2]
    assert "the weights do not say which activation" in CliRunner().invoke(app, ["audit", *data]).output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.py:make_vae", "--data", "grey.npy"], "not binary"),
        (["model.py:none", "--data", "images.npy"], "it has: Net, make_vae"),
        (["model.py", "--data", "images.npy"], "name the function"),
        (["--data", "images.npy"], "give a model"),
        (["nothing.py:make", "--data", "images.npy"], "there is no file"),
        (["--checkpoint", "images.npy", "--data", "images.npy"], "cannot be read|stays shut"),
    ],
)
def test_the_command_says_what_is_wrong(files: Path, words: list[str], says: str, monkeypatch) -> None:
    monkeypatch.chdir(files)
    result = CliRunner().invoke(app, ["audit", *words])
    assert result.exit_code == 2
    assert re.search(says, result.output), result.output


def test_an_audit_needs_no_extra(files: Path) -> None:
    """Everything but the base package's own dependencies is made unimportable."""
    code = f"""
    import sys

    names = set("pyarrow torchvision mlxtend papermill ipykernel yaml zuko seaborn jupyter_book sphinx snakemake "
                "great_tables pythae nbval hypothesis sklearn IPython".split())

    class Without:
        def __init__(self, finder):
            self.finder = finder

        def find_spec(self, name, path=None, target=None):
            return None if name.split(".")[0] in names else self.finder.find_spec(name, path, target)

    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    from vaegap.lab.cli import app
    app(["audit", "{files}/model.py:make_vae", "--data", "{files}/images.npy", "--out", "{files}/r.html",
         "--json", "{files}/r.json", "--certify", "5", "--num-images", "8"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (files / "r.html").is_file()


# ---- speed ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_six_layers_trained_elsewhere_are_audited_in_two_minutes(tmp_path: Path) -> None:
    """784-200-200-100 and 50-200-200-784 with ELU, in layers fc1 to fc6, on 100 images."""
    from vaegap.lab.training import Schedule, train

    images = load_images("mnist-5k", "train")
    vae = VAE((1, 28, 28), 50, seed=0)
    train(vae, images.x, Schedule(20, 50, lr=3e-3), seed=0, progress=False)
    linears = [m for part in (vae.features, vae.head, vae.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    state = {}
    for i, layer in enumerate(linears, 1):
        state |= {f"fc{i}.weight": layer.weight.detach(), f"fc{i}.bias": layer.bias.detach()}
    save_file(state, tmp_path / "elsewhere.safetensors")
    np.save(tmp_path / "images.npy", images.x.numpy())
    begin = time.process_time()
    result = CliRunner().invoke(app, ["audit", "--checkpoint", str(tmp_path / "elsewhere.safetensors"), "--data",
                                      str(tmp_path / "images.npy"), "--json", str(tmp_path / "r.json")])  # fmt: skip
    seconds = time.process_time() - begin
    assert result.exit_code == 0, result.output
    found = Audit.from_json((tmp_path / "r.json").read_text())
    assert found.certificate is not None
    assert found.certificate.width <= 0.1
    assert len(found.parts["images"].table) == 100
    assert seconds < 2 * 120  # of both cores together; wall time would depend on what else runs
