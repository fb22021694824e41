"""Rows of activations in memory or in a file, given out by the place of the example."""

from __future__ import annotations

import json
import os
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..core.tensors import dtype_name


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
    order = sorted(range(like.dim()), key=lambda place: (-int(like.stride(place)), place))
    if dim is None:
        return order, (0,)
    return order, tuple(count if place == dim else like.shape[place] for place in order)


def rows_on_disk(folder: Path, tensors: Sequence[tuple[torch.Tensor, int | None]], count: int) -> list[Rows]:
    """Room in a safetensors file of a folder, which goes when the rows do.

    Args:
        folder: made if need be.
        tensors: what the module gave for the first batch, each with the dimension of its examples.
        count: how many examples there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.safetensors"
    header, end, sizes = {}, 0, []
    for number, (tensor, dim) in enumerate(tensors):
        shape = layout(tensor, dim, count)[1]
        nbytes = torch.Size(shape).numel() * tensor.element_size()
        name = {"dtype": dtype_name(tensor.dtype), "shape": list(shape), "data_offsets": [end, end + nbytes]}
        header[f"rows.{number}"] = name
        sizes.append((shape, end, nbytes))
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
    made = []
    for (tensor, dim), (shape, offset, nbytes) in zip(tensors, sizes, strict=True):
        memory = None
        if nbytes:
            mapped = np.memmap(path, dtype=np.uint8, mode="r+", offset=start + offset, shape=(nbytes,))
            memory = torch.from_numpy(mapped).view(tensor.dtype).view(shape)
        made.append(Rows(tensor, dim, count, memory))
    for rows in made[:1]:
        weakref.finalize(rows, path.unlink, missing_ok=True)
    return made
