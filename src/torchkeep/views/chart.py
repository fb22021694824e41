"""A small chart of curves in characters, for a terminal."""

from __future__ import annotations

import numpy as np

from ..core.curves import Curves, Series

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille cell, from the top down
_BLANK = 0x2800


def chart(curves: Curves, width: int = 64, height: int = 10) -> str:
    """The losses as lines of dots: training every other dot, validation every dot; empty where there is nothing.

    Args:
        width, height: in characters; a character has two dots beside and four above each other.
    """
    drawn = [(one.finite, gap) for one, gap in ((curves.train_loss, 2), (curves.val_loss, 1)) if one is not None]
    drawn = [(one, gap) for one, gap in drawn if len(one) > 1]
    if not drawn:
        return ""
    low, high = _range(np.concatenate([one.y for one, _ in drawn]))
    left, right = (f(one.x[at] for one, _ in drawn) for f, at in ((min, 0), (max, -1)))
    cells = np.zeros((height, width), dtype=np.int64)
    for series, gap in drawn:
        _dot(cells, series, gap, (left, right), (low, high))
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    rows = [f"{labels.get(at, ''):>9} {''.join(chr(_BLANK + cell) for cell in row)}" for at, row in enumerate(cells)]
    names = ", ".join(f"{one.name} {'sparse' if gap == 2 else 'dense'}" for one, gap in drawn)
    return "\n".join([*rows, f"{'':>9} {curves.unit} {left:g} to {right:g}: {names}"])


def _range(values: np.ndarray) -> tuple[float, float]:
    """Low and high; a first few values far above the others do not flatten the rest."""
    low, high = float(values.min()), float(np.quantile(values, 0.98))
    return low, high if high > low else low + 1


def _dot(cells: np.ndarray, series: Series, gap: int, across: tuple[float, float], up: tuple[float, float]) -> None:
    height, width = cells.shape
    columns = np.arange(0, 2 * width, gap)
    x = across[0] + (across[1] - across[0]) * columns / (2 * width - 1)
    inside = (x >= series.x[0]) & (x <= series.x[-1])
    y = np.interp(x[inside], series.x, series.y)
    rows = np.clip(np.round((up[1] - y) / (up[1] - up[0]) * (4 * height - 1)), 0, 4 * height - 1).astype(int)
    for column, row in zip(columns[inside], rows, strict=True):
        cells[row // 4, column // 2] |= _DOTS[row % 4][column % 2]
