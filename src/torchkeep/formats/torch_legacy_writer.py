"""Writing what torch.save wrote until 1.5: five pickles in a row, then the storages one after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..core.source import Buffer
from ._pickle_writer import write_pickle
from ._tensor_writer import Stored, pickled
from ._torch_versions import TorchVersion
from .torch_legacy import MAGIC, PROTOCOL

_SIZES = {"short": 2, "int": 4, "long": 4}


@dataclass(frozen=True, slots=True)
class LegacyFile:
    """A file that is about to be written.

    Attributes:
        pickles: what stands before the storages.
        storages: in the order of the file.
        notes: what is not in the file as it was.
    """

    pickles: bytes
    storages: tuple[Stored, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Size of the file in bytes."""
        return len(self.pickles) + sum(8 + stored.nbytes for stored in self.storages)

    def pieces(self) -> Iterator[Buffer]:
        """The file piece by piece."""
        yield self.pickles
        for stored in self.storages:
            yield stored.count.to_bytes(8, "little")
            yield from stored.blocks()


def lay_out_legacy(root: Any, other: Callable[[Any], Any], version: TorchVersion) -> LegacyFile:
    """Decide every byte of the file but those of the storages.

    Args:
        root: plain values and lazy tensors, as `write_pickle` takes them.
        other: what to write in the place of values that such a file cannot have.
        version: whose ways are kept.

    Raises:
        UnsavableError: something in `root` cannot be said to that version.
    """
    content = pickled(root, other, version)
    storages = sorted(content.storages, key=lambda stored: stored.key)
    system = {"protocol_version": PROTOCOL, "little_endian": sys.byteorder == "little", "type_sizes": _SIZES}
    plain = (MAGIC, PROTOCOL, system)
    keys = [stored.key for stored in storages]
    before, after = (b"".join(write_pickle(value, _none, other) for value in some) for some in (plain, (keys,)))
    return LegacyFile(before + content.data + after, tuple(storages), content.notes)


def _none(tensor: Any) -> Any:
    raise AssertionError("these values hold no tensors")
