"""Runs: names, records, staleness, locks, and load-or-compute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from vaegap.errors import InputError
from vaegap.lab import experiments, files, locks, provenance, records, runs, schema, sources, verify
from vaegap.lab.errors import LockError, RecordError
from vaegap.lab.experiments import Context, Experiment, run

ROOT = Path(__file__).parents[1]
CALLS: list[dict[str, Any]] = []


def compute(ctx: Context) -> list[dict[str, Any]]:
    import vaegap.bounds  # noqa: F401  # what the numbers depend on

    CALLS.append(ctx.params)
    ctx.artifact("weights.bin").write_bytes(b"weights")
    value = float(ctx.params["seed"]) + 0.5
    rows: list[dict[str, Any]] = [{"metric": "elbo", "value": value, "mcse": 0.1, "unit": "nats", "bound": "lower"}]
    return rows + [{"metric": "elbo", "value": value + i, "unit": "nats", "image": i} for i in range(3)]


TOY = Experiment(
    "toy", compute, {"dataset": "mnist-5k", "seed": 0, "rate": 0.1, "hidden": [2]}, {"laptop": {"rate": 1.0}}
)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    monkeypatch.delenv("VAEGAP_RESULTS", raising=False)


@pytest.fixture
def copied_science(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's code that a test may change."""
    copy = tmp_path / "package"
    shutil.copytree(ROOT / "vaegap", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", copy)
    return copy


def mutate(package: Path) -> None:
    """Change what a public function computes."""
    path = package / "bounds.py"
    source = path.read_text()
    assert "def elbo(" in source
    path.write_text(source.replace("def elbo(", "_CHANGED = 1\n\n\ndef elbo(", 1))


# ---- names ----------------------------------------------------------------------------------------------------------
def test_names_depend_on_what_is_computed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    base = experiments.identify(TOY)
    assert base == experiments.identify(TOY, {"seed": 0, "hidden": (2,)}) == experiments.identify(TOY, {"seed": None})
    assert base == experiments.identify(TOY, {"seed": np.int64(0)})
    different = [
        experiments.identify(TOY, {"seed": 1}),
        experiments.identify(TOY, {"hidden": [3]}),
        experiments.identify(TOY, profile="laptop"),
        experiments.identify(TOY, {"dataset": "mnist"}),
        experiments.identify(replace(TOY, version=2)),
        experiments.identify(replace(TOY, name="other")),
    ]
    monkeypatch.setitem(sources.SOURCES, "mnist-5k", replace(sources.SOURCES["mnist-5k"], threshold=99))
    different.append(experiments.identify(TOY))
    assert len({base, *different}) == 8
    assert experiments.identify(TOY, {"rate": 1}) == experiments.identify(TOY, {"rate": 1.0})


@pytest.mark.parametrize(
    ("params", "profile", "needed"),
    [
        ({"sed": 1}, "quick", "no parameter 'sed'; it has dataset, seed"),
        ({"seed": "1"}, "quick", "seed must be int"),
        ({"seed": True}, "quick", "seed must be int"),
        ({}, "huge", "one of quick, laptop, paper"),
        ({"dataset": "mnits"}, "quick", "no data set 'mnits'"),
    ],
)
def test_wrong_parameters(params: dict[str, Any], profile: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=needed):
        run(TOY, params, profile, tmp_path)
    with pytest.raises(InputError, match="no experiment 'nosuch'"):
        run("nosuch", results=tmp_path)


# ---- load or compute ------------------------------------------------------------------------------------------------
def test_computes_once_then_loads(tmp_path: Path) -> None:
    first = run(TOY, {"seed": 4}, results=tmp_path)
    again = run(TOY, {"seed": 4}, results=tmp_path)
    assert len(CALLS) == 1
    pd.testing.assert_frame_equal(first.rows, again.rows)
    assert first.value("elbo") == 4.5
    assert first.value("elbo", image="2") == 6.5
    assert list(first.rows.columns) == list(records.COLUMNS)
    assert set(first.rows["seed"]) == {4}
    assert first.artifact("weights.bin").read_bytes() == b"weights"
    assert not list((tmp_path / "_work").glob("toy*")), "scratch folder is tidied away"
    info = json.loads((first.folder / "run.json").read_text())
    for name in ("commit", "dirty", "versions", "device", "threads", "dtype", "peak_memory_mb"):
        assert name in info["provenance"]
    assert {"science", "start", "wall_seconds", "schema_version", "params"} <= set(info)
    assert "vaegap.bounds" in info["science"]
    assert first.run_id in first.caption()
    run(TOY, {"seed": 5}, results=tmp_path)
    assert len(CALLS) == 2


def test_a_crash_of_the_computation_is_noted_and_can_be_repeated(tmp_path: Path) -> None:
    def breaks(ctx: Context) -> list[dict[str, Any]]:
        ctx.checkpoint().write_bytes(b"half-way")
        raise ZeroDivisionError("by zero")

    name = experiments.identify(TOY)
    assert runs.state(name, tmp_path) == "missing"
    with pytest.raises(ZeroDivisionError):
        run(TOY, results=tmp_path, compute=breaks)
    assert runs.state(name, tmp_path) == "failed"
    seen: list[bool] = []

    def resumes(ctx: Context) -> list[dict[str, Any]]:
        seen.extend([ctx.resumed, ctx.checkpoint().read_bytes() == b"half-way"])
        return compute(ctx)

    record = run(TOY, results=tmp_path, compute=resumes)
    assert seen == [True, True]
    assert record.info["attempts"] == 2
    assert runs.state(name, tmp_path) == "done"


def test_half_written_file_of_a_killed_attempt_is_not_kept(tmp_path: Path) -> None:
    def leaves(ctx: Context) -> list[dict[str, Any]]:
        ctx.artifact(".weights.bin.123.tmp").write_bytes(b"half")
        return compute(ctx)

    assert list(run(TOY, results=tmp_path, compute=leaves).info["artifacts"]) == ["weights.bin"]


def test_published_records_are_found_beside_own_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tmp_path / "project" / "results"
    name = run(TOY, results=published).run_id
    monkeypatch.setattr(runs, "find_root", lambda: tmp_path / "project")
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path / "own"))
    assert run(TOY).folder == published / name
    assert run(TOY, {"seed": 9}).folder.parent == tmp_path / "own"
    assert len(runs.list_records()) == 2
    assert len(CALLS) == 2


