"""Load or compute: a notebook asks for a run, and draws at once if its record is there."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaegap.errors import InputError
from vaegap.lab import locks, provenance, records, runs
from vaegap.lab.errors import StorageError
from vaegap.lab.files import find_results, find_root, work_folder
from vaegap.lab.records import Record, canonical
from vaegap.lab.sessions import Session, empty
from vaegap.lab.sources import fingerprint

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PROFILES", "Context", "Experiment", "find_root", "get", "identify", "names", "register", "resolve", "run"]

PROFILES = ("quick", "laptop", "paper")
Rows = Iterable[Mapping[str, Any]]


@dataclass
class Context:
    """What a computation is given, and where it puts things while it runs.

    Attributes:
        run_id: the run's name.
        profile: "quick", "laptop" or "paper".
        params: all parameters, resolved.
        folder: scratch folder, kept between attempts: checkpoints belong here.
        results: the folder of the records, for runs that this one needs (`experiments.run(..., results=ctx.results)`).
        resumed: whether an earlier attempt left something to go on from.
        device: where the tensors are; set it if you move them.
        dtype: their type, if it is not torch's default.
        notes: anything else worth keeping in run.json.
    """

    run_id: str
    profile: str
    params: dict[str, Any]
    folder: Path
    results: Path
    resumed: bool = False
    device: str = "cpu"
    dtype: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def checkpoint(self, name: str = "checkpoint") -> Path:
        """Where to keep a checkpoint: it survives until the record is written."""
        return self.folder / f"{name}.safetensors"

    def artifact(self, name: str) -> Path:
        """Where to put a file that the record shall keep, such as "model.safetensors"."""
        folder = self.folder / "artifacts"
        folder.mkdir(exist_ok=True)
        return folder / name


@dataclass(frozen=True)
class Experiment:
    """Something that can be computed, and what its result depends on.

    Attributes:
        name: a short name, fit for a folder.
        compute: given a `Context`, returns the record's rows.
        defaults: all parameters, with their defaults. Their types are what is accepted.
        profiles: what a profile changes in them.
        version: of the protocol; raise it when the experiment computes something else, and its old records no longer
            count.
        datasets: the names of the data sets, from the resolved parameters; by default the parameter "dataset".
        verify: given a `Context` and the record, some rows computed anew from the kept weights (`vaegap verify`).
        cannot_verify: where there is no such function, why: "it keeps no weights".
        weights: the files of trained models that `verify` starts from, its own last, for experiments that share them.
        train: writes those files anew, where any is gone (`vaegap verify --train`).
        needs: a metric without which a record is too old to be verified.
    """

    name: str
    compute: Callable[[Context], pd.DataFrame | Rows]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    version: int = 1
    datasets: Callable[[Mapping[str, Any]], Iterable[str]] | None = None
    verify: Callable[[Context, Record], pd.DataFrame | Rows] | None = None
    cannot_verify: str = ""
    weights: Callable[[Context], list[Path]] | None = None
    train: Callable[[Context], object] | None = None
    needs: str = ""


_registry: dict[str, Experiment] = {}


def register(experiment: Experiment) -> Experiment:
    """Make an experiment known under its name; the last one of a name counts."""
    _registry[experiment.name] = experiment
    return experiment


def names() -> list[str]:
    """All known experiments."""
    _load_protocols()
    return sorted(_registry)


def get(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        InputError: there is none.
    """
    if name not in _registry:
        _load_protocols()
    if name not in _registry:
        raise InputError(f"there is no experiment {name!r}; there are {', '.join(sorted(_registry)) or 'none'}")
    return _registry[name]


def _load_protocols() -> None:
    """The book's own experiments register themselves when their module is imported."""
    try:
        import vaegap.lab.protocols  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "vaegap.lab.protocols":
            raise


