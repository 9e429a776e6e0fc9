"""What the commands `vaegap run` and `vaegap status` do: one notebook, or all jobs of a grid."""

from __future__ import annotations

import ast
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from vaegap.lab.grid import Job
    from vaegap.lab.parameters import Parameter

__all__ = ["Pairs", "parse_value", "run_grid", "run_notebook", "show_status"]


class Pairs(TyperCommand):
    """Lets `-p NAME VALUE` be written as papermill writes it, besides `-p NAME=VALUE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the two words behind each `-p`."""
        joined, rest = list[str](), list(args)
        while rest:
            word = rest.pop(0)
            if word in ("-p", "--parameter") and len(rest) >= 2 and rest[0].isidentifier():
                word, rest = f"--parameter={rest[0]}={rest[1]}", rest[2:]
            joined.append(word)
        return super().parse_args(ctx, joined)


def run_notebook(
    target: Path, profile: str, given: list[str], output: Path | None, refresh: bool, dry_run: bool
) -> None:
    """Run one notebook with the parameters given, or say what would run."""
    from vaegap.lab import notebook, parameters
    from vaegap.lab.files import find_results, scratch_folder

    declared = parameters.read_notebook(target)
    if output is not None and output.is_dir():
        raise typer.BadParameter(f"-o takes a file, such as {output / target.name}, not the folder {output}")
    if output is not None and output.exists() and output.samefile(target):
        raise typer.BadParameter(f"-o names the notebook itself, which stays as it is: {output}")
    if output is not None and output.exists() and not output.is_file():
        raise typer.BadParameter(f"-o takes a file, and {output} is none: name a file, such as {target.name}")
    if output is not None and not output.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {output.parent} to write {output.name} into: make it first")
    values = parameters.spelled_out(declared, _values(declared, given))
    if "profile" in declared:
        values.setdefault("profile", profile)
    parameters.check_values(declared, values, f"notebook {target.name}")
    if dry_run:
        typer.echo(f"would run {target} with {', '.join(f'{n}={v!r}' for n, v in values.items()) or 'its defaults'}")
        return
    if output is None:
        output = scratch_folder(find_results()) / "notebooks" / target.name
    if refresh:
        os.environ["VAEGAP_REFRESH"] = "1"
    try:
        with notebook.stopped_by_signals():
            notebook.execute(target, output, values)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from its last checkpoint", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"executed copy: {output}")


def _values(declared: Mapping[str, Parameter], given: list[str]) -> dict[str, Any]:
    values = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"-p takes a name and a value, such as `-p seed 1`, not {item!r}")
        values[name] = parse_value(text, declared[name].type if name in declared else "")
    return values


def parse_value(text: str, kind: str = "") -> Any:
    """A value from the command line: text where text is declared, else whatever Python would read, else text.

    Example:
        >>> parse_value("1e-3", "float"), parse_value("7", "str"), parse_value("[200, 200]"), parse_value("true")
        (0.001, '7', [200, 200], True)
    """
    if kind == "str":
        return text
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text.lower(), text))
    except (ValueError, SyntaxError):
        return text


def run_grid(target: Path, profile: str, parallel: int, only: list[str], refresh: bool, dry_run: bool) -> None:
    """Run what a grid has open, or list it; the exit code tells how it went."""
    from vaegap.lab import grid, runner
    from vaegap.lab.errors import GridError

    jobs = grid.load(target, profile)
    if only:
        unknown = [name for name in only if name not in {j.entry for j in jobs} | {j.id for j in jobs}]
        if unknown:
            raise GridError(f"{target}: no entry or job {', '.join(unknown)} under the profile {profile}")
    chosen = [job for job in jobs if not only or job.entry in only or job.id in only]
    if dry_run:
        states = {job.id: grid.state(job, None, jobs) for job in chosen}
        for job in chosen:
            typer.echo(f"{states[job.id]:8s} {job.id:40s} {job.label}")
        typer.echo(f"{len(grid.open_jobs(chosen, states, refresh))} of {len(chosen)} jobs would run")
        return
    outcomes = runner.run_jobs(jobs, parallel=parallel, refresh=refresh, only={job.id for job in chosen})
    counts = Counter(outcome.state for outcome in outcomes)
    if outcomes:
        typer.echo(", ".join(f"{number} {state}" for state, number in sorted(counts.items())))
    if counts["stopped"]:
        raise typer.Exit(130)
    if counts["failed"] or counts["blocked"]:
        raise typer.Exit(1)


