"""An audit tells the truth about models whose truth is known, and says what is wrong with the others."""

from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from vaegap import Audit, InputError, audit, gaps, linear_gaussian_vae, wrap
from vaegap.advice import advise
from vaegap.audited import Certificate, Part
from vaegap.bounds import Bound
from vaegap.certifying import certify_evidence
from vaegap.doubts import doubts
from vaegap.report import facts, interval
from vaegap.settling import khats, settled

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


# ---- doubts and advice from numbers alone ---------------------------------------------------------------------------


def made_up(name: str, report: Audit, **changes: object) -> Part:
    fields = vars(report.parts[name]) | changes
    return Part(**fields)


def test_doubts_are_raised(report: Audit) -> None:
    number = int(report.parts["training"].table.index[0])
    changes = {"khat": [0.9] * 40, "missed": {number: 2.5}, "stuck": {number: "stuck"}, "source": "prior"}
    part = made_up("training", report, **changes)
    wide = Certificate(0.4, 0.01, 30, 160, 16)
    found = {f.kind: f for f in doubts({"training": part}, wide, 0.1, False)}
    assert set(found) == {"sandwich", "khat", "missed_modes", "wide_evidence", "stuck", "unchecked_modes"}
    assert "0.40 nats" in found["sandwich"].message
    assert f"images {number}; up to 2.5 nats" in found["missed_modes"].message
    assert "40 of 40 training images" in found["khat"].message
    assert "rests on annealing" in found["khat"].cure
    (weighted, *_) = doubts({"images": made_up("training", report, **(changes | {"source": "iwae"}))}, None, 0.1, True)
    assert "rests on it all the same" in weighted.cure
    assert "annealing that starts from the prior" in found["wide_evidence"].message


def test_overfitting_and_idle_latents_are_advised_on(report: Audit) -> None:
    table = report.parts["held-out"].table.copy()
    table[["amortization_gaussian", "inference"]] += 30.0
    table["log_p"] -= 50.0
    held = made_up("held-out", report, table=table, activity=[1.0, 0.001, 0.0, 1.0, 1.0],
                   activity_best=[1.0, 0.0, 0.002, 1.0, 1.0])  # fmt: skip
    advice = {a.kind: a for a in advise({"training": report.parts["training"], "held-out": held}, "gaussian")}
    assert "2 of 5 latents are inactive" in advice["units"].text
    assert 20 < advice["encoder_overfits"].gain < 40
    assert 30 < advice["decoder_overfits"].gain < 70


def test_few_images_say_nothing_about_inactive_latents(report: Audit) -> None:
    part = report.parts["training"]
    few = Part(**(vars(part) | {"table": part.table[:19], "errors": part.errors[:19], "activity": [0.0] * 5}))
    assert "units" not in {a.kind for a in advise({"images": few}, "gaussian")}
    shown = dict(facts(replace(report, parts={"images": few})))
    assert "too few images to tell" in shown["active units"]


def test_what_was_not_looked_for_is_not_reported_as_none(oracle) -> None:
    result = audit(oracle, oracle.simulate(8, seed=1), certify=0, num_samples=50, check_modes=False)
    assert dict(facts(result))["images with missed modes"] == "?"
    assert dict(facts(result))["log p̂ from"] in ("annealing from q*", "importance sampling with q*")
    assert "check_modes=True" in result.findings[-1].cure


def test_mass_that_every_q_misses_is_told_as_such() -> None:
    """A decoder that sees only z²: each posterior has two modes, and every Gaussian fits one of them."""
    prior = Independent(Normal(torch.zeros(1), torch.full((1,), 1.5)), 1)
    vae = wrap(
        lambda v: (torch.full((len(v), 1), 1.2), torch.full((len(v), 1), -3.0)),
        lambda z: 2 * z.square().expand(-1, 4),
        1,
        "gaussian",
        prior=prior,
        scale=0.3,
    )
    x = 2 * 1.44 + 0.3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    result = audit(vae, x, certify=0, num_samples=100)
    found = {f.kind: f for f in result.findings}
    assert result.parts["images"].source == "prior"
    assert "annealing that starts from the prior" in found["wide_evidence"].message
    assert result.settings["check_modes"] is True
    assert dict(facts(result))["images with missed modes"] != "?"
    assert Audit.from_json(result.to_json()).parts["images"].source == "prior"


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


# ---- advice never contradicts the table -----------------------------------------------------------------------------


def test_noise_of_the_wide_base_is_no_missed_mass() -> None:
    """The exact posterior as q: whichever estimate of log p̂ is a hair above the others, no Gaussian misses anything."""
    vae = linear_gaussian_vae(encoder_error=0.0)

    def encode(x: Tensor) -> MultivariateNormal:
        mean, cov = vae.posterior_moments(x)
        return MultivariateNormal(mean.float(), cov.float())

    x = vae.simulate(30, seed=1)
    model = wrap(encode, vae.decoder, 5, "gaussian", scale=vae.noise)
    result = gaps(model, x, num_samples=60, certify=0, check_modes=True)
    lucky = result.evidence.wide["prior"]
    narrow = max(result.evidence.ais.mean, result.evidence.iwae.mean)
    noise = 0.05 * torch.randn(30, generator=torch.Generator().manual_seed(0))
    for shift, kept in ((0.005, False), (1.0, True)):
        values = result.evidence.ais.per_image + (narrow - result.evidence.ais.mean) + noise - noise.mean() + shift
        bound = replace(lucky, per_image=values)
        evidence = replace(result.evidence, bound=bound, source="prior", wide={"prior": bound})
        mended, beyond = settled(replace(result, evidence=evidence))
        assert (mended.evidence.source == "prior") == kept
        assert math.isclose(beyond, shift if kept else 0.0, abs_tol=1e-4)
        if not kept:
            assert math.isclose(mended.table["log_p"].mean(), narrow, abs_tol=1e-4)
            assert mended.identity_error < 1e-9
    report = audit(model, x, certify=0, num_samples=60)
    assert not [f for f in report.findings if f.kind == "wide_evidence"]
    assert [a.kind for a in report.advice] == ["enough"]


