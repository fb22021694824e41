"""Drawing a run: a figure, a page, or a chart in characters, each with what the curves say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .core.diagnosis import Diagnosis
from .diagnosing import diagnose, understood
from .engines.files import write_file
from .errors import SaveError
from .reading import Historic
from .views.chart import chart
from .views.figures import as_svg, figure
from .views.page import page

_PAGES = (".html", ".htm")
_FIGURES = (".png", ".svg", ".pdf")


def plot(
    history: Historic, path: str | os.PathLike[str] | None = None, *, diagnosis: Diagnosis | None = None, **known: Any
) -> Any:
    """Draw learning curves: training and validation, the gap, the best epoch, freeze phases, snapshots, the verdict.

    >>> tk.plot("runs/flowers", "curves.png", classes=5)                              # doctest: +SKIP

    Args:
        history: what `tk.read_history` takes.
        path: where to write it: `.png`, `.svg`, `.pdf`, or `.html` for one page with the findings and remedies as well.
        diagnosis: what to say; made of the history if None.
        known: what `tk.diagnose` takes: classes, n_val, metric, names ...

    Returns:
        A `matplotlib.figure.Figure`, which a notebook shows.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        SaveError: the file cannot be written there, or the ending is another one.
        OpenError, SelectorError: as `tk.diagnose`.
    """
    target = None if path is None else Path(path)
    if target is not None and target.suffix not in {*_PAGES, *_FIGURES}:
        endings = ", ".join((*_FIGURES, *_PAGES))
        raise SaveError(f"{target} has another ending than {endings}", hint="the ending says what is written")
    curves, setting = understood(history, known.get("metric"), known.get("names"), known.get("setting"))
    said = diagnose(history, **known) if diagnosis is None else diagnosis
    drawn = figure(curves, said, setting)
    if target is not None and target.suffix in _PAGES:
        text = page(said, as_svg(drawn)).encode(errors="backslashreplace")
        write_file(target, [text], nbytes=len(text), durable=False)
    elif target is not None:
        try:
            drawn.savefig(target, dpi=150)
        except OSError as error:
            raise SaveError(f"{target} cannot be written: {error.strerror or error}") from error
    return drawn


def sketch(history: Historic, **known: Any) -> str:
    """The losses as a few lines of characters, for a terminal; empty where there are no curves."""
    return chart(understood(history, known.get("metric"), known.get("names"), known.get("setting"))[0])
