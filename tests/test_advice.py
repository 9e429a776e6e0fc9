"""Doubts and advice follow from an audit's numbers, and never contradict its table."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from vaegap import Audit, audit, gaps, linear_gaussian_vae, wrap
from vaegap.advice import advise
from vaegap.audited import Certificate, Part
from vaegap.doubts import doubts
from vaegap.report import facts, interval
from vaegap.settling import settled


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
    assert not re.search(r"-0\.00(?!\d)", text), "a zero has no sign"
    assert interval({"mean": -22476.9, "ci_low": -23553.7, "ci_high": -21460.0}) == "-22477 [-23554, -21460]"


def test_the_table_fits_a_terminal_also_where_the_numbers_are_long(report: Audit) -> None:
    parts = {n: Part(**(vars(p) | {"table": p.table * 40})) for n, p in report.parts.items()}
    shown = repr(replace(report, parts=parts))
    assert max(map(len, shown.splitlines())) <= 80
    assert f"{parts['training'].summary.loc['inference', 'mean']:.0f}" in shown