def test_one_sample_that_carries_the_sum_has_no_good_tail() -> None:
    bound = Bound(torch.zeros(3), torch.zeros(3), "lower", 1000, torch.tensor([1.0, 1.0, 900.0]),
                  torch.tensor([0.05, 3.0, 0.05]))  # fmt: skip
    assert khats(bound) == pytest.approx([math.inf, 3.0, 0.05])


def test_a_gap_within_its_error_gets_no_advice(report: Audit) -> None:
    part = report.parts["held-out"]
    table, errors = part.table.copy(), part.errors.copy()
    errors["amortization_gaussian"] = 40.0
    noisy = made_up("held-out", report, errors=errors, refined=None)
    assert {a.kind for a in advise({"held-out": noisy}, "gaussian")} == {"family"}
    errors["approximation_gaussian"] = 40.0
    noisy = made_up("held-out", report, errors=errors, refined=None)
    (only,) = advise({"images": noisy}, "gaussian")
    assert only.kind == "unclear" and "audit more images" in only.text
    table["inference"] = table["approximation_gaussian"] = 0.04
    table["amortization_gaussian"] = 0.0
    (only,) = advise({"images": made_up("held-out", report, table=table, refined=None)}, "gaussian")
    assert only.text.startswith("at most 0.04 nats are lost")


def test_a_wide_sandwich_loosens_at_most(report: Audit) -> None:
    wide = Certificate(0.62, 0.01, 30, 160, 16)
    advice = {a.kind: a for a in advise(report.parts, "gaussian", wide)}
    assert "and up to 0.62 more" in advice["family"].text
    table = report.parts["held-out"].table.copy()
    table[["inference", "approximation_gaussian", "amortization_gaussian"]] = 0.0
    small = {"images": made_up("held-out", report, table=table, refined=None)}
    assert [a.kind for a in advise(small, "gaussian")] == ["enough"]
    assert [a.kind for a in advise(small, "gaussian", wide)] == ["unclear"]


def test_a_larger_encoder_is_not_the_cure_of_an_overfitted_one(report: Audit) -> None:
    table = report.parts["held-out"].table.copy()
    table[["amortization_gaussian", "inference"]] += 30.0
    held = made_up("held-out", report, table=table)
    parts = {"training": report.parts["training"], "held-out": held}
    encoder = next(a for a in advise(parts, "gaussian") if a.kind == "encoder")
    learned = parts["training"].table["amortization_gaussian"].mean()
    assert encoder.gain == held.summary.loc["amortization_gaussian", "mean"]
    assert f"but only {learned:.1f} on training images" in encoder.text
    assert "a larger encoder alone would not mend" in encoder.text


@pytest.mark.parametrize(
    ("best", "kinds", "says"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], {"blind"}, "5 of 5 latents are ignored by the encoder"),
        ([1.0, 1.0, 0.0, 0.0, 0.0], {"blind", "units"}, "3 of 5 latents are inactive"),
        ([0.0, 0.0, 0.0, 0.0, 0.0], {"units"}, "none of 5 latents is active"),
    ],
)
def test_latents_are_inactive_only_if_the_best_q_has_no_use_for_them(report, best, kinds: set[str], says: str) -> None:
    part = made_up("training", report, activity=[0.0] * 5, activity_best=best)
    found = [a for a in advise({"images": part}, "gaussian") if a.kind in ("units", "blind")]
    assert {a.kind for a in found} == kinds
    assert any(a.text.startswith(says) for a in found)


def test_bounds_in_the_wrong_order_are_a_warning(report: Audit) -> None:
    table = report.parts["training"].table.copy()
    table["approximation_full_gaussian"] -= 0.8
    (found,) = doubts({"images": made_up("training", report, table=table)}, None, 0.1, True)
    assert found.kind == "order" and "full-covariance Gaussian" in found.message
    assert doubts({"images": report.parts["training"]}, None, 0.1, True) == []


def test_gains_below_one_nat_are_printed_as_the_table_prints_them(report: Audit) -> None:
    table = report.parts["held-out"].table.copy()
    for name, value in {"inference": 0.27, "approximation_gaussian": 0.2535, "amortization_gaussian": 0.0165}.items():
        table[name] = value
    part = made_up("held-out", report, table=table, errors=0.0 * report.parts["held-out"].errors, refined=None)
    text = repr(replace(report, parts={"images": part}, advice=advise({"images": part}, "gaussian")))
    assert "0.25 of 0.27 nats are approximation" in " ".join(text.split())
    assert "[0.00]" not in text.split("Advice")[1]
    assert "-0.00" not in text
    assert interval({"mean": -22476.9, "ci_low": -23553.7, "ci_high": -21460.0}) == "-22477 [-23554, -21460]"


def test_the_table_fits_a_terminal_also_where_the_numbers_are_long(report: Audit) -> None:
    parts = {n: Part(**(vars(p) | {"table": p.table * 40})) for n, p in report.parts.items()}
    shown = repr(replace(report, parts=parts))
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{parts['training'].summary.loc['inference', 'mean']:.0f}" in shown
