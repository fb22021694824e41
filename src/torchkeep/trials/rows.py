"""Rows of activations in memory or in a file, given out by the place of the example."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch


class Rows:
    """One tensor for all examples, laid out in memory as the module laid out that of a batch."""

    def __init__(self, like: torch.Tensor, dim: int | None, count: int, memory: torch.Tensor | None = None) -> None:
        """Make room.

        Args:
            like: what the module gave for the first batch.
            dim: where its examples lie; None where it is the same for every batch.
            count: how many examples there are.
            memory: the room, as `layout` has its shape; made if None.
        """
        self._dim, self._count = dim, count
        self._constant = like if dim is None else None
        self._order, self._shape = layout(like, dim, count)
        self._rows = torch.empty(self._shape, dtype=like.dtype, device=like.device) if memory is None else memory
        self._back = [self._order.index(place) for place in range(like.dim())]

    def put(self, start: int, batch: torch.Tensor) -> bool:
        """Keep those of a batch from a place on, without what is beyond the last; whether it is as the first was."""
        if self._constant is not None:
            return bool(batch.equal(self._constant))
        assert self._dim is not None
        length = min(batch.shape[self._dim], self._count - start)
        physical = batch.permute(self._order).narrow(self._order.index(self._dim), 0, length)
        self._rows.narrow(self._order.index(self._dim), start, length).copy_(physical)
        return True

    def take(self, places: torch.Tensor) -> torch.Tensor:
        """Those of some examples, in that order, as a tensor of its own."""
        if self._constant is not None:
            return self._constant.clone()
        assert self._dim is not None
        places = places.to(self._rows.device)
        return self._rows.index_select(self._order.index(self._dim), places).permute(self._back)


def layout(like: torch.Tensor, dim: int | None, count: int) -> tuple[list[int], tuple[int, ...]]:
    """The order in which the dimensions of a tensor lie in memory, and the shape in that order for all examples."""
    strides = like.stride()
    order = sorted(range(like.dim()), key=lambda place: (-strides[place], place))
    if dim is None:
        return order, (0,)
    return order, tuple(count if place == dim else like.shape[place] for place in order)


def rows_on_disk(folder: Path, tensors: Sequence[tuple[torch.Tensor, int | None]], count: int) -> list[Rows]:
    """Room on the disk, in files without a name, which go with the process, however that ends.

    Args:
        folder: on the disk; made if need be.
        tensors: what the module gave for the first batch, each with the dimension of its examples.
        count: how many examples there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for tensor, dim in tensors:
        shape = layout(tensor, dim, count)[1]
        nbytes = torch.Size(shape).numel() * tensor.element_size()
        memory = None
        if nbytes:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.truncate(nbytes)
                mapped = np.memmap(file, dtype=np.uint8, mode="r+", shape=(nbytes,))
            memory = torch.from_numpy(mapped).view(tensor.dtype).view(shape)
        made.append(Rows(tensor, dim, count, memory))
    return made