# ---- staleness ------------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("module", ["training", "zoo", "datasets", "protocols/decompositions", "protocols/two_latents"])
def test_changed_training_data_or_protocol_code_marks_records(
    module: str, copied_science: Path, tmp_path: Path
) -> None:
    def compute_with_lab(ctx: Context) -> list[dict[str, Any]]:
        import vaegap.lab.protocols.two_latents  # noqa: F401  # brings training, zoo, datasets and decompositions

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


# ---- reading and writing --------------------------------------------------------------------------------------------
def break_table(folder: Path) -> None:
    data = bytearray((folder / "record.parquet").read_bytes())
    data[40] ^= 255
    (folder / "record.parquet").write_bytes(bytes(data))


def truncate_table(folder: Path) -> None:
    (folder / "record.parquet").write_bytes((folder / "record.parquet").read_bytes()[:-100])


def foreign_table(folder: Path) -> None:
    pd.DataFrame({"metric": ["elbo"], "value": [1.0]}).to_parquet(folder / "record.parquet")


def rename_folder(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("toy-quick-000000000000"))
    shutil.rmtree(folder)


def rewrite(change: Callable[[dict[str, Any], pd.DataFrame], Any]) -> Callable[[Path], None]:
    """Damage that parquet's own checks do not see: `change` gets the description and the rows."""

    def damage(folder: Path) -> None:
        table = parquet.read_table(folder / "record.parquet")
        info, rows = json.loads(table.schema.metadata[b"vaegap"]), table.to_pandas()
        text = change(info, rows)
        text = text if isinstance(text, bytes) else json.dumps(info).encode()
        table = pa.Table.from_pandas(rows, preserve_index=False)
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"vaegap": text})
        parquet.write_table(table, folder / "record.parquet")

    return damage


def words(info: dict[str, Any], rows: pd.DataFrame) -> None:
    rows["value"] = rows["value"].astype(str) + "x"


