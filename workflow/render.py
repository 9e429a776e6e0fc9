"""Run the book's notebooks and lay out the folder that the book is built from, `_build/source`.

That folder holds links to the pages and the executed copies of the notebooks, under the same names as in the
repository, so that one table of contents serves both. A notebook is run again only when it, its parameters, the package
or the records have changed. A copy is put in place only after its run has ended well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
SOURCE = BUILD / "source"
STAMPS = BUILD / "stamps.json"
LINKED = ("_config.yml", "_toc.yml", "book", "results", "vaegap", "workflow")
SECONDS_BETWEEN_LINES = 5.0
printing = threading.Lock()


def follow(name: str, stream: BinaryIO) -> str:
    """Print what a notebook prints, line by line under its name, and return its last lines.

    Progress bars rewrite their line many times a second; of these only one line every few seconds is printed, so that a
    log stays readable.
    """
    shown, line, last = -SECONDS_BETWEEN_LINES, bytearray(), list[str]()
    while byte := stream.read(1):
        if byte not in b"\r\n":
            line += byte
            continue
        text, line = line.decode(errors="replace").strip(), bytearray()
        is_bar = byte == b"\r"
        if not text or (is_bar and time.monotonic() - shown < SECONDS_BETWEEN_LINES):
            continue
        shown = time.monotonic() if is_bar else shown
        last = [*last[-30:], text]
        with printing:
            print(f"   {name}: {text}", flush=True)
    return "\n".join(last)


def execute(name: str, parameters: dict[str, Any]) -> float:
    """Run one notebook and put the copy with its outputs in place of the former one; returns the seconds it took.

    Raises:
        RuntimeError: the notebook failed.
    """
    started = time.monotonic()
    output = BUILD / "executed" / f"{name}.ipynb"
    command = [sys.executable, "-m", "vaegap.lab.notebook", f"notebooks/{name}.ipynb", str(output)]
    with subprocess.Popen(
        [*command, json.dumps(parameters)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        last = follow(name, process.stdout)
    if process.returncode:
        raise RuntimeError(last.splitlines()[-1] if last else f"ended with exit code {process.returncode}")
    notebook = nbformat.read(output, as_version=4)
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"].append("hide-input")
    notebook.metadata["papermill"] = {"parameters": parameters}  # without the paths of this machine
    nbformat.write(notebook, output)
    os.replace(output, SOURCE / "notebooks" / output.name)
    return time.monotonic() - started


def digest(paths: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def stamp(name: str, parameters: dict[str, Any]) -> dict[str, str]:
    """What the executed copy of a notebook was made from."""
    package = [p for p in (ROOT / "vaegap").rglob("*") if p.suffix in {".py", ".mplstyle"}]
    return {
        "notebook": digest([ROOT / "notebooks" / f"{name}.ipynb"]),
        "parameters": json.dumps(parameters, sort_keys=True),
        "package": digest(package),
        "records": digest(list((ROOT / "results").glob("*/run.json"))),
    }


def lay_out() -> None:
    """`_build/source`: links to the pages, and a folder for the executed notebooks."""
    (SOURCE / "notebooks").mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        link = SOURCE / name
        if (ROOT / name).exists() and not link.is_symlink():
            link.symlink_to(os.path.relpath(ROOT / name, SOURCE))


def render(runs: dict[str, dict[str, Any]], jobs: int) -> list[str]:
    """Run what has to be run; returns the names of the notebooks that failed."""
    lay_out()
    old = json.loads(STAMPS.read_text()) if STAMPS.exists() else {}
    wanted = [
        name
        for name, parameters in runs.items()
        if old.get(name) != stamp(name, parameters) or not (SOURCE / "notebooks" / f"{name}.ipynb").exists()
    ]
    print(f"   {len(wanted)} of {len(runs)} notebooks to run {wanted or ''}", flush=True)
    failed = []
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {pool.submit(execute, name, runs[name]): name for name in wanted}
        for future in as_completed(futures):
            name = futures[future]
            try:
                print(f"   {name}: done in {future.result():.0f} s", flush=True)
            except (RuntimeError, OSError) as error:
                failed.append(name)
                print(f"   {name}: FAILED, see _build/executed/{name}.partial.ipynb: {error}", flush=True)
    done = {name: stamp(name, runs[name]) for name in runs if name not in failed}
    STAMPS.write_text(json.dumps(done, indent=1) + "\n")
    return failed


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--profile", help="run all with their defaults in this profile, not as in book.yaml")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time")
    options = parser.parse_args()
    runs: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "workflow" / "book.yaml").read_text())
    if options.profile:
        runs = {name: {"profile": options.profile} for name in runs}
    if options.jobs > 1:  # side by side, kernels that each take all cores only stand in each other's way
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    failed = render(runs, options.jobs)
    if failed:
        print(f"{len(failed)} of {len(runs)} notebooks failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
