"""The command `vaegap`: run, status, verify, claims, audit, data. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from vaegap.lab import cli_audit, cli_run

__all__ = ["app"]

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


def _folder(text: str) -> Path:
    """The folder that was named; a variable that is not set, or a file, is no folder."""
    if not text.strip():
        raise typer.BadParameter("its name is empty; name a folder, or leave the option out")
    path = Path(text).expanduser()
    if path.exists() and not path.is_dir():
        raise typer.BadParameter(f"{path} is a file, not a folder")
    return path


_RESULTS = "Folder of the records; by default $VAEGAP_RESULTS, then the published ones in results/."
ResultsOption = Annotated[Path | None, typer.Option(parser=_folder, metavar="FOLDER", help=_RESULTS)]
ProfileOption = Annotated[Profile, typer.Option(help="How large: minutes, hours, or the paper's own schedule.")]
GridOption = Annotated[Path | None, typer.Option("--grid", help="The grid file; by default workflow/grid.yaml.")]


_REFRESH = (
    "Compute stale records anew, under any profile. Trained weights are taken as they are: to train a model "
    "anew as well, delete its file, results/models/<model>.safetensors; notes.model in a record's run.json names it."
)


@app.command(cls=cli_run.Pairs)
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
        cli_run.run_grid(target, profile.value, jobs, only or [], refresh, dry_run)
    else:
        if jobs > 1 or only:
            raise typer.BadParameter("--jobs and --only are for a grid file (.yaml), which has many notebooks")
        cli_run.run_notebook(target, profile.value, parameter or [], output, refresh, dry_run)


def _need(results: Path | None) -> None:
    """A command that only reads finds nothing wrong in a folder that is not there; a name with a slip is."""
    from vaegap.errors import InputError

    if results is not None and not results.is_dir():
        raise InputError(f"there is no folder {results}")
    _check_variable()


def _check_variable() -> None:
    from vaegap.errors import InputError
    from vaegap.lab.files import find_results

    if find_results().is_file():
        raise InputError(f"VAEGAP_RESULTS names {find_results()}, which is a file, not a folder")


def _use(results: Path | None) -> None:
    """Make a folder that was named this process's results, and its children's, as if the environment named it."""
    if results is not None:
        os.environ["VAEGAP_RESULTS"] = str(results.resolve())
    _check_variable()


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
    from vaegap.lab.files import find_root

    _use(results)
    cli_run.show_status(grid_file or find_root() / "workflow" / "grid.yaml", profile.value, jobs, as_json, results)


@app.command()
@_clear_errors
def verify(
    run_ids: Annotated[list[str] | None, typer.Argument(help="Only these runs; by default all stale ones.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Fresh records as well as stale ones.")] = False,
    train: Annotated[bool, typer.Option(help="Train models anew whose weights are not here (minutes each).")] = False,
    results: ResultsOption = None,
) -> None:
    """Compute some images of stale records anew, from the kept weights; clear their mark where the numbers agree."""
    from vaegap.lab import runs
    from vaegap.lab import verify as verification
    from vaegap.lab.errors import RecordError

    _need(results)
    found = None
    if run_ids:
        records = {name: runs.find(name, results) for name in run_ids}
        missing = [name for name, record in records.items() if record is None]
        if missing:
            raise RecordError(f"there is no record of {', '.join(missing)}")
        found = [record for record in records.values() if record is not None]
    counts: Counter[str] = Counter()
    for verdict in verification.verify(found, results, everything or bool(run_ids), train):
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

    _need(results)
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