def all_nan(info: dict[str, Any], rows: pd.DataFrame) -> None:
    rows["value"] = np.nan


@pytest.mark.parametrize(
    ("damage", "needed"),
    [
        (rewrite(lambda info, rows: json.dumps(info).encode()[:-20]), "description inside is damaged"),
        (rewrite(lambda info, rows: b"[]"), "description inside is damaged"),
        (rewrite(lambda info, rows: info.pop("run_id")), "no valid run_id"),
        (rewrite(lambda info, rows: info.pop("science")), "no valid science"),
        (rewrite(lambda info, rows: info.update(params=3)), "no valid params"),
        (rewrite(words), "values of the wrong type"),
        (rewrite(all_nan), "all its values are NaN"),
        (break_table, "cannot be read|not a valid record"),
        (truncate_table, "cannot be read"),
        (foreign_table, "not a record that vaegap wrote"),
        (rename_folder, "belongs to the run"),
    ],
)
def test_damaged_records_are_refused(damage: Callable[[Path], None], needed: str, tmp_path: Path) -> None:
    folder = run(TOY, results=tmp_path).folder
    damage(folder)
    (folder,) = tmp_path.glob("toy*")
    with pytest.raises(RecordError, match=needed) as caught:
        records.read(folder)
    assert "rm -r" in str(caught.value)
    assert runs.state(folder.name, tmp_path) == "invalid"


def test_record_of_a_newer_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(records, "SCHEMA_VERSION", 2)
    name = run(TOY, results=tmp_path).run_id
    monkeypatch.undo()
    with pytest.raises(RecordError, match=r"newer vaegap \(schema version 2.*git pull"):
        run(TOY, results=tmp_path)
    assert runs.state(name, tmp_path) == "invalid"
    assert (tmp_path / name / "record.parquet").exists(), "nothing is lost"


