"""pyproject.toml, requirements.txt and constraints.txt tell the same story."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def listed(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line]


def package(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!\[ ]", requirement)[0]).lower()


def test_requirements_are_the_package_and_the_extras_of_a_reader():
    wanted = PROJECT["dependencies"] + [line for name in ("lab", "spline", "book", "dev") for line in EXTRAS[name]]
    assert sorted(listed("requirements.txt")) == sorted(wanted)


def test_cluster_requirements_are_the_cluster_extra():
    assert sorted(listed("requirements-cluster.txt")) == sorted(EXTRAS["cluster"])


def test_every_requirement_is_pinned():
    pinned = {package(line) for line in listed("constraints.txt")}
    assert all("==" in line for line in listed("constraints.txt"))
    assert {package(line) for line in listed("requirements.txt")} <= pinned


def test_an_audit_needs_few_packages():
    assert len(PROJECT["dependencies"]) <= 8
