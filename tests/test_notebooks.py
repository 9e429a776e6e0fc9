"""The notebooks: clean in git, run by papermill as they are from any folder, and refuse what they do not know."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZES = {"quick", "laptop", "paper"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(name: str, folder: Path, **parameters: object) -> nbformat.NotebookNode:
    """Real papermill, quietly; the executed copy goes to `folder`."""
    return papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb",
        folder / f"{name}.ipynb",
        parameters,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=240,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder outside the project. Records go where they always go: what was run is not run again."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


@each_notebook
def test_source_is_clean(path: Path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "run nbstripout --keep-id on it"
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and not all(name.isdigit() for name in ids)


@each_notebook
def test_source_tells_a_story(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert not any("def " in cell.source or "class " in cell.source for cell in cells if cell.cell_type == "code")
    shown = [c for c in cells if c.cell_type == "code" and "hide-input" not in c.metadata.get("tags", [])]
    text = [c for c in cells if c.cell_type == "markdown"]
    assert len(text) >= len(shown) - 2, "every step but the parameters and the imports needs a word"


@each_notebook
def test_parameters_are_documented(path: Path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    parameters = papermill.inspect_notebook(path)
    assert "profile" in parameters and parameters["profile"]["default"].strip("'\"") in SIZES
    for name, found in parameters.items():
        assert found["inferred_type_name"] != "None", f"{name} has no type"
        assert len(found["help"]) > 10, f"{name} has no comment"


@each_notebook
def test_parameters_are_checked_first(path: Path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", [])
    assert "parameters.check(" in code[1].source and "globals()" in code[1].source


@pytest.mark.parametrize("name", ["quickstart", "posterior_2d"])  # the others: make test-all
def test_runs_in_the_quick_profile_from_elsewhere(name: str, elsewhere: Path):
    notebook = run(name, elsewhere, profile="quick")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for o in outputs)
    assert any("text/html" in o.get("data", {}) for o in outputs)
    assert [entry.name for entry in elsewhere.iterdir()] == [f"{name}.ipynb"], "it may leave nothing else there"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"no_such_parameter": 1}, ["no_such_parameter"]),
        ({"profile": "gigantic"}, ["profile", "gigantic", "quick"]),
        ({"seed": "abc"}, ["seed", "abc", "int"]),
    ],
    ids=["unknown name", "unknown profile", "wrong type"],
)
def test_refuses_parameters_that_it_does_not_know(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, parameters: dict, words: list[str]
):
    records = elsewhere.parent / "records"
    monkeypatch.setenv("VAEGAP_RESULTS", str(records))
    with pytest.raises(papermill.PapermillExecutionError) as refusal:
        run("quickstart", elsewhere, **parameters)
    assert all(word in refusal.value.evalue for word in words)
    assert not records.exists()
