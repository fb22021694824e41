"""Learning curves as a figure that is as readable in black and white."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np

from ..core.curves import Curves, Series, Setting
from ..core.diagnosis import Diagnosis
from ..errors import MissingDependencyError

_TRAIN = {"color": "0.35", "linestyle": "-", "linewidth": 1.6}
_VAL = {"color": "#1f5fa8", "linestyle": "--", "linewidth": 1.8}
_MARKED = 60  # points up to which each is marked


def figure(curves: Curves, diagnosis: Diagnosis, setting: Setting) -> Any:
    """A matplotlib Figure: losses above, the metric below, and in the caption what the curves say.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    pairs = [(curves.train_loss, curves.val_loss), (curves.train_metric, curves.val_metric)]
    pairs = [pair for pair in pairs if any(one is not None and len(one.finite) for one in pair)] or pairs[:1]
    drawn = blank(8, 3.2 * len(pairs) + 1.2)
    axes = drawn.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
    for place, (axis, (train, val)) in enumerate(zip(axes, pairs, strict=True)):
        _panel(axis, train, val, shaded=place == 0)
        _bands(axis, curves, setting, named=place == 0)
        _best(axis, curves, named=place == 0)
        axis.set_ylabel(_label(train, val))
        axis.grid(True, color="0.92")
        handles, labels = axis.get_legend_handles_labels()
        if handles:
            axis.legend(handles, labels, frameon=False, fontsize=8)
    axes[-1].set_xlabel(curves.unit)
    drawn.suptitle(textwrap.shorten(curves.title, 100), fontsize=10)
    drawn.supxlabel(_caption(diagnosis), fontsize=9)
    return drawn


def blank(width: float, height: float) -> Any:
    """An empty matplotlib Figure of so many inches.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "figures are drawn by matplotlib, which is not installed", hint="pip install 'torchkeep[doctor]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def as_svg(drawn: Any) -> str:
    """The figure as one SVG element, with text as text."""
    import matplotlib as mpl

    held = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "torchkeep"}):
        drawn.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
    text = held.getvalue()
    return text[text.index("<svg") :]


def _panel(axis: Any, train: Series | None, val: Series | None, shaded: bool) -> None:
    for series, look, marker in ((train, _TRAIN, "o"), (val, _VAL, "s")):
        if series is None or not len(series.finite):
            continue
        points = series.finite.thinned()
        marks = {"marker": marker, "markersize": 3} if len(points) <= _MARKED else {}
        axis.plot(points.x, points.y, label=series.name, **look, **marks)
    if shaded and train is not None and val is not None and len(train.finite) > 1 and len(val.finite) > 1:
        over = val.finite.thinned()
        below = np.interp(over.x, train.finite.x, train.finite.y)
        axis.fill_between(over.x, below, over.y, color="0.85", label="gap", zorder=0)
        _scale(axis, [train.finite.y, val.finite.y])


def _scale(axis: Any, values: list[Any]) -> None:
    """A loss that spans more than two decades is shown by its logarithm."""
    every = np.concatenate(values)
    if every.min() > 0 and every.max() > 100 * every.min():
        axis.set_yscale("log")


def _bands(axis: Any, curves: Curves, setting: Setting, named: bool) -> None:
    """Freeze phases as bands with their names, snapshots as ticks at the foot."""
    if curves.unit == "epoch" and np.isfinite(curves.end):
        starts = [first for first, _ in setting.phases]
        for place, (first, name) in enumerate(setting.phases):
            last = starts[place + 1] if place + 1 < len(starts) else max(curves.end, first)
            axis.axvspan(first, last, color="0.5", alpha=0.10 if place % 2 else 0.04, linewidth=0)
            if named:
                axis.annotate(
                    f"trains {name}", (first, 1.0), xycoords=("data", "axes fraction"), fontsize=7, va="bottom"
                )
    if setting.snapshots:
        axis.plot(
            setting.snapshots, np.zeros(len(setting.snapshots)), "|", color="0.2", markersize=8, clip_on=False,
            transform=axis.get_xaxis_transform(), label="snapshots" if named else "_snapshots",
        )  # fmt: skip


def _best(axis: Any, curves: Curves, named: bool) -> None:
    series = curves.val_metric or curves.val_loss
    if series is None or not len(series.finite):
        return
    at = float(series.x[series.best])
    axis.axvline(at, color="0.2", linestyle=":", linewidth=1.2, label=f"best: {at:g}" if named else "_best")


def _label(train: Series | None, val: Series | None) -> str:
    known = val if val is not None else train
    return "" if known is None else known.name.replace("val_", "").replace("train_", "")


def _caption(diagnosis: Diagnosis) -> str:
    first = diagnosis.remedies[0].action if diagnosis.remedies else ""
    text = f"{diagnosis.said}{'' if diagnosis.since is None else f' since {diagnosis.unit} {diagnosis.since:g}'}"
    return textwrap.fill(f"{text}. {f'Try: {first}.' if first else ''}", 110)
