"""The commands run, status and claims, with real papermill where it matters."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_lab
from grid_lab import ROOT, command, entry, write_grid
from typer.testing import CliRunner

from vaegap.lab import cli, experiments, provenance, runs


def test_grid_by_papermill_from_the_command_line(project: Path) -> None:
    pytest.importorskip("papermill")
    path = write_grid(
        project,
        good=entry(parameters={"seed": [1]}),
        bad=entry(parameters={"fail_at": 1}),
    )
    first = command("run", str(path), "--profile", "quick", "--jobs", "2")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 done, 1 failed" in first.stdout
    (failure,) = (project / "results/_failed").glob("bad-*")
    assert "RuntimeError: told to fail at step 1" in (failure / "error.txt").read_text()
    assert json.loads((failure / "notebook.ipynb").read_text())["cells"]
    assert list((project / "results/_work/notebooks").glob("good-*.ipynb"))

    started = time.monotonic()
    listed = command("status", "--grid", str(path))
    assert time.monotonic() - started < 10
    assert "done     good seed=1" in listed.stdout, listed.stdout + listed.stderr
    assert "failed   bad fail_at=1  [RuntimeError: told to fail" in listed.stdout
    assert "time left" in listed.stdout
    counts = json.loads(command("status", "--grid", str(path), "--json").stdout)["counts"]
    assert counts == {"done": 1, "failed": 1}


def test_one_notebook_from_the_command_line(project: Path) -> None:
    pytest.importorskip("papermill")
    path = str(project / "notebooks/toy.ipynb")
    wrong = command("run", path, "-p", "sede", "1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no parameter 'sede'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "must be int" in command("run", path, "-p", "seed", "abc").stderr
    done = command("run", path, "-p", "seed", "6", "--parameter", "steps=2", "-o", str(project / "out.ipynb"), cwd="/")
    assert done.returncode == 0, done.stderr
    assert runs.find(experiments.identify("toysteps", {"seed": 6, "steps": 2})) is not None
    assert (project / "out.ipynb").exists()
    assert json.loads((project / "notebooks/toy.ipynb").read_text())["cells"][1]["outputs"] == []


@pytest.mark.parametrize("option", [["--jobs", "2"], ["--only", "a"]])
def test_options_of_grids_are_refused_for_notebooks(project: Path, option: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["run", str(project / "notebooks/toy.ipynb"), *option])
    assert done.exit_code == 2
    assert "--jobs and --only are for a grid file" in " ".join(done.output.replace("│", " ").split())


def test_dry_run_and_refresh_of_a_notebook(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[str | None] = []
    monkeypatch.setattr(
        "vaegap.lab.notebook.execute", lambda *arguments: executed.append(os.environ.get("VAEGAP_REFRESH"))
    )
    monkeypatch.setenv("VAEGAP_REFRESH", "0")
    call = ["run", str(project / "notebooks/toy.ipynb"), "-p", "seed", "6"]
    said = CliRunner().invoke(cli.app, [*call, "--dry-run"])
    assert said.exit_code == 0 and executed == []
    assert "would run" in said.output and "seed=6, profile='quick'" in said.output
    assert CliRunner().invoke(cli.app, [*call, "--dry-run", "-p", "sede", "6"]).exit_code == 2
    assert not (project / "results").exists()
    CliRunner().invoke(cli.app, call)
    CliRunner().invoke(cli.app, [*call, "--refresh"])
    assert executed == ["0", "1"]


def test_status_and_run_look_into_the_same_folders(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments.run(toy_lab.TOY, profile="laptop", results=project / "results")  # a published one
    path = write_grid(project, a=entry(profiles={"laptop": None}))
    rest = [str(path), "--profile", "laptop", "--results", str(tmp_path / "own")]
    assert "1 of 1 jobs are done" in CliRunner().invoke(cli.app, ["run", *rest]).output
    monkeypatch.setenv("VAEGAP_RESULTS", str(project / "nothing"))
    assert "1 jobs: 1 done" in CliRunner().invoke(cli.app, ["status", "--grid", *rest]).output


@pytest.mark.parametrize("text", ["[]", '{"err', "{}", '{"error": ""}'])
def test_status_reads_a_damaged_note_on_a_failure(project: Path, text: str) -> None:
    with pytest.raises(RuntimeError):
        experiments.run(toy_lab.TOY, {"fail_at": 1}, results=project / "results")
    (note,) = (project / "results/_work").glob("toy*/failed.json")
    note.write_text(text)
    path = write_grid(project, a=entry(parameters={"fail_at": 1}))
    done = CliRunner().invoke(cli.app, ["status", "--grid", str(path)])
    assert done.exit_code == 0, done.output
    assert "cannot be read" in done.output


def test_status_says_what_is_wrong_with_an_invalid_record(project: Path) -> None:
    record = experiments.run(toy_lab.TOY, results=project / "results")
    (record.folder / "record.parquet").write_bytes(b"x")
    other = str(project / "results")
    done = CliRunner().invoke(cli.app, ["status", "--grid", str(write_grid(project, a=entry())), "--results", other])
    assert "invalid  a" in done.output and "record.parquet: cannot be read" in done.output
    assert f"--results {other}" in done.output, "the command that goes on"


def test_claims_know_the_profiles() -> None:
    done = CliRunner().invoke(cli.app, ["claims", "--profile", "foo"])
    assert done.exit_code == 2
    assert "'laptop'" in done.output


def test_help_is_everywhere_and_quick() -> None:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "vaegap", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert time.monotonic() - started < 2
    for name in ("run", "status", "verify", "claims", "audit", "data"):
        assert name in done.stdout
        if name != "audit":  # passes its arguments on
            assert CliRunner().invoke(cli.app, [name, "--help"]).exit_code == 0


@pytest.mark.parametrize("words", [["status"], ["run", "grid.yaml"], ["verify"], ["claims"]])
def test_results_that_are_no_folder_are_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unset variable in a script must not put records into the working folder, nor a slip look like no records."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    for text, needed in (("", "its name is empty"), ("file", "file is a file, not a folder")):
        done = CliRunner().invoke(cli.app, [*words, "--results", text])
        assert done.exit_code == 2
        assert needed in " ".join(done.output.replace("│", " ").split())
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("words", [["status"], ["run", "grid.yaml"], ["verify"], ["claims"]])
def test_a_variable_that_names_a_file_is_refused(words: list[str], project: Path, monkeypatch) -> None:
    write_grid(project, a=entry())
    monkeypatch.chdir(project)
    (project / "file").write_text("x")
    monkeypatch.setenv("VAEGAP_RESULTS", str(project / "file"))
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 2
    assert "VAEGAP_RESULTS" in done.output and "is a file, not a folder" in done.output
    assert (project / "file").read_text() == "x"


@pytest.mark.parametrize("name", ["verify", "claims"])
def test_commands_that_only_read_say_that_a_folder_is_not_there(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, [name, "--results", str(tmp_path / "reslts")])
    assert done.exit_code == 2
    assert f"there is no folder {tmp_path / 'reslts'}" in done.output


def test_the_command_that_goes_on_can_be_pasted(project: Path) -> None:
    path = write_grid(project, a=entry())
    own = project / "my results"
    done = CliRunner().invoke(cli.app, ["status", "--grid", str(path), "--results", str(own)])
    (line,) = [line for line in done.output.splitlines() if line.startswith("to go on: ")]
    assert f"there is no folder {own} yet" in done.output
    words = shlex.split(line.removeprefix("to go on: "))
    assert words[:2] == ["vaegap", "run"] and words[-2:] == ["--results", str(own)]
    said = CliRunner().invoke(cli.app, [*words[1:], "--dry-run"])
    assert said.exit_code == 0 and said.output.startswith("missing")


def test_dry_run_of_a_grid_counts_what_would_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vaegap.bounds  # noqa: F401  # so that the record names it

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "science_modules", lambda package=None: {"vaegap.bounds": "of old"})
        experiments.run(toy_lab.TOY, profile="laptop", results=project / "results")
    path = write_grid(project, a=entry(parameters={"seed": [0, 1]}, profiles={"laptop": None}))
    call = ["run", str(path), "--profile", "laptop", "--dry-run"]
    shown = CliRunner().invoke(cli.app, call).output.splitlines()
    assert [line.split()[0] for line in shown[:2]] == ["stale", "missing"]
    assert shown[2] == "1 of 2 jobs would run", "published ones are shown with their mark"
    assert "2 of 2 jobs would run" in CliRunner().invoke(cli.app, [*call, "--refresh"]).output


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("", "takes a file"),
        ("toy.ipynb", "names the notebook itself"),
        ("/dev/null", "/dev/null is none"),
        ("nowhere/out.ipynb", "make it first"),
    ],
)
def test_outputs_that_would_cost_the_source_or_the_run_are_refused(project: Path, name: str, needed: str) -> None:
    source = project / "notebooks/toy.ipynb"
    before = source.read_bytes()
    done = CliRunner().invoke(cli.app, ["run", str(source), "-o", str(project / "notebooks" / name)])
    assert done.exit_code == 2
    assert needed in " ".join(done.output.replace("│", " ").split())
    assert source.read_bytes() == before and not (project / "results").exists()