def show_status(path: Path, profile: str, parallel: int, as_json: bool, results: Path | None) -> None:
    """List the jobs of a grid with their states, and the time that is left."""
    from vaegap.lab import grid
    from vaegap.lab.files import find_results

    listed = grid.load(path, profile)
    states = {job.id: grid.state(job, None, listed) for job in listed}
    if not find_results().is_dir():  # where a grid is about to run first, or a slip
        typer.echo(f"there is no folder {find_results()} yet: nothing was computed there", err=True)
    left = grid.seconds_left(listed, states, find_results(), parallel)
    counts = Counter(states.values())
    unfinished = {job.id for job in grid.open_jobs(listed, states)}
    if as_json:
        rows = [
            {"job": j.id, "entry": j.entry, "label": j.label, "state": states[j.id], "to_do": j.id in unfinished}
            | {"run_ids": j.run_ids, "depends": j.depends, "minutes": j.minutes}
            for j in listed
        ]
        typer.echo(json.dumps({"jobs": rows, "counts": counts, "seconds_left": left}, indent=1))
        return
    for job in listed:
        typer.echo(f"{states[job.id]:8s} {job.label}{_detail(job, states[job.id])}")
    typer.echo(f"{len(listed)} jobs: " + ", ".join(f"{number} {state}" for state, number in sorted(counts.items())))
    if unfinished:
        typer.echo(f"time left: about {left / 60:.0f} min" if left is not None else "time left: not known yet")
        elsewhere = ["--results", str(results)] if results is not None else []
        command = ["vaegap", "run", os.path.relpath(path), "--profile", profile, *elsewhere]
        typer.echo(f"to go on: {shlex.join(command)}")
    if counts["stale"] and profile != "quick":
        typer.echo(
            "stale: code has changed since; `vaegap verify` checks whether the numbers still hold (with --train, also "
            "where weights were not kept)"
        )


def _detail(job: Job, state: str) -> str:
    from vaegap.lab import locks, runs
    from vaegap.lab.files import find_results, work_folder

    folder = find_results()
    texts = []
    for run_id in job.run_ids:
        work = work_folder(folder, run_id)
        if state in ("done", "stale"):
            record = runs.find(run_id)
            texts.append(f"{run_id}" + (f" (changed: {', '.join(record.changed)})" if record and record.stale else ""))
        elif state == "invalid":
            texts.append(_complaint(run_id))
        elif (who := locks.holder(work / "lock")) is not None:
            texts.append(f"{run_id} by process {who.pid} on {who.host}" if who.token else run_id)
        elif (work / "failed.json").is_file():
            texts.append(_noted(work / "failed.json"))
        elif (work / "session.json").is_file():
            texts.append("begun, goes on from its checkpoint")
    error = folder / "_failed" / job.id / "error.txt"
    if state == "failed" and not texts and error.is_file():
        texts.append(f"see {error.parent}")
    return f"  [{'; '.join(texts)}]" if texts else ""


def _noted(path: Path) -> str:
    """The first line of the note that a failed run left."""
    try:
        return str(json.loads(path.read_text())["error"]).splitlines()[0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return f"failed; its note {path} cannot be read"


def _complaint(run_id: str) -> str:
    from vaegap.lab import runs
    from vaegap.lab.errors import RecordError

    try:
        runs.find(run_id)
    except RecordError as error:
        return str(error).splitlines()[0]
    return run_id