@pytest.mark.parametrize("text", ["[]", '{"ver', '{"table_token": 1}'])
def test_damaged_description_beside_the_table_is_no_loss(text: str, tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    (record.folder / "run.json").write_text(text)
    assert not records.read(record.folder).stale
    token = record.info["table_token"]
    (record.folder / "run.json").write_text(json.dumps({"table_token": token, "verified": ["x"]}))
    assert not records.read(record.folder).stale


@pytest.mark.parametrize("text", ["[]", '{"seconds": 3', '{"seconds": "x", "attempts": 4}'])
@pytest.mark.parametrize("profile", ["quick", "laptop"])
def test_damaged_notes_of_an_attempt_do_not_stop_the_next(text: str, profile: str, tmp_path: Path) -> None:
    def breaks(ctx: Context) -> list[dict[str, Any]]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(TOY, profile=profile, results=tmp_path, compute=breaks)
    (note,) = tmp_path.glob("_work/toy*/session.json")
    note.write_text(text)
    record = run(TOY, profile=profile, results=tmp_path)
    assert record.stale == (profile == "laptop"), "it may hold what unknown code computed"


def test_missing_description_is_no_loss(tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    (record.folder / "run.json").unlink()
    assert run(TOY, results=tmp_path).info["science"] == record.info["science"]
    assert len(CALLS) == 1


@pytest.mark.parametrize(
    ("rows", "needed"),
    [
        ([], "no rows"),
        ([{"metric": "elbo", "value": 1.0, "unit": "nats", "colour": "red"}], "no such columns: colour"),
        ([{"metric": "elbo", "value": "high", "unit": "nats"}], "wrong type"),
        ([{"metric": "elbo", "value": 1.0}], "unit is empty"),
        ([{"metric": "elbo", "value": 1.0, "unit": "nats", "bound": "sideways"}], "bound must be"),
        ([{"metric": "elbo", "value": v, "unit": "nats"} for v in (1.0, 2.0)], "two rows for"),
    ],
)
def test_invalid_rows_are_refused_on_writing(rows: list[dict[str, Any]], needed: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=needed):
        run(TOY, results=tmp_path, compute=lambda ctx: rows)
    assert not list(tmp_path.glob("toy*/record.parquet"))


def test_artifact_is_checked(tmp_path: Path) -> None:
    record = run(TOY, results=tmp_path)
    with pytest.raises(RecordError, match=r"kept no model\.safetensors; it has weights\.bin"):
        record.artifact("model.safetensors")
    (record.folder / "weights.bin").write_bytes(b"other")
    with pytest.raises(RecordError, match="not the file that the run wrote"):
        record.artifact("weights.bin")


def test_find_root_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "vaegap"\n')
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    assert files.find_root(tmp_path / "notebooks" / "deep") == tmp_path
    monkeypatch.chdir("/")
    assert files.find_root() == ROOT
    monkeypatch.setenv("VAEGAP_RESULTS", str(tmp_path / "mine"))
    assert files.find_results() == tmp_path / "mine"


def test_another_project_with_notebooks_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "vaegap-users-thesis"\ndependencies = ["vaegap"]\n')
    (tmp_path / "notebooks").mkdir()
    assert files.find_root(tmp_path / "notebooks") == ROOT


def git(folder: Path, *arguments: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    done = subprocess.run(["git", *name, "-C", folder, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder: Path) -> str:
    """A git repository with one commit; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("x")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "commit", "-q", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = repository(tmp_path / "thesis")
    monkeypatch.chdir(tmp_path / "thesis")
    assert provenance.collect()["commit"] != other, "the working folder's repository made nothing"
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "thesis" / ".venv" / "site-packages" / "vaegap")
    (tmp_path / "thesis" / ".venv" / "site-packages").mkdir(parents=True)
    found = provenance.collect()
    assert found["commit"] is None and found["dirty"] is None
    assert "not lie in its own git checkout" in found["commit_note"]
    own = repository(tmp_path / "checkout")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "checkout" / "vaegap")
    assert provenance.collect()["commit"] == own


# ---- locks ----------------------------------------------------------------------------------------------------------
def test_one_of_two_threads_computes(tmp_path: Path) -> None:
    def slow(ctx: Context) -> list[dict[str, Any]]:
        time.sleep(0.3)
        return compute(ctx)

    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(run(TOY, results=tmp_path, compute=slow).value("elbo")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0.5] * 4
    assert len(CALLS) == 1


def test_waiting_has_an_end(tmp_path: Path) -> None:
    name = experiments.identify(TOY)
    with locks.Lock(files.work_folder(tmp_path, name) / "lock"):
        assert runs.state(name, tmp_path) == "running"
        with pytest.raises(LockError, match=f"process {os.getpid()}"):
            run(TOY, results=tmp_path, wait=0.1)
    assert run(TOY, results=tmp_path, wait=0.1).value("elbo") == 0.5


def test_lock_of_a_dead_process_is_void(tmp_path: Path) -> None:
    path = tmp_path / "w" / "lock"
    code = "import os, pathlib, sys; from vaegap.lab import locks; locks.Lock(pathlib.Path(sys.argv[1])).acquire()"
    subprocess.run([sys.executable, "-c", f"{code}; os._exit(1)", str(path)], cwd=ROOT, check=False)
    assert path.exists()
    assert locks.holder(path) is None
    lock = locks.Lock(path)
    assert lock.try_acquire()
    lock.check()
    assert not locks.Lock(path).try_acquire()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (300.0, True), (700.0, False)])
def test_lock_of_another_host_counts_while_it_is_touched(tmp_path: Path, age: float, alive: bool) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "x", "since": 0.0, "token": "t"}))
    os.utime(path, (time.time() - age,) * 2)
    assert (locks.holder(path) is not None) is alive
    assert locks.Lock(path).try_acquire() is not alive


def test_lock_that_was_taken_over_stops_its_former_holder(tmp_path: Path) -> None:
    lock = locks.Lock(tmp_path / "lock")
    lock.acquire()
    (tmp_path / "lock").unlink()
    other = locks.Lock(tmp_path / "lock")
    other.acquire()
    with pytest.raises(LockError, match="took this run over"):
        lock.check()
    lock.release()
    other.check()
    other.release()


def test_half_written_lock_is_respected_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    assert locks.holder(path) is not None
    os.utime(path, (time.time() - 60,) * 2)
    assert locks.holder(path) is None
