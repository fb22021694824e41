"""Drawing a run: a figure, a page, or a chart in characters, each with what the curves say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .core.advice import Advice
from .core.diagnosis import Diagnosis
from .diagnosing import diagnose, understood
from .engines.files import write_file
from .errors import DataError, SaveError
from .reading import Historic
from .views.advice import advice_page, sweep_figure
from .views.chart import chart
from .views.figures import as_svg, figure
from .views.page import page

_PAGES = (".html", ".htm")
_FIGURES = (".png", ".svg", ".pdf")


def plot(
    history: Historic | Advice,
    path: str | os.PathLike[str] | None = None,
    *,
    diagnosis: Diagnosis | None = None,
    **known: Any,
) -> Any:
    """Draw learning curves: training and validation, the gap, the best epoch, freeze phases, snapshots, the verdict.

    >>> tk.plot("runs/flowers", "curves.png", classes=5)                              # doctest: +SKIP

    Args:
        history: what `tk.read_history` takes; or what `tk.advise` gives, whose figure has the candidates that were
            measured, their accuracy and their cost.
        path: where to write it: `.png`, `.svg`, `.pdf`, or `.html` for one page with all that is said as well.
        diagnosis: what to say; made of the history if None.
        known: what `tk.diagnose` takes: classes, n_val, metric, names ...

    Returns:
        A `matplotlib.figure.Figure`, which a notebook shows; None of advice for which nothing was measured.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SaveError: the file cannot be written there, or the ending is another one.
        DataError: a figure of advice is asked for, and nothing was measured.
        OpenError, SelectorError: as `tk.diagnose`.
    """
    target = None if path is None else Path(path)
    if target is not None and target.suffix not in {*_PAGES, *_FIGURES}:
        endings = ", ".join((*_FIGURES, *_PAGES))
        raise SaveError(f"{target} has another ending than {endings}", hint="the ending says what is written")
    if isinstance(history, Advice):
        return _plot_advice(history, target)
    curves, setting = understood(history, **_of_curves(known))
    said = diagnose(history, **known) if diagnosis is None else diagnosis
    drawn = figure(curves, said, setting)
    _write(target, drawn, lambda: page(said, as_svg(drawn)))
    return drawn


def _plot_advice(advice: Advice, target: Path | None) -> Any:
    paged = target is not None and target.suffix in _PAGES
    drawn = None if advice.sweep is None else sweep_figure(advice.sweep, advice.title, advice.said)
    if drawn is None and not paged:
        raise DataError("nothing was measured that could be drawn", hint="tk.advise(..., sweep=True), or --sweep")
    _write(target, drawn, lambda: advice_page(advice, "" if drawn is None else as_svg(drawn)))
    return drawn


def _write(target: Path | None, drawn: Any, paged: Callable[[], str]) -> None:
    """A page or a figure, as the ending says."""
    if target is not None and target.suffix in _PAGES:
        text = paged().encode(errors="backslashreplace")
        write_file(target, [text], nbytes=len(text), durable=False)
    elif target is not None:
        try:
            drawn.savefig(target, dpi=150)
        except OSError as error:
            raise SaveError(f"{target} cannot be written: {error.strerror or error}") from error


def sketch(history: Historic, **known: Any) -> str:
    """The losses as a few lines of characters, for a terminal; empty where there are no curves."""
    return chart(understood(history, **_of_curves(known))[0])


def _of_curves(known: dict[str, Any]) -> dict[str, Any]:
    return {name: known[name] for name in ("metric", "names", "setting", "mode") if name in known}
