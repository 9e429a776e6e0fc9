"""Run the book's notebooks and lay out the folder that the book is built from, `_build/source`.

That folder holds links to the pages, the executed copies of the notebooks under the same names as in the repository (so
that one table of contents serves both), and what the pages take from the records: their descriptions, and the table of
core-hours. A notebook is run again only when it, its parameters, the package, the records that it shows or the files
that it reads have changed. A copy is put in place only after its run has ended well, and it is noted at once, so that
an interrupted `make` goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import hours
import nbformat
import nbformat.v4
import yaml

from vaegap.lab import captions
from vaegap.lab.files import find_results, write_atomic

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
SOURCE = BUILD / "source"
STAMPS = BUILD / "stamps.json"
LINKED = ("_config.yml", "_toc.yml", "book", "vaegap", "workflow")
READ = ("claims.yaml", "published.yaml")  # by notebooks, beside the package and the records
VERDICTS = "tables.verdicts("  # in notebooks that judge claims
LAST = ("claims",)  # shows all records of a profile, so it is run after the others, and again when any has changed
RUN_ID = re.compile(r"\b[a-z][a-z0-9_]*-(?:quick|laptop|paper)-[0-9a-f]{12}\b")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_TO_STOP = 10.0
printing = threading.Lock()
running: dict[str, subprocess.Popen[bytes]] = {}
stopping = threading.Event()


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
        RuntimeError: the notebook failed, or was stopped.
    """
    started = time.monotonic()
    output = BUILD / "executed" / f"{name}.ipynb"
    command = [sys.executable, "-m", "vaegap.lab.notebook", f"notebooks/{name}.ipynb", str(output)]
    if stopping.is_set():
        raise RuntimeError("not started")
    with subprocess.Popen(
        [*command, json.dumps(parameters)],
        cwd=ROOT,
        env={**os.environ, captions.NOTEBOOK: name},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is ours to pass on
    ) as process:
        running[name] = process
        assert process.stdout is not None
        last = follow(name, process.stdout)
    running.pop(name)
    if process.returncode:
        raise RuntimeError(last.splitlines()[-1] if last else f"ended with exit code {process.returncode}")
    notebook = nbformat.read(output, as_version=4)
    settle(notebook)
    notebook.metadata["papermill"] = {"parameters": parameters}  # without the paths of this machine
    nbformat.write(notebook, output)
    os.replace(output, copy_of(name))
    return time.monotonic() - started


def settle(notebook: nbformat.NotebookNode) -> None:
    """Make an executed notebook fit for a page.

    The book numbers and captions every output of a cell that draws a figure; so what stands under the figure moves to
    a cell of its own, and a cell that had nothing to draw draws no figure. What the figure shows in words, and of which
    data set, comes with it and goes into its alternative text and its caption.
    """
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if "figure" not in cell.metadata.get("mystnb", {}):
            continue
        pictures = [out for out in cell.outputs if "image/png" in out.get("data", {})]
        rest = [out for out in cell.outputs if out not in pictures and out.output_type != "stream"]
        if not pictures:
            del cell.metadata["mystnb"]["figure"]
            continue
        tell(cell.metadata["mystnb"], pictures[0].metadata.get(captions.SVG, {}))
        if rest:
            cell.outputs = [out for out in cell.outputs if out not in rest]
            under = nbformat.v4.new_code_cell("# where the figure comes from", outputs=rest, id=f"{cell.id}-under")
            under.metadata["tags"] = ["remove-input"]
            cells.append(under)
    notebook.cells = cells


def tell(settings: dict[str, Any], said: dict[str, Any]) -> None:
    """Add to a figure's caption and to its alternative text what `captions.with_caption` found in it."""
    if said.get("data"):
        settings["figure"]["caption"] += f" Data: {', '.join(said['data'])}."
    if said.get("alt"):
        settings["image"]["alt"] += f" {said['alt']}"


def stop() -> None:
    """End the notebooks that are running: first ask, which lets them shut their kernels down, then kill."""
    stopping.set()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in list(running.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sign)
        deadline = time.monotonic() + SECONDS_TO_STOP
        while any(p.poll() is None for p in list(running.values())) and time.monotonic() < deadline:
            time.sleep(0.05)


