"""What stands under a figure or a table: which runs made it, from which commit, on which machine, in how long.

In the built book, and in a notebook of this project, the names of runs are links to their `run.json`.
"""

from __future__ import annotations

import base64
import html
import io
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaegap.lab import provenance, runs
from vaegap.lab.records import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DATASETS", "Caption", "Found", "caption", "live", "with_caption"]

NOTEBOOK = "VAEGAP_PAGE"  # set while the book's pages are made: the notebook's name
SVG = "image/svg+xml"

DATASETS = {
    "mnist-5k": "5,000 digits",
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "3-bit CIFAR-10",
}
"""Data sets, as the pages call them."""


class Found(dict[str, list[Record]]):
    """label -> the records that there are.

    Attributes:
        missing: (label, seed, run id) of those that there are not.
        fewer: (label, seed, run id, how many images) where one of the same model on fewer images stands in for a run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.missing: list[tuple[str, int, str]] = []
        self.fewer: list[tuple[str, int, str, str]] = []


@dataclass(frozen=True)
class Caption:
    """Small text to stand directly under an output; notebooks show it as HTML, everything else as plain lines.

    Attributes:
        summary: one line, in words.
        items: (label, run id or "", rest) of each run behind the output.
        data: names of the data sets.
    """

    summary: str
    items: tuple[tuple[str, str, str], ...] = ()
    data: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join([self.summary, *(f"  {label}{run} {rest}".rstrip() for label, run, rest in self.items)])

    def _repr_html_(self) -> str:
        page = os.environ.get(NOTEBOOK)
        link = f' · <a href="../_sources/notebooks/{page}.ipynb">notebook</a>' if page else ""
        if len(self.items) == 1 and self.items[0][1]:
            label, run, rest = self.items[0]
            return f'<p class="provenance">{html.escape(label)}{_run(run)} {html.escape(rest)}{link}</p>'
        rows = "".join(f"<li>{html.escape(a)}{_run(run)} {html.escape(b)}</li>" for a, run, b in self.items)
        more = f"<details><summary>each run</summary><ul>{rows}</ul></details>" if rows else ""
        return f'<div class="provenance">{html.escape(self.summary)}{link}{more}</div>'


def caption(source: Any) -> Caption:
    """Where numbers come from.

    Args:
        source: a record; records; what `tables.collect` found, or several such by title; or a ledger with its column
            "runs".
    """
    source = _flat(source)
    found = _labelled(source)
    missing, fewer = list(getattr(source, "missing", [])), list(getattr(source, "fewer", []))
    known = [record for _, record in found]
    items = [(f"{label}: " if label else "", r.run_id, _one(r)) for label, r in found]
    items += [(f"{label}, seed {seed}: {run} is not done, so far {n}", "", "") for label, seed, run, n in fewer]
    items += [(f"{label}, seed {seed}: {run} is not there", "", "") for label, seed, run in missing]
    gone = "; ".join(_gaps(missing))
    parts = [f"from {len(known)} runs" if len(known) != 1 else f"run {known[0].run_id}"] if known else ["no run yet"]
    if known:
        parts += [f"commit {', '.join(_distinct(_commit(r) for r in known))}"]
        parts += [f"profile {', '.join(_distinct(str(r.info['profile']) for r in known))}"]
        parts += ["; ".join(_distinct(_machine(r.info.get("provenance", {})) for r in known))]
        parts += [f"{_duration(sum(r.info.get('wall_seconds', 0.0) for r in known))}{' in all' * (len(known) > 1)}"]
        parts += ["code changed since for some"] * any(r.stale for r in known)
    smaller: dict[str, list[tuple[str, int, str]]] = {}
    for label, seed, run, images in fewer:
        smaller.setdefault(images, []).append((label, seed, run))
    parts += [f"so far {images}: {'; '.join(_gaps(each))}" for images, each in smaller.items()]
    parts += [f"not there: {gone}"] if gone else []
    return Caption(" · ".join(parts), tuple(items), _data(known))


def live(started: float, *records: Record, data: str = "") -> Caption:
    """The caption of something that this very notebook has computed.

    Args:
        started: `time.monotonic()` before the computation.
        records: the runs whose weights it used.
        data: the data set, where there is no record to tell it.
    """
    seconds = time.monotonic() - started
    made = provenance.collect()
    commit = (made["commit"] or "none")[:9] + "+" * bool(made["dirty"])
    weights = " with the weights of" if records else ""
    rest = f"computed in this notebook{weights}"
    parts = [rest, f"commit {commit}", _machine(made), _duration(seconds)]
    items = tuple(("weights: ", r.run_id, _one(r)) for r in records)
    if len(items) == 1:
        items = ((f"{rest} run ", records[0].run_id, "· now: " + " · ".join(parts[1:])),)
    return Caption(" · ".join(parts), items, _data(records) or ((DATASETS.get(data, data),) if data else ()))


def with_caption(output: Any, source: Any) -> None:
    """Show a table or a figure, and directly under it where it comes from.

    Args:
        output: a table, a sentence, or a figure or its axes; a figure is shown as SVG, with a PNG for other readers.
        source: a `Caption`, or what `caption` takes.

    A figure carries, as metadata of the output, what it shows in words and the names of the data sets: the book's
    figures take their alternative text and the end of their captions from there.
    """
    from IPython.display import display

    source = source if isinstance(source, Caption) else caption(source)
    figure = getattr(output, "figure", output)
    if hasattr(figure, "savefig"):
        import matplotlib.pyplot as plt

        from vaegap.describing import describe

        said = {SVG: {"alt": describe(figure), "data": list(source.data)}}
        display(_pictures(figure), metadata=said, raw=True)  # type: ignore[no-untyped-call, unused-ignore]
        plt.close(figure)
    else:
        import pandas as pd

        with pd.option_context("display.max_colwidth", None):  # else long cells end in "..."
            plain = isinstance(output, str) and not hasattr(output, "_repr_markdown_")
            if isinstance(output, pd.DataFrame) and output.attrs.get("words"):
                # pandas writes the end of a line as a backslash and an n
                lines = output.to_html(classes="words").replace("\\n", "<br>")
                shown = {"text/html": lines, "text/plain": repr(output)}
                display(shown, raw=True)  # type: ignore[no-untyped-call, unused-ignore]
            else:
                display(Caption(output) if plain else output)  # type: ignore[no-untyped-call, unused-ignore]
    display(source)  # type: ignore[no-untyped-call, unused-ignore]


def _flat(source: Any) -> Any:
    """Several `Found` by title as one."""
    if not isinstance(source, Mapping) or not any(isinstance(found, Found) for found in source.values()):
        return source
    flat = Found()
    for title, found in source.items():
        flat.update({f"{title}, {label}": records for label, records in found.items()})
        flat.missing += [(f"{title}, {label}", seed, run) for label, seed, run in found.missing]
        flat.fewer += [(f"{title}, {label}", *rest) for label, *rest in found.fewer]
    return flat


def _labelled(source: Any) -> list[tuple[str, Record]]:
    if isinstance(source, Record):
        return [("", source)]
    if isinstance(source, Mapping):
        return [(f"{label}, seed {r.params.get('seed', 0)}", r) for label, records in source.items() for r in records]
    if hasattr(source, "columns"):  # a ledger
        ids = sorted({run for found in source["runs"] for run in found})
        return [("", record) for run in ids if (record := runs.find(run)) is not None]
    return [("", record) for record in source]


def _gaps(missing: Iterable[tuple[str, int, str]]) -> list[str]:
    seeds: dict[str, list[str]] = {}
    for label, seed, _ in missing:
        seeds.setdefault(label, []).append(str(seed))
    return [f"{label}, seed{'s' * (len(each) > 1)} {', '.join(each)}" for label, each in seeds.items()]


def _one(record: Record) -> str:
    parts = [f"commit {_commit(record)}", f"profile {record.info['profile']}"]
    parts += [_machine(record.info.get("provenance", {})), _duration(record.info.get("wall_seconds", 0.0))]
    if record.stale:
        parts.append(f"code changed since: {', '.join(record.changed)}")
    return "· " + " · ".join(parts)


def _commit(record: Record) -> str:
    made = record.info.get("provenance", {})
    return (made.get("commit") or "none")[:9] + "+" * bool(made.get("dirty"))


def _machine(made: Mapping[str, Any]) -> str:
    threads = made.get("threads") or 1
    return str(made.get("accelerator") or f"{made.get('processor')}, {threads} thread{'s' * (threads != 1)}")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _data(found: Iterable[Record]) -> tuple[str, ...]:
    """The data sets of some records, each once, as the pages call them."""
    names = (str(record.params["dataset"]) for record in found if "dataset" in record.params)
    return tuple(_distinct(DATASETS.get(name, name) for name in names))


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _run(run: str) -> str:
    name = html.escape(run)
    return f'<a href="../results/{name}/run.json">{name}</a>' if run else ""


def _pictures(figure: Figure) -> dict[str, str]:
    def drawn(kind: str) -> bytes:
        stream = io.BytesIO()
        figure.savefig(stream, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
        return stream.getvalue()

    return {SVG: drawn("svg").decode(), "image/png": base64.b64encode(drawn("png")).decode()}
