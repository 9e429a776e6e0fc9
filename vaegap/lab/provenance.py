"""Which code, which versions and which machine made a record."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["changed_modules", "collect", "science_digest", "science_modules", "training_modules", "training_origin"]

_PACKAGE = Path(__file__).resolve().parents[1]
_SILENT = (
    "errors",
    "progress",
    "figures",
    "describing",
    "rounding",
    "advice",
    "audited",
    "doubts",
    "report",
    "report_html",
)
_NO_NUMBERS = {"vaegap", "vaegap.__main__", *(f"vaegap.{name}" for name in _SILENT)}  # no record depends on them
# What the lab does to numbers itself: train, read and binarize, measure. The catalogue of the protocols only holds
# parameters, which the run's name depends on already, and so does the package that it lies in.
_LAB = ("vaegap.lab.training", "vaegap.lab.gradients", "vaegap.lab.zoo", "vaegap.lab.datasets")
_PROTOCOLS = "vaegap.lab.protocols."
_CATALOG = "vaegap.lab.protocols.catalog"
_TRAINING = ("vaegap.models", "vaegap.likelihoods", "vaegap.fast", "vaegap.posteriors", *_LAB)  # what weights depend on
_VERSIONS = ("torch", "numpy", "pandas", "safetensors", "zuko", "vaegap")


def science_modules(package: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """A digest of each module that numbers depend on: its code without comments, docstrings and layout.

    Args:
        package: the folder of the package `vaegap`, by default this one.

    Returns:
        Module name -> digest. Of the lab, what trains, reads images and measures; its files, runs and records are left
        out, and so are the figures and the words of the audit.
    """
    folder = Path(package or _PACKAGE)
    digests = {}
    for path in sorted(folder.rglob("*.py")):
        parts = ("vaegap", *path.relative_to(folder).with_suffix("").parts)
        name = ".".join(part for part in parts if part != "__init__")
        if _counts(name):
            digests[name] = _code_digest(path)
    return digests


def _counts(name: str) -> bool:
    """Whether numbers in records can depend on this module."""
    if name.startswith("vaegap.lab"):
        return name in _LAB or (name.startswith(_PROTOCOLS) and name != _CATALOG)
    return name not in _NO_NUMBERS


def training_modules(modules: Mapping[str, str] | None = None) -> dict[str, str]:
    """Those of the modules that a trained model's weights depend on: the model, its parts, and what trains it."""
    known = science_modules() if modules is None else modules
    return {name: d for name, d in known.items() if name in _TRAINING or name.startswith("vaegap.posteriors.")}


def training_origin() -> dict[str, Any]:
    """What is kept with trained weights: the commit, and the code that they depend on, as a whole and by module."""
    modules = training_modules()
    return {**_commit(), "digest": science_digest(modules)[:12], "modules": modules}


def science_digest(modules: Mapping[str, str] | None = None) -> str:
    """One digest of all code that numbers depend on (or of the given modules)."""
    text = repr(sorted((science_modules() if modules is None else modules).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_modules(then: Mapping[str, str], now: Mapping[str, str] | None = None) -> list[str]:
    """The modules that a record was made with and whose code is another today.

    A record names the modules that were loaded when it was made; code that was not loaded cannot have touched its
    numbers. What an older version counted and this one does not (a progress bar) cannot either.
    """
    today = science_modules() if now is None else now
    return [name for name, digest in sorted(then.items()) if _counts(name) and today.get(name) != digest]


def _code_digest(path: Path) -> str:
    """The digest of a file's syntax tree without docstrings; remembered while the file stays as it is."""
    stat = path.stat()
    key = (str(path), stat.st_mtime_ns, stat.st_size)
    if key not in _known:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        _known[key] = hashlib.sha256(_plain(tree).encode()).hexdigest()[:16]
    return _known[key]


_known: dict[tuple[str, int, int], str] = {}
_SKIPPED = {"kind", "type_comment", "type_ignores", "ctx"}


def _plain(node: Any) -> str:
    """A syntax tree as text, the same under every Python (`ast.dump` changes with its version)."""
    if isinstance(node, list):
        return "[" + ",".join(map(_plain, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
        fields["body"] = node.body[1:]
    kept = (
        f"{name}={_plain(value)}" for name, value in fields.items() if name not in _SKIPPED and value not in (None, [])
    )
    return f"{type(node).__name__}({','.join(kept)})"


def collect(device: str = "cpu", dtype: str | None = None) -> dict[str, Any]:
    """What a record says of its origin: commit, versions, machine. No names of people or hosts.

    Args:
        device: where the tensors were, "cpu" or "cuda".
        dtype: their type; torch's default where it is not given.
    """
    torch = sys.modules.get("torch")
    return {
        **_commit(),
        "versions": {"python": platform.python_version()} | {name: v for name in _VERSIONS if (v := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": device,
        "accelerator": torch.cuda.get_device_name() if torch and device.startswith("cuda") else None,
        "threads": torch.get_num_threads() if torch else None,
        "dtype": dtype or (str(torch.get_default_dtype()).removeprefix("torch.") if torch else None),
        "peak_memory_mb": peak_memory(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB (10^6 bytes)."""
    try:
        import resource
    except ImportError:
        return float("nan")
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(size * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def _commit() -> dict[str, Any]:
    """The commit that this package was checked out from, and whether its code differs (new records do not count).

    The working folder may lie in another repository, and an installed package in the environment of one: neither's
    commit says anything about this code.
    """
    home = _PACKAGE.parent
    try:
        if Path(_git(home, "rev-parse", "--show-toplevel")).resolve() != home:
            raise FileNotFoundError(home)
        commit = _git(home, "rev-parse", "HEAD")
        changes = _git(home, "status", "--porcelain", "--", "vaegap", "notebooks", "workflow")
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None, "commit_note": _NO_COMMIT}
    return {"commit": commit, "dirty": bool(changes)}


_NO_COMMIT = "the package does not lie in its own git checkout; its version and the digests in `science` tell its code"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
