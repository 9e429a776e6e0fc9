"""Where results lie and which commit made them: the checkout is found, another project is not mistaken for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from toy_runs import ROOT

from vaegap.lab import files, provenance

pytestmark = pytest.mark.usefixtures("fresh_calls")


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