def copy_of(name: str) -> Path:
    """The executed copy of a notebook, where the book finds it."""
    return SOURCE / "notebooks" / f"{name}.ipynb"


def digest(paths: list[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(ROOT)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def records() -> dict[str, str]:
    """Run id -> digest of the record's description."""
    described = find_results().glob("[!_.]*/run.json")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in described}


def stamp(name: str, parameters: dict[str, Any], there: dict[str, str]) -> dict[str, Any]:
    """What the executed copy of a notebook was made from; of the records, those that it names (or names as missing)."""
    package = [p for p in (ROOT / "vaegap").rglob("*") if p.suffix in {".py", ".mplstyle"}]
    source, profile = ROOT / "notebooks" / f"{name}.ipynb", parameters.get("profile")
    named = set(RUN_ID.findall(copy_of(name).read_text())) if copy_of(name).exists() else set()
    # a verdict rests on whatever records there are, named or not; quick runs lack the data sets that claims are about
    if name in LAST or (profile != "quick" and VERDICTS in source.read_text()):
        named |= {run for run in there if f"-{profile}-" in run}
    return {
        "notebook": digest([source]),
        "parameters": json.dumps(parameters, sort_keys=True),
        "package": digest([*package, ROOT / "workflow" / "render.py"]),
        "read": digest([ROOT / file for file in READ if (ROOT / file).exists()]),
        "records": {run: there.get(run) for run in sorted(named)},
    }


def lay_out(shown: Sequence[str]) -> None:
    """`_build/source`: links to the pages, a folder for the executed notebooks, and what comes from the records."""
    (SOURCE / "notebooks").mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        if (ROOT / name).exists():
            link(SOURCE / name, ROOT / name)
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        if notebook.stem not in shown:  # no page, but to be downloaded from one
            link(copy_of(notebook.stem), notebook)


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`."""
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))


def describe_records() -> None:
    """Copies of the records' descriptions, which captions link to, and the table of core-hours."""
    folder, results = SOURCE / "extra" / "results", find_results()
    there = records()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.name not in there:
            shutil.rmtree(old)
    for run in there:
        put(folder / run / "run.json", (results / run / "run.json").read_bytes())
    put(SOURCE / "generated" / "hours.md", hours.table().encode())


def put(path: Path, content: bytes) -> None:
    """Write a file if it would be another one, so that `make` sees what has changed."""
    if not path.exists() or path.read_bytes() != content:
        write_atomic(path, content)


def finished(pool: ThreadPoolExecutor, futures: dict[Future[float], str]) -> Iterator[Future[float]]:
    """The futures as they end; on Ctrl-C those that have not begun are called off and those that run are ended."""
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from done
    except KeyboardInterrupt:
        for future in waiting:
            future.cancel()
        stop()
        raise


def render(runs: dict[str, dict[str, Any]], jobs: int) -> list[str]:
    """Run what has to be run; returns the names of the notebooks that failed."""
    lay_out(list(runs))
    stamps = json.loads(STAMPS.read_text()) if STAMPS.exists() else {}
    failed: list[str] = []
    for group in ([n for n in runs if n not in LAST], [n for n in runs if n in LAST]):
        there = records()
        wanted = [n for n in group if stamps.get(n) != stamp(n, runs[n], there) or not copy_of(n).exists()]
        print(f"   {len(wanted)} of {len(group)} notebooks to run {wanted or ''}", flush=True)
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            futures = {pool.submit(execute, name, runs[name]): name for name in wanted}
            for future in finished(pool, futures):
                name = futures[future]
                try:
                    print(f"   {name}: done in {future.result():.0f} s", flush=True)
                except (RuntimeError, OSError) as error:
                    failed.append(name)
                    stamps.pop(name, None)
                    print(f"   {name}: FAILED, see _build/executed/{name}.partial.ipynb: {error}", flush=True)
                else:  # what only shows records may have missed one that came while it ran
                    computes = runs[name].get("compute", name not in LAST)
                    stamps[name] = stamp(name, runs[name], records() if computes else there)
                write_atomic(STAMPS, (json.dumps(stamps, indent=1) + "\n").encode())
    describe_records()
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
    try:
        failed = render(runs, options.jobs)
    except KeyboardInterrupt:
        print("stopped; what was done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    if failed:
        print(f"{len(failed)} of {len(runs)} notebooks failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
