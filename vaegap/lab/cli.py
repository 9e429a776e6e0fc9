"""The command `vaegap`: run, status, verify, claims, audit, data. Heavy imports wait until a command needs them."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vaegap.lab import cli_audit

if TYPE_CHECKING:
    from vaegap.lab.parameters import Parameter

__all__ = ["app", "parse_value"]

app = typer.Typer(
    help="Inference gaps of VAEs: run the experiments, see how far they are, check what they claim.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Profile(StrEnum):
    """One code, three sizes."""

    quick = "quick"
    laptop = "laptop"
    paper = "paper"


class _Pairs(TyperCommand):
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


def _clear_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Show our own errors as one message, without a traceback."""

    @wraps(command)
    def shielded(*args: Any, **kwargs: Any) -> None:
        from vaegap.errors import InputError
        from vaegap.lab.errors import LabError

        try:
            command(*args, **kwargs)
        except (InputError, LabError) as error:
            typer.secho(f"vaegap: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
            raise typer.Exit(2 if isinstance(error, InputError) else 1) from None

    return shielded


ResultsOption = Annotated[
    Path | None, typer.Option(help="Folder of the records; by default $VAEGAP_RESULTS, else results/ in the project.")
]
ProfileOption = Annotated[Profile, typer.Option(help="How large: minutes, hours, or the paper's own schedule.")]
GridOption = Annotated[Path | None, typer.Option("--grid", help="The grid file; by default workflow/grid.yaml.")]


_REFRESH = (
    "Compute stale records anew, under any profile. Trained weights are taken as they are: to train a model "
    "anew as well, delete its file, results/models/<model>.safetensors; notes.model in a record's run.json names it."
)


@app.command(cls=_Pairs)
@_clear_errors
def run(
    target: Annotated[Path, typer.Argument(help="A notebook (.ipynb), or a grid file (.yaml) of many.")],
    profile: ProfileOption = Profile.quick,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Notebooks at a time (grid only).")] = 1,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="NAME VALUE", help="A notebook's parameter; repeat for more."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where the executed copy of a notebook goes.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these entries or jobs (grid only); repeat for more.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help=_REFRESH)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would run.")] = False,
    results: ResultsOption = None,
) -> None:
    """Run a notebook, or all jobs of a grid that are not done yet.

    Computations that were cut off go on where they stopped; those whose record is there are not repeated.
    """
    _use(results)
    if target.suffix in (".yaml", ".yml"):
        if parameter or output:
            raise typer.BadParameter("-p and -o are for a single notebook; a grid's parameters stand in its file")
        _run_grid(target, profile.value, jobs, only or [], refresh, dry_run)
    else:
        if jobs > 1 or only:
            raise typer.BadParameter("--jobs and --only are for a grid file (.yaml), which has many notebooks")
        _run_notebook(target, profile.value, parameter or [], output, refresh, dry_run)


def _use(results: Path | None) -> None:
    """Make a folder that was named this process's results, and its children's, as if the environment named it."""
    if results is not None:
        os.environ["VAEGAP_RESULTS"] = str(results.resolve())


def _run_notebook(
    target: Path, profile: str, given: list[str], output: Path | None, refresh: bool, dry_run: bool
) -> None:
    from vaegap.lab import notebook, parameters
    from vaegap.lab.files import find_results, scratch_folder

    declared = parameters.read_notebook(target)
    values = _values(declared, given)
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


def _run_grid(target: Path, profile: str, parallel: int, only: list[str], refresh: bool, dry_run: bool) -> None:
    from vaegap.lab import grid, runner
    from vaegap.lab.errors import GridError

    jobs = grid.load(target, profile)
    if only:
        unknown = [name for name in only if name not in {j.entry for j in jobs} | {j.id for j in jobs}]
        if unknown:
            raise GridError(f"{target}: no entry or job {', '.join(unknown)} under the profile {profile}")
    chosen = [job for job in jobs if not only or job.entry in only or job.id in only]
    if dry_run:
        for job in chosen:
            typer.echo(f"{grid.state(job, None, jobs):8s} {job.id:40s} {job.label}")
        return
    outcomes = runner.run_jobs(jobs, parallel=parallel, refresh=refresh, only={job.id for job in chosen})
    counts = Counter(outcome.state for outcome in outcomes)
    if outcomes:
        typer.echo(", ".join(f"{number} {state}" for state, number in sorted(counts.items())))
    if counts["stopped"]:
        raise typer.Exit(130)
    if counts["failed"] or counts["blocked"]:
        raise typer.Exit(1)


@app.command()
@_clear_errors
def status(
    profile: ProfileOption = Profile.quick,
    grid_file: GridOption = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Notebooks at a time, for the time left.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    results: ResultsOption = None,
) -> None:
    """How far the experiments are: done, running, failed, missing, stale; and how long the rest will take."""
    from vaegap.lab import grid
    from vaegap.lab.files import find_results, find_root

    _use(results)
    path = grid_file or find_root() / "workflow" / "grid.yaml"
    listed = grid.load(path, profile.value)
    states = {job.id: grid.state(job, None, listed) for job in listed}
    left = grid.seconds_left(listed, states, find_results(), jobs)
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
        typer.echo(f"to go on: vaegap run {os.path.relpath(path)} --profile {profile.value}")
    if counts["stale"] and profile.value != "quick":
        typer.echo("stale: code has changed since; `vaegap verify` checks whether the numbers still hold")


def _detail(job: Any, state: str) -> str:
    from vaegap.lab import locks, runs
    from vaegap.lab.files import find_results, work_folder

    folder = find_results()
    texts = []
    for run_id in job.run_ids:
        work = work_folder(folder, run_id)
        if state in ("done", "stale"):
            record = runs.find(run_id)
            texts.append(f"{run_id}" + (f" (changed: {', '.join(record.changed)})" if record and record.stale else ""))
        elif (who := locks.holder(work / "lock")) is not None:
            texts.append(f"{run_id} by process {who.pid} on {who.host}")
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


@app.command()
@_clear_errors
def verify(
    run_ids: Annotated[list[str] | None, typer.Argument(help="Only these runs; by default all stale ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fresh records as well as stale ones.")] = False,
    results: ResultsOption = None,
) -> None:
    """Compute some images of stale records anew, from the kept weights; clear their mark where the numbers agree."""
    from vaegap.lab import runs
    from vaegap.lab import verify as verification
    from vaegap.lab.errors import RecordError

    found = None
    if run_ids:
        records = {name: runs.find(name, results) for name in run_ids}
        missing = [name for name, record in records.items() if record is None]
        if missing:
            raise RecordError(f"there is no record of {', '.join(missing)}")
        found = [record for record in records.values() if record is not None]
    counts: Counter[str] = Counter()
    for verdict in verification.verify(found, results, everything or bool(run_ids)):
        counts[verdict.state] += 1
        detail = verdict.reason or f"{verdict.rows} numbers, at most {verdict.largest:.1f} standard errors apart"
        typer.echo(f"{verdict.state:8s} {verdict.run_id}: {detail}")
    if not counts:
        typer.echo("no stale records")
    if counts["differs"] or counts["cannot"]:
        raise typer.Exit(1)


@app.command()
@_clear_errors
def claims(
    profile: Annotated[Profile, typer.Option(help="Whose records count.")] = Profile.laptop,
    results: ResultsOption = None,
) -> None:
    """The ledger: each claim of the paper, its criterion, and the verdict computed from the records."""
    from vaegap.lab import claims as ledger

    typer.echo(ledger.report(results, profile.value))


app.command("audit")(_clear_errors(cli_audit.audit))


@app.command()
@_clear_errors
def data(
    names: Annotated[list[str], typer.Argument(help="mnist-5k, mnist, fashion-mnist, cifar10")],
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets; by default $VAEGAP_DATA, else ~/.cache/vaegap.")
    ] = None,
) -> None:
    """Download data sets and check them; files that are there already are only checked."""
    from vaegap.lab import datasets

    for name in names:
        folder = datasets.obtain(name, root=root, create=True)
        for split in datasets.get_source(name).splits:
            images = datasets.load_images(name, split, root=root)
            typer.echo(f"{name} {split}: {len(images):,} images of shape {images.shape}, digest {images.digest[:12]}")
        typer.echo(f"{name}: good, in {folder}")


if __name__ == "__main__":
    app()