def resolve(experiment: Experiment, params: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """All parameters of a run: the defaults, changed by the profile, changed by what was asked for.

    A parameter that was given as None keeps the profile's value.

    Raises:
        InputError: the profile, a name or a type is wrong.
    """
    if profile not in PROFILES:
        raise InputError(f"profile must be one of {', '.join(PROFILES)}, not {profile!r}")
    settings = {**experiment.defaults, **experiment.profiles.get(profile, {})}
    for name, value in params.items():
        if name not in settings:
            raise InputError(f"experiment {experiment.name!r} has no parameter {name!r}; it has {', '.join(settings)}")
        if value is not None:
            settings[name] = _like(name, canonical(value), settings[name])
    return {name: canonical(value) for name, value in settings.items()}


def _like(name: str, value: Any, default: Any) -> Any:
    """The value, if its type is the default's: 1 and 1.0 must not name two runs, and "3" is no seed."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    default = canonical(default)
    if default is not None and type(value) is not type(default):
        raise InputError(f"parameter {name} must be {type(default).__name__} like {default!r}, not {value!r}")
    return value


def identify(experiment: Experiment | str, params: Mapping[str, Any] | None = None, profile: str = "quick") -> str:
    """The id of the run that `run` would load or compute; needs no data and computes nothing.

    Raises:
        InputError: as `resolve`.
    """
    known = get(experiment) if isinstance(experiment, str) else experiment
    return _identity(known, resolve(known, params or {}, profile), profile)


def _identity(experiment: Experiment, settings: Mapping[str, Any], profile: str) -> str:
    if experiment.datasets is not None:
        data = list(experiment.datasets(settings))
    else:
        data = [settings["dataset"]] if settings.get("dataset") else []
    digest = " ".join(f"{name}:{fingerprint(name)}" for name in data)
    return runs.run_id(experiment.name, settings, profile, digest, experiment.version)


def run(
    experiment: Experiment | str,
    params: Mapping[str, Any] | None = None,
    profile: str = "quick",
    results: str | os.PathLike[str] | None = None,
    *,
    compute: Callable[[Context], pd.DataFrame | Rows] | None = None,
    wait: float | None = None,
    refresh: bool = False,
) -> Record:
    """Load the record of a run, or compute it where there is none.

    Of several processes that ask for the same run, one computes and the others wait for it. A computation that was
    killed goes on from its checkpoints. A record whose code has changed since is computed anew under `quick`; under the
    other profiles it is returned with `record.stale` set.

    Args:
        experiment: an experiment, or the name of a registered one.
        params: what differs from its defaults.
        profile: "quick", "laptop" or "paper".
        results: the folder of the records, by default `$VAEGAP_RESULTS`, else `results/` in the project's root.
        compute: what to call instead of the experiment's own function.
        wait: seconds to wait for another process that computes the same run; for ever where it is not given.
        refresh: compute a stale record anew under any profile; so does `VAEGAP_REFRESH=1` in the environment, by which
            `vaegap run --refresh` tells its notebooks.

    Raises:
        InputError: a parameter is wrong.
        RecordError: the record there is damaged or of a newer version.
        StorageError: a record cannot be written; what was computed stays in the checkpoints.
        LockError: another process still computes it after `wait` seconds.

    Example:
        >>> import tempfile
        >>> def square(ctx):
        ...     return [{"metric": "square", "value": ctx.params["n"] ** 2, "unit": "1"}]
        >>> squares = Experiment("squares", square, defaults={"n": 2})
        >>> run(squares, {"n": 3}, results=tempfile.mkdtemp()).value("square")
        9.0
    """
    known = get(experiment) if isinstance(experiment, str) else experiment
    settings = resolve(known, params or {}, profile)
    name = _identity(known, settings, profile)
    asked = refresh or os.environ.get("VAEGAP_REFRESH") == "1"
    again = partial(_outdated, refresh=asked or profile == "quick")
    folder = find_results(results)
    work = work_folder(folder, name)
    record = runs.find(name, results)
    if record is not None and not again(record):
        if work.is_dir():
            _tidy(work, record)
        return record
    started = time.monotonic()
    session = Session(work)
    lock = locks.Lock(work / "lock", on_beat=session.beat)
    lock.acquire(wait, on_wait=lambda who: _say(f"{name}: waiting for process {who.pid} on {who.host}"))
    try:
        record = runs.find(name, results)  # another process may have finished it while we waited
        if record is not None and not again(record):
            return record
        context = Context(name, profile, settings, work, folder)
        context.resumed = session.begin(keep=profile != "quick")
        _say(f"{name}: {'going on with' if context.resumed else 'computing'} {_brief(settings)}")
        rows = (compute or known.compute)(context)
        lock.check()
        info: dict[str, Any] = {"run_id": name, "experiment": known.name, "profile": profile, "params": settings}
        info |= {"version": known.version, "science": loaded(session.science), "notes": context.notes}
        info |= {"wall_seconds": round(session.seconds(), 1), "attempts": session.attempts, "start": session.start}
        info["provenance"] = provenance.collect(context.device, context.dtype)
        artifacts = {path.name: path for path in sorted((work / "artifacts").glob("[!.]*"))}
        record = records.write(folder, rows, info, artifacts)
        empty(work)
        _say(f"{name}: done after {time.monotonic() - started:.0f} s")
        return record
    except Exception as error:
        session.fail(error)
        raise
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            work.rmdir()  # if nothing is left in it


def _outdated(record: Record, refresh: bool) -> bool:
    return refresh and record.stale


def _tidy(work: Path, record: Record) -> None:
    """Finish what a run did not come to that was killed just after it had put its record in place."""
    with contextlib.suppress(OSError, StorageError):
        lock = locks.Lock(work / "lock")
        if lock.try_acquire():
            records.mend(record)
            empty(work)
            lock.release()
            work.rmdir()


def loaded(science: Mapping[str, str]) -> dict[str, str]:
    """Of all science modules' digests those that this process has loaded: the others computed nothing."""
    return {name: digest for name, digest in science.items() if name in sys.modules}


def _brief(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
