"""The grid file: every experiment of the book as notebook × parameters × profile, and how far each of them is.

    experiments:
      gaps:                                # any name
        notebook: notebooks/gaps.ipynb
        experiment: gaps                   # the run whose record the notebook leaves; a list, if it leaves several
        depends: [training]                # run after these; only the jobs that agree on the parameters they share
        parameters:                        # lists of values: every combination is a job
          family: [gaussian, flow]
        profiles:                          # in which profiles it runs, and what is different there
          quick: {parameters: {dataset: [mnist-5k]}, minutes: 1}
          laptop: {parameters: {dataset: [mnist, fashion-mnist], seed: [0, 1, 2]}, minutes: 25}

A value that is itself a list is written in double brackets: `hidden: [[200, 200]]`. `minutes` is a guess for the time
left, used until a first record tells better. An entry without `experiment` is a page that only draws: it runs again
when its notebook or the records before it have changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vaegap.lab.errors import GridError

__all__ = ["ordered", "read"]

_ENTRY = {"notebook", "experiment", "depends", "parameters", "profiles", "title"}
_PROFILE = {"parameters", "minutes"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # names of jobs, and so of files, begin with it


def read(path: Path, profiles: Collection[str]) -> dict[str, dict[str, Any]]:
    """The entries of a grid file, by name, each of the right form; whether notebooks have such parameters is not asked.

    Raises:
        GridError: the file is wrong; the message names the entry, the key and what is expected.
    """
    import yaml

    try:
        content = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GridError(f"{path}: there is no such grid file") from None
    except (yaml.YAMLError, ValueError, OSError) as error:  # ValueError: no text, or a date such as 2026-13-45
        raise GridError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise GridError(f"{path}: cannot be read: it is nested too deeply") from None
    if not isinstance(content, dict) or not isinstance(content.get("experiments"), dict):
        raise GridError(f"{path}: a grid file has one mapping `experiments:`, from names to entries")
    if len(content) > 1:
        raise GridError(f"{path}: a grid file has the one key `experiments:`, not also {_listed(content)}")
    for name, entry in content["experiments"].items():
        try:
            _check_entry(name, entry, profiles)
        except GridError as error:
            raise GridError(f"{path}: entry {name!r}{error}") from None
    return dict(content["experiments"])


def _load(text: str) -> Any:
    """What a YAML file says; of two entries with one name, YAML's own reader would silently drop the first."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"{twice!r} is there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)


def _check_entry(name: Any, entry: Any, profiles: Collection[str]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GridError(": a name has letters, digits, '-', '_' and '.' only, and begins with a letter or digit")
    _check_keys(entry, _ENTRY)
    if not isinstance(entry.get("notebook"), str) or not isinstance(entry.get("profiles"), dict):
        raise GridError(" needs `notebook:` and `profiles:`, a file and a mapping: profiles: {quick: {minutes: 1}}")
    _check_words(entry, "experiment", one=True)
    _check_words(entry, "depends", one=False)
    _check_values(entry)
    for profile, settings in entry["profiles"].items():
        if profile not in profiles:
            raise GridError(f": profile must be one of {', '.join(profiles)}, not {profile!r}")
        settings = entry["profiles"][profile] = {} if settings is None else settings
        try:
            _check_keys(settings, _PROFILE)
            _check_values(settings)
            minutes = 0 if settings.get("minutes") is None else settings["minutes"]
            if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 <= minutes < math.inf:
                raise GridError(f": minutes must be a number, such as `minutes: 2.5`, not {minutes!r}")
        except GridError as error:
            raise GridError(f", profile {profile}{error}") from None


def _check_keys(entry: Any, allowed: set[str]) -> None:
    if not isinstance(entry, dict):
        raise GridError(f" must be a mapping of {', '.join(sorted(allowed))}, not {entry!r}")
    unknown = [key for key in entry if key not in allowed]
    if unknown:
        raise GridError(f" has unknown keys {_listed(unknown)}; known: {', '.join(sorted(allowed))}")


def _check_words(entry: Mapping[str, Any], key: str, one: bool) -> None:
    """A list of names; where one may stand alone, it may be without brackets."""
    value = entry.get(key)
    words = [value] if one and isinstance(value, str) else value
    if words is not None and not (isinstance(words, list) and all(isinstance(w, str) for w in words)):
        raise GridError(f": {key} must be a list of names, such as `{key}: [gaps]`, not {value!r}")


def _check_values(entry: Mapping[str, Any]) -> None:
    """Parameters by name: each a value, or a list of those to run with."""
    values = entry.get("parameters")
    if values is None:
        return
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise GridError(f": parameters must be a mapping, such as `parameters: {{seed: [0, 1]}}`, not {values!r}")
    if "profile" in values:
        raise GridError(": the profile is no parameter here: `profiles:` tells in which ones the entry runs")
    for name, value in values.items():
        if value == []:
            raise GridError(f": the list of values of {name!r} is empty, which leaves no job at all")
        if isinstance(value, list) and any(other in value[:i] for i, other in enumerate(value)):
            raise GridError(f": {name!r} has the same value twice: {value!r}")


def _listed(keys: Collection[Any]) -> str:
    return ", ".join(str(key) for key in keys if key != "experiments")


def ordered(path: Path, entries: Mapping[str, Any]) -> list[str]:
    """The entries, each after those it depends on."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise GridError(f"{path}: entries depend on each other in a circle: {' -> '.join((*above, name))}")
        if name not in entries:
            raise GridError(f"{path}: entry {above[-1]!r} depends on {name!r}, which is not there")
        for other in entries[name].get("depends") or []:
            visit(other, (*above, name))
        if name not in order:
            order.append(name)

    for name in entries:
        visit(name, ())
    return order
