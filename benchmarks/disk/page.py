"""The page of the docs: a table of each kind of measurement and shape, and the promises."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from .asynchronous import PEERS
from .harness import Plan, Results, Series
from .promises import CACHE, DIRECT, TWO_COPIES, TWO_READS, promises, ratio
from .readers import READERS
from .runs import KEEPERS
from .savers import SAVERS
from .shapes import SHAPES

Cell = Callable[[Series], float | None]

INTRO = """\
Everything below was measured in one run. Each peer works in a process of its own, peers take turns and the order
rotates from round to round. In a process the first save finds memory that the kernel has to bring first; it is shown by
itself and counts in no median. *Durable* is what the call took and then fsync of every file and folder that it left,
which costs nothing where the library did it. *Memory* is the most that a save or load added to RssAnon and RssShmem of the
process and its children, every 5 ms: what the kernel cannot give up. Mapped files count in VmHWM and not here. The
limits are measured in the same turns: flat writes of as many bytes, copies, reads and hashes. Compare minima where
writes go through the page cache, whose first touch of memory varies most, and medians where they do not.

Loading reads from the page cache, and touching means reading every byte on one thread. What was loaded is compared with
what was saved. Saving in the background is beside a loop on one thread, which computes as long as it takes to change
every tensor in place, and then changes them: *stall* is how long the call took, *slowdown* by how much the loop was
late until the save was done. Locks that a library offers are around the change. Buffers that a library can make ahead
are made ahead.
"""


def cell(value: float | None, scale: float, digits: int) -> str:
    """A number, or nothing."""
    return "" if value is None else f"{value * scale:.{digits}f}"


def median(name: str) -> Cell:
    """A median."""
    return lambda series: series.median(name)


def least(name: str) -> Cell:
    """A minimum."""
    return lambda series: series.least(name)


def to(value: Cell, reference: float | None) -> Cell:
    """The ratio to a figure of another subject."""
    return lambda series: ratio(value(series), reference)


def markdown(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table."""
    names = list(columns)
    lines = [f"| {' | '.join(names)} |", f"| --- |{' ---: |' * (len(names) - 1)}"]
    return "\n".join([f"## {title}", "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


Columns = dict[str, tuple[Cell, float, int]]


def table(title: str, found: dict[str, Series], columns: Columns) -> str:
    """One row for each subject; one that failed says why in the place of figures."""
    rows = []
    for name, series in found.items():
        if series.failed:
            rows.append([name, series.failed.replace("|", "/"), *[""] * (len(columns) - 1)])
        else:
            rows.append([name, *(cell(value(series), scale, digits) for value, scale, digits in columns.values())])
    return markdown(title, ["", *columns], rows)


def saving(results: Results, shape: str) -> str:
    """The saves of a shape."""
    found = results.subjects("save", shape, list(SAVERS))
    direct = results.of("save", shape, DIRECT).median("durable")
    cached = results.of("save", shape, CACHE).least("returned")
    ours = results.of("save", shape, "torchkeep").median("durable")
    columns: Columns = {
        "first, s": (median("first"), 1, 3),
        "returned, median s": (median("returned"), 1, 3),
        "min s": (least("returned"), 1, 3),
        "min / page cache": (to(least("returned"), cached), 1, 2),
        "durable, median s": (median("durable"), 1, 3),
        "durable, min s": (least("durable"), 1, 3),
        "durable / O_DIRECT": (to(median("durable"), direct), 1, 2),
        "durable / torchkeep's": (to(median("durable"), ours), 1, 2),
        "memory, MB": (median("memory"), 1, 0),
        "on disk, MB": (median("on disk"), 1e-6, 1),
        "files": (median("files"), 1, 0),
    }
    return table(f"Saving {shape}", found, columns)


def loading(results: Results, shape: str) -> str:
    """The loads of a shape."""
    found = results.subjects("load", shape, list(READERS))
    limits = results.of("limits", shape, "limits")
    ours = results.of("load", shape, "torchkeep")
    columns: Columns = {
        "first tensor in a fresh process, ms": (median("first tensor, fresh"), 1e3, 1),
        "first tensor, min ms": (least("first tensor"), 1e3, 1),
        "dict of all, min s": (least("open"), 1, 4),
        "all bytes, median s": (median("all"), 1, 3),
        "min s": (least("all"), 1, 3),
        "min / mmap": (to(least("all"), limits.least("page cache, mmap and touch all")), 1, 2),
        "min / torchkeep's": (to(least("all"), ours.least("all")), 1, 2),
        "memory, MB": (median("memory"), 1, 0),
    }
    if shape == "mid":
        columns |= {
            "into a model, min s": (least("into"), 1, 3),
            "into / copy of 2 threads": (to(least("into"), limits.least(TWO_READS)), 1, 2),
            "into / torchkeep's": (to(least("into"), ours.least("into")), 1, 2),
        }
    return table(f"Loading {shape}", found, columns)


def in_background(results: Results, shape: str) -> str:
    """The saves beside a loop."""
    copied = results.of("limits", shape, "limits").median(TWO_COPIES)
    ours = results.of("async", shape, "torchkeep").median("lost")
    columns: Columns = {
        "first stall, ms": (median("stall, first"), 1e3, 0),
        "stall, median ms": (median("stall, later"), 1e3, 0),
        "stall / copy of 2 threads": (to(median("stall, later"), copied), 1, 2),
        "slowdown, ms": (median("slowdown"), 1e3, 0),
        "stall + slowdown, ms": (median("lost"), 1e3, 0),
        "that / torchkeep's": (to(median("lost"), ours), 1, 2),
        "durable after, s": (median("durable"), 1, 2),
        "a step alone, ms": (median("step"), 1e3, 0),
        "memory of the first, MB": (median("memory, first"), 1, 0),
        "of later ones, MB": (median("memory, later"), 1, 0),
    }
    return table(f"Saving {shape} in the background", results.subjects("async", shape, list(PEERS)), columns)


def snapshots(results: Results, shape: str) -> str:
    """The snapshots of one training."""
    columns: Columns = {}
    for kind, name in {"first": "first", "unchanged": "nothing changed", "changed": "after a step"}.items():
        columns[f"{name}, median ms"] = (median(kind), 1e3, 1)
        columns[f"{name}, MB"] = (median(f"{kind} bytes"), 1e-6, 2)
    columns["bytes that train, MB"] = (median("trained bytes"), 1e-6, 2)
    columns["manifest, MB"] = (median("manifest bytes"), 1e-6, 3)
    return table(f"Snapshots of {shape}", results.subjects("run", shape, list(KEEPERS)), columns)


def machine(results: Results) -> str:
    """The limits, in GB/s of each shape."""
    found = {shape: results.of("limits", shape, "limits") for shape in SHAPES}
    found = {shape: series for shape, series in found.items() if not series.failed}
    names = dict.fromkeys(name for series in found.values() for name in series.samples if name != "bytes")
    rows = []
    for name in names:
        speeds = [ratio(series.median("bytes"), least(name)(series)) for series in found.values()]
        rows.append([name, *(cell(speed, 1e-9, 1) for speed in speeds)])
    for name in (CACHE, DIRECT):
        saved = [results.of("save", shape, name) for shape in found]
        rows.append([name, *(cell(ratio(one.median("bytes"), one.least("durable")), 1e-9, 1) for one in saved)])
    return markdown("Limits of the machine, best of the run, GB/s", ["", *found], rows)


def write(results: Results, plan: Plan) -> str:
    """The page."""
    command = f"python -m benchmarks.disk --rounds {plan.rounds} --repeats {plan.repeats} --scale {plan.scale:g}"
    lines = [f"Written by `{command}`: {os.cpu_count()} cores, {results.versions}."]
    lines += [f"- *{shape}*: {text}." for shape, text in SHAPES.items() if shape in plan.shapes]
    parts = ["# Saving and loading beside the peers", lines[0], INTRO.strip(), "\n".join(lines[1:]), machine(results)]
    parts += [saving(results, shape) for shape in plan.shapes]
    parts += [loading(results, shape) for shape in plan.shapes if shape in {"mid", "small"}]
    parts += [in_background(results, shape) for shape in plan.shapes if shape == "train"]
    parts += [snapshots(results, shape) for shape in plan.shapes if shape != "small"]
    rows = [promise.cells() for promise in promises(results)]
    parts.append(markdown("Promises", ["", "measured", "promised", ""], rows))
    return "\n\n".join(parts) + "\n"
