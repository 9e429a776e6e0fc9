"""The claims ledger: verdicts follow the records, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from vaegap.errors import InputError
from vaegap.lab import claims, experiments
from vaegap.lab.claims import VERDICTS, Check, evaluate, judge, ledger, read_claims
from vaegap.lab.protocols.decompositions import _rows
from vaegap.lab.records import Record

SHARE = "A.amortization / A.inference"


def record(folder: Path, approximation: float, amortization: float, spread: float = 0.01, **params: Any) -> Record:
    """A decomposition with these mean gaps, written as a run writes it."""
    generator = torch.Generator().manual_seed(params.get("seed", 0))
    own = params.get("family", "gaussian")

    def column(mean: float) -> dict[str, torch.Tensor]:
        return {"value": mean + spread * torch.randn(40, generator=generator, dtype=torch.float64)}

    def compute(ctx: experiments.Context) -> list[dict[str, Any]]:
        log_p = column(-90.0)["value"]
        star = log_p - column(approximation)["value"]
        values = {"log_p": log_p, f"L_star_{own}": star, "L_q": star - column(amortization)["value"]}
        columns = values | {f"{k}_mcse": torch.full((40,), 0.01, dtype=torch.float64) for k in values}
        for key in ("ais", "iwae"):
            columns |= {key: log_p, f"{key}_mcse": columns["log_p_mcse"]}
        columns |= {"khat": torch.zeros(40), "missed": torch.zeros(40), "wide": torch.zeros(40)}
        return [
            *_rows(columns, split="train", model=own),
            {"split": "train", "metric": "active_units", "value": 20.0, "unit": "units"},
            {"split": "simulated", "metric": "bdmc_width", "value": 0.01, "mcse": 0.01, "unit": "nats"},
        ]

    return experiments.run("gap_decomposition", params, "laptop", folder, compute=compute, refresh=True)


def check(value: str = SHARE, reproduced: tuple[float, float] = (0.4, 0.6), **of: Any) -> Check:
    return Check("toy", value, of or {"A": {}}, reproduced, (0.3, 0.7))


@pytest.mark.parametrize(
    ("amortization", "verdict"),
    [(1.0, "reproduced"), (1.8, "same direction"), (4.0, "not reproduced"), (7 / 3, "undecided at this scale")],
)
def test_the_verdict_follows_the_record(tmp_path: Path, amortization: float, verdict: str) -> None:
    made = record(tmp_path, 1.0, amortization, spread=0.3 if verdict.startswith("undecided") else 0.01)
    found = judge(check(), [made])
    assert found.verdict == verdict and found.run_ids == [made.run_id]
    assert found.value == pytest.approx(amortization / (1 + amortization), abs=0.05)
    assert found.images[0] < found.value < found.images[1] and found.seeds is None


def test_the_published_ledger_changes_when_a_record_does(tmp_path: Path) -> None:
    """C2 of claims.yaml on a run of its own model: equal gaps, then the same run with others."""

    def c2() -> str:
        table = ledger(results=tmp_path)
        row = table[(table["claim"] == "C2") & (table["check"] == "MNIST, trained with q_FFG")].iloc[0]
        return str(row["verdict"])

    assert c2() == "undecided at this scale", "without records nothing is claimed"
    made = record(tmp_path, 1.0, 1.0, dataset="mnist")
    assert c2() == "reproduced"
    _replace(made, tmp_path, 0.2, 3.0)
    assert c2() == "not reproduced"


def test_some_claims_are_judged_as_among_all(tmp_path: Path) -> None:
    record(tmp_path, 1.0, 1.0, dataset="mnist")
    whole = ledger(results=tmp_path)
    part = ledger(results=tmp_path, only=["C7", "C2"])
    pd.testing.assert_frame_equal(part, whole[whole["claim"].isin(["C2", "C7"])].reset_index(drop=True))
    assert set(part["claim"]) == {"C2", "C7"}


def _replace(made: Record, folder: Path, approximation: float, amortization: float) -> None:
    for path in sorted((folder / made.run_id).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / made.run_id).rmdir()
    assert record(folder, approximation, amortization, dataset="mnist").run_id == made.run_id


def test_no_verdict_is_typed() -> None:
    for claim in read_claims():
        assert not set(claim) & {"verdict", "result", "value"}, claim["id"]
    text = (claims.find_root() / "claims.yaml").read_text(encoding="utf-8")
    assert not any(f": {verdict}" in text for verdict in VERDICTS)


def test_seeds_widen_what_images_leave_narrow(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0 + 0.5 * seed, seed=seed) for seed in range(3)]
    one, all_ = judge(check(), made[:1]), judge(check(), made)
    assert one.verdict == "reproduced" and one.num_seeds == 1
    assert all_.num_seeds == 3 and all_.seeds is not None
    shares = torch.tensor([0.5, 0.6, 2 / 3])
    half = 4.303 * shares.std().item() / math.sqrt(3)
    assert all_.seeds[1] - all_.seeds[0] == pytest.approx(2 * half, rel=0.05)
    assert all_.verdict == "undecided at this scale"


def test_as_many_is_not_fewer(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, anneal=anneal) for anneal in (True, False)]
    fewer = check("B.active_units - A.active_units", (-math.inf, 0.0), A={}, B={"anneal": False})
    assert judge(fewer, made).verdict != "reproduced"


def test_a_width_has_its_own_error(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0)]  # width 0.01 ± 0.01
    found = judge(check("A.bdmc_width", (-0.5, 0.5)), made)
    assert found.images == pytest.approx((0.01 - 0.0196, 0.01 + 0.0196), abs=0.002)
    assert judge(check("A.bdmc_width", (0.0, 0.5)), made).verdict != "reproduced"


def test_only_records_of_the_model_count(tmp_path: Path) -> None:
    made = [record(tmp_path, 1.0, 1.0, encoder=[500, 500]), record(tmp_path, 0.2, 3.0)]
    assert judge(check(A={"encoder": [500, 500]}), made).verdict == "reproduced"
    assert judge(check(), made).verdict == "not reproduced"
    assert judge(check(A={"family": "aux_flow"}), made).num_seeds == 0


def test_unverified_values_are_labelled() -> None:
    row = {"num_seeds": 1, "value": 0.5, "images_low": 0.4, "images_high": 0.6, "seeds_low": math.nan}
    assert "unverified" in claims.describe({**row, "published": 0.48, "published_verified": False})
    assert "unverified" not in claims.describe({**row, "published": 0.48, "published_verified": True})


def test_expressions_are_arithmetic_only() -> None:
    models = {"A": {"x": 2.0}, "B": {"x": 3.0}}
    assert evaluate("-abs(A.x - B.x) * 2 + max(A.x, B.x) / 3", models) == -1
    for wrong in ("__import__('os')", "A.x.real", "A.x if 1 else 2", "open(A.x)", "A.y", "'text'"):
        with pytest.raises(InputError):
            evaluate(wrong, models)


@pytest.mark.parametrize("change", ["value: A.x", "reproduced: [1.0, 0.0]", "reproduced: 3"])
def test_malformed_claims_are_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(
        f"- id: C99\n  section: x\n  claim: y\n  checks:\n    - name: n\n      {change}\n", encoding="utf-8"
    )
    with pytest.raises(InputError, match="C99"):
        read_claims(path)
