"""Position embeddings: one row for each place of a sequence or of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

import torch
from torch.nn.functional import interpolate

from ..core.plan import Fit
from ..core.tensors import TensorSpec

Grid = tuple[int, int]


class Positions:
    """Interpolates position embeddings of shape (places, width) or (1, places, width).

    >>> tk.load_into(vit, "vit224.pth", adapt={"pos_embed": tk.adapters.positions(prefix=1)})         # doctest: +SKIP

    Args:
        prefix: how many leading rows belong to class tokens and the like; they are copied.
        dims: 2 for the patches of images, row by row, which are interpolated bicubically; 1 for sequences, linearly.
        old: (height, width) of the grid in the source, where it is no square.
        new: the same of the model.

    Raises:
        ValueError: an argument is none of these.
    """

    name = "positions"

    def __init__(
        self, prefix: int = 0, *, dims: int = 2, old: Sequence[int] | None = None, new: Sequence[int] | None = None
    ) -> None:
        if isinstance(prefix, bool) or not isinstance(prefix, int) or prefix < 0:
            raise ValueError(f"prefix is {prefix!r}; it counts rows")
        if dims not in (1, 2):
            raise ValueError(f"dims is {dims!r}; positions lie in 1 or 2 dimensions")
        self.prefix, self.dims = prefix, dims
        self.old, self.new = _grid("old", old, dims), _grid("new", new, dims)

    @property
    def options(self) -> Mapping[str, Any]:
        """What makes it again."""
        options: dict[str, Any] = {"prefix": self.prefix, "dims": self.dims}
        return options | {key: list(grid) for key, grid in (("old", self.old), ("new", self.new)) if grid}

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit | None:
        """The number of places may differ; where it does not, nothing is done unless the grids do."""
        if target.shape == source.shape and (self.old or target) == (self.new or target):
            return None
        to, origin = target.shape, source.shape
        if len(to) != len(origin) or len(to) not in (2, 3) or to[-1] != origin[-1] or (to[0] != 1 and len(to) == 3):
            return Fit(refused=f"from {list(origin)} to {list(to)} more than the number of places differs")
        if origin[:-2] != to[:-2] or not source.dtype.is_floating_point or not target.dtype.is_floating_point:
            return Fit(refused=f"{source} cannot be interpolated to {target}")
        sizes = []
        for side, count, grid in (("source", origin[-2], self.old), ("model", to[-2], self.new)):
            size = self._size(count, grid)
            if size is None:
                return Fit(refused=self._problem(side, count, grid))
            sizes.append("x".join(map(str, size)))
        kept = f", {self.prefix} leading rows copied" if self.prefix else ""
        return Fit(f"positions {' -> '.join(sizes)}, {_MODES[self.dims]}{kept}", selects=False)

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The embeddings for as many places as the model has, computed in single precision at least."""
        places, width = value.shape[-2:]
        old, new = self._size(places, self.old), self._size(current.shape[-2], self.new)
        assert old is not None and new is not None
        rows = value.reshape(places, width)
        wide = rows[self.prefix :].to(torch.promote_types(rows.dtype, torch.float32))
        grid = wide.T.reshape(1, width, *old)
        grown = interpolate(grid, size=new, mode=_MODES[self.dims], align_corners=False)
        out = torch.cat([rows[: self.prefix], grown.reshape(width, -1).T.to(rows.dtype)])
        return out.reshape(current.shape)

    def _size(self, count: int, grid: Grid | None) -> tuple[int, ...] | None:
        """How the places of one side are laid out; None where that cannot be."""
        places = count - self.prefix
        if places < 1:
            return None
        if self.dims == 1:
            return (places,)
        size = grid or (isqrt(places), isqrt(places))
        return size if size[0] * size[1] == places else None

    def _problem(self, side: str, count: int, grid: Grid | None) -> str:
        places = count - self.prefix
        if places < 1:
            return f"{count} rows in the {side}, of which prefix={self.prefix} leaves none"
        if grid:
            return f"{places} places in the {side} are no grid of {grid[0]} x {grid[1]}"
        option = "old" if side == "source" else "new"
        return f"{places} places in the {side} are no square: give {option}=(height, width), prefix=, or dims=1"


_MODES = {1: "linear", 2: "bicubic"}


def _grid(what: str, grid: Sequence[int] | None, dims: int) -> Grid | None:
    if grid is None:
        return None
    if dims == 1:
        raise ValueError(f"{what}= is a grid, and dims=1 has none")
    height, width = grid
    if not (isinstance(height, int) and isinstance(width, int)) or height < 1 or width < 1:
        raise ValueError(f"{what} is {grid!r}; it is (height, width) of the grid")
    return height, width
