"""Advice as a figure and as a page: how accurate each way of training is, and what it costs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from html import escape
from typing import Any

from ..core.advice import Advice
from ..core.similarity import SURE
from ..core.sweep_report import SweepReport
from ..core.table import Table
from .figures import blank
from .page import framed

_MARKS = {"helps": "^", "does not matter": "o", "hurts": "v", "not compared": "s", "undertrained": "x"}


def sweep_figure(report: SweepReport, title: str, said: str) -> Any:
    """A matplotlib Figure: a row a candidate, its accuracy with an interval of 95 % at the left, its cost at the right.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    names = [f"{one.name}  \N{BLACK RIGHT-POINTING SMALL TRIANGLE}" if one.name == report.chosen else one.name
             for one in report.candidates]  # fmt: skip
    drawn = blank(8.5, 0.42 * len(names) + 2.2)
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    _accuracies(left, report)
    each = [one.seconds / one.trials for one in report.candidates]
    right.barh(range(len(names)), each, height=0.55, color="0.75", edgecolor="0.2")
    left.set_yticks(range(len(names)), map(_as_it_is, names))
    left.invert_yaxis()
    left.set_xlabel("accuracy on examples held out; bars: 95 % of the difference to the best")
    right.set_xlabel("seconds of a training")
    for axis in (left, right):
        axis.grid(True, axis="x", color="0.92")
        axis.set_axisbelow(True)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)
    drawn.suptitle(_as_it_is(textwrap.shorten(title, 100)), fontsize=10)
    drawn.supxlabel(_as_it_is(textwrap.fill(f"{said}.", 110)), fontsize=9)
    return drawn


def _as_it_is(text: str) -> str:
    """Text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _accuracies(axis: Any, report: SweepReport) -> None:
    """Points, by zone each of a shape of its own; the chosen one is filled, and fresh weights have a line."""
    labels = set()
    for place, one in enumerate(report.candidates):
        fresh = one.gain is None and one.zone == "not compared"
        label = "fresh weights" if fresh else one.zone if one.zone == "undertrained" else f"transfer {one.zone}"
        if fresh:
            axis.axvline(one.score, color="0.4", linestyle=":", linewidth=1.2, zorder=0)
        axis.errorbar(
            one.score, place, xerr=SURE * one.stderr, fmt=_MARKS[one.zone], color="0.1", capsize=3, markersize=8,
            markerfacecolor="0.1" if one.name == report.chosen else "white",
            label=label if label not in labels else f"_{place}",
        )  # fmt: skip
        labels.add(label)
    low, high = axis.get_xlim()
    axis.set_xlim(max(low, -0.01), min(high, 1.01))


def advice_page(advice: Advice, svg: str) -> str:
    """The whole page; it loads nothing. Without a figure, if `svg` is empty."""
    return framed(
        advice.title,
        [
            f'<p class="verdict">{escape(advice.said)}</p>',
            *([f"<figure>{svg}</figure>"] if svg else []),
            *(_section(table) for table in advice.tables()),
            "<h2>To go on</h2>",
            f"<pre>{escape(chr(10).join(advice.go_on()))}</pre>",
        ],
    )


def _section(table: Table) -> str:
    """A table as HTML."""
    facts = [f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in table.facts if value]
    parts = [f"<h2>{escape(table.title)}</h2>", *_table(facts)]
    if table.rows:
        head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
        cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows)
        parts += _table([f"<tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in cells)])
    return "\n".join([*parts, *(f"<p>{escape(note)}</p>" for note in table.notes)])


def _table(rows: Iterable[str]) -> list[str]:
    listed = "".join(rows)
    return [f"<table>{listed}</table>"] if listed else []
