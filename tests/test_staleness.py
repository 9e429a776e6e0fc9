"""Which code makes records stale, and how `vaegap verify` clears the mark."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import CALLS, ROOT, TOY, compute, mutate

from vaegap.lab import experiments, provenance, records, runs, verify
from vaegap.lab.experiments import Context, run

pytestmark = pytest.mark.usefixtures("fresh_calls")


def test_digest_sees_code_but_not_comments(copied_science: Path) -> None:
    before = provenance.science_modules(copied_science)
    assert before == provenance.science_modules()
    lab = {name for name in before if name.startswith("vaegap.lab")}
    assert {"vaegap.lab.training", "vaegap.lab.zoo", "vaegap.lab.datasets"} < lab
    assert not lab.intersection({"vaegap.lab.cli", "vaegap.lab.records", "vaegap.lab.protocols.catalog"})
    path = copied_science / "bounds.py"
    lines = path.read_text().replace('    """', '    """Reworded. ', 1)
    path.write_text("# a comment\n\n" + lines.replace("\n\n\n", "\n\n\n\n"))
    assert provenance.science_modules(copied_science) == before
    mutate(copied_science)
    assert provenance.changed_modules(before, provenance.science_modules(copied_science)) == ["vaegap.bounds"]


def test_changed_function_makes_quick_recompute_and_marks_published(copied_science: Path, tmp_path: Path) -> None:
    quick, laptop = (run(TOY, {}, profile, tmp_path / "r") for profile in ("quick", "laptop"))
    assert len(CALLS) == 2
    mutate(copied_science)
    assert runs.state(quick.run_id, tmp_path / "r") == runs.state(laptop.run_id, tmp_path / "r") == "stale"
    shown = run(TOY, {}, "laptop", tmp_path / "r")
    assert len(CALLS) == 2
    assert shown.stale
    assert "code changed since: vaegap.bounds" in shown.caption()
    again = run(TOY, {}, "quick", tmp_path / "r")
    assert len(CALLS) == 3
    assert not again.stale
    assert run(TOY, {}, "laptop", tmp_path / "r", refresh=True).stale is False
    assert len(CALLS) == 4


@pytest.mark.parametrize(
    "module",
    ["training", "gradients", "zoo", "datasets", "protocols/measuring", "protocols/models", "protocols/two_latents"],
)
def test_changed_training_data_or_protocol_code_marks_records(
    module: str, copied_science: Path, tmp_path: Path
) -> None:
    def compute_with_lab(ctx: Context) -> list[dict[str, Any]]:
        import_module("vaegap.lab.protocols.two_latents")  # which brings all of them

        return compute(ctx)

    record = run(TOY, {}, "laptop", tmp_path / "r", compute=compute_with_lab)
    path = copied_science / "lab" / f"{module}.py"
    path.write_text(path.read_text() + "\n_CHANGED = 1\n")
    found = runs.find(record.run_id, tmp_path / "r")
    assert found is not None
    assert found.changed == [f"vaegap.lab.{module.replace('/', '.')}"]


def test_training_modules_are_all_that_a_training_loads() -> None:
    code = "import sys, vaegap.lab.zoo; print(*[m for m in sys.modules if m.startswith('vaegap')])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(out.split()) & set(provenance.science_modules()) <= set(provenance.training_modules())


def test_modules_that_no_longer_count_do_not_make_stale() -> None:
    assert provenance.changed_modules({"vaegap.progress": "of old", "vaegap.gone": "x"}) == ["vaegap.gone"]


def test_code_that_was_not_loaded_does_not_make_stale(copied_science: Path, tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path / "r")
    (copied_science / "new_module.py").write_text("x = 1\n")
    found = runs.find(record.run_id, tmp_path / "r")
    assert found is not None
    assert not found.stale


@pytest.mark.parametrize(("shift", "state"), [(0.0, "agrees"), (0.2, "agrees"), (2.0, "differs"), (np.nan, "differs")])
def test_verify_clears_the_mark_where_numbers_agree(
    copied_science: Path, tmp_path: Path, shift: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recompute(ctx: Context, record: records.Record) -> list[dict[str, Any]]:
        rows = [{"metric": "elbo", "value": record.value("elbo") + shift, "mcse": 0.1, "unit": "nats"}]
        return rows

    monkeypatch.setitem(experiments._registry, "toy", replace(TOY, verify=recompute))
    record = run(TOY, {}, "laptop", tmp_path / "r")
    assert list(verify.verify(results=tmp_path / "r")) == []  # nothing is stale
    mutate(copied_science)
    verdicts = list(verify.verify(results=tmp_path / "r"))
    assert [v.state for v in verdicts] == [state], verdicts
    assert runs.state(record.run_id, tmp_path / "r") == ("done" if state == "agrees" else "stale")
    mutate_again = copied_science / "bounds.py"
    mutate_again.write_text(mutate_again.read_text() + "\n_AGAIN = 2\n")
    assert runs.state(record.run_id, tmp_path / "r") == "stale"


def test_one_damaged_record_does_not_keep_the_others_from_being_verified(
    copied_science: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recompute(ctx: Context, record: records.Record) -> list[dict[str, Any]]:
        return [{"metric": "elbo", "value": record.value("elbo"), "mcse": 0.1, "unit": "nats"}]

    monkeypatch.setitem(experiments._registry, "toy", replace(TOY, verify=recompute))
    damaged, unwritable, good = (run(TOY, {"seed": seed}, "laptop", tmp_path / "r") for seed in range(3))
    (damaged.folder / "record.parquet").write_bytes(b"x")
    (unwritable.folder / "run.json").unlink()
    (unwritable.folder / "run.json").mkdir()  # its mark cannot be cleared, as on a read-only disk
    mutate(copied_science)
    verdicts = {v.run_id: v for v in verify.verify(results=tmp_path / "r")}
    assert {name: v.state for name, v in verdicts.items()} == {
        damaged.run_id: "cannot",
        unwritable.run_id: "cannot",
        good.run_id: "agrees",
    }
    assert "cannot be read" in verdicts[damaged.run_id].reason
    assert "cannot write the record's description" in verdicts[unwritable.run_id].reason
