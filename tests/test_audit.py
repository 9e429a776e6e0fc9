"""An audit tells the truth about models whose truth is known, and says what is wrong with the others."""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from vaegap import Audit, InputError, audit, linear_gaussian_vae, wrap
from vaegap.certifying import certify_evidence
from vaegap.report import facts

QUICK = {"certify": 10, "num_samples": 60, "num_images": 16, "check_modes": False}


# ---- a model whose gaps are known exactly ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle():
    return linear_gaussian_vae(encoder_error=0.3)


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
    for wrong in ("[]", "{", '{"schema": 0}', '{"schema": 1}', written.replace('"khat"', '"k"', 1)):
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
    assert max(map(len, text.splitlines())) <= 80
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


def test_what_was_not_looked_for_is_not_reported_as_none(oracle) -> None:
    result = audit(oracle, oracle.simulate(8, seed=1), certify=0, num_samples=50, check_modes=False)
    assert dict(facts(result))["images with missed modes"] == "?"
    assert dict(facts(result))["log p̂ from"] in ("annealing from q*", "importance sampling with q*")
    assert "check_modes=True" in result.findings[-1].cure


def test_the_width_is_measured_on_other_images_than_those_that_chose_the_temperatures(oracle, monkeypatch) -> None:
    """A search that stops at the first narrow sandwich would report its own luck."""
    seen: list[tuple[int, int]] = []

    def lucky(model, num, chains, steps, fit, *, seed, **_):
        seen.append((steps, seed))
        return SimpleNamespace(width=(0.3, 0.05, 0.2)[len(seen) - 1], mcse=0.01)

    monkeypatch.setattr("vaegap.certifying.bdmc", lucky)
    steps, certificate = certify_evidence(oracle, 10, 0.1, None, 0, False)
    assert [s for s, _ in seen] == [20, 40, 40]
    assert seen[0][1] == seen[1][1] != seen[2][1]
    assert (steps, certificate.width) == (40, 0.2)
