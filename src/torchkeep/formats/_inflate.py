"""Compressed bytes as a source: inflated once, when they are first asked for, into a file that nobody can name."""

from __future__ import annotations

import lzma
import mmap
import tempfile
import zlib
from collections.abc import Callable
from typing import Any

from ..core.limits import Limits
from ..core.source import Buffer, Source, check_range
from ..errors import CorruptCheckpointError, OpenError, UnsafeCheckpointError

_STEP = 1 << 20


def raw_deflate() -> Any:
    """A decompressor for the records of a zip archive."""
    return zlib.decompressobj(-zlib.MAX_WBITS)


class Inflated:
    """What a compressed source inflates to.

    It lies in a temporary file without a name and is mapped from there, so it takes disk and no memory of its own.
    """

    def __init__(
        self, source: Source, fresh: Callable[[], Any], limits: Limits, *, name: str = "", nbytes: int | None = None
    ) -> None:
        """Nothing is read yet, unless the size is not known.

        Args:
            source: the compressed bytes, all of them.
            fresh: makes a decompressor of the standard library: zlib, bz2 or lzma.
            limits: bounds what it may inflate to.
            name: for messages; the source's own if empty.
            nbytes: the size it declares; inflating to another size is an error. None: it is inflated to find out.
        """
        self.name = name or source.name
        self._source = source
        self._fresh = fresh
        self._limits = limits
        self._map: mmap.mmap | None = None
        self._declared = nbytes
        self.trailing = 0
        if nbytes is not None:
            self._check_bound(nbytes)
            self.size = nbytes
        else:
            self.size = self._inflate()

    def read(self, offset: int, nbytes: int) -> Buffer:
        """A private view of the inflated bytes."""
        check_range(self, offset, nbytes)
        if not nbytes:
            return memoryview(b"")
        if self._map is None:
            self._inflate()
        assert self._map is not None
        return memoryview(self._map)[offset : offset + nbytes]

    def sibling(self, name: str) -> Source:
        """A neighbour of the compressed file."""
        return self._source.sibling(name)

    def _check_bound(self, nbytes: int) -> None:
        limits = self._limits
        if nbytes > limits.inflated_bytes and nbytes > limits.inflated_ratio * max(self._source.size, 1):
            raise UnsafeCheckpointError(
                f"inflates from {self._source.size:,} to more than {limits.inflated_bytes:,} bytes and more than "
                f"{limits.inflated_ratio} for each (Limits.inflated_bytes, Limits.inflated_ratio)",
                file=self.name,
                hint="weights do not compress like this; raise both limits if the file is to be trusted",
            )

    def _inflate(self) -> int:
        try:
            with tempfile.TemporaryFile(prefix="torchkeep-") as out:
                total = self._pour(out)
                out.flush()
                if self._declared is not None and total != self._declared:
                    raise CorruptCheckpointError(
                        f"inflates to {total:,} bytes and declares {self._declared:,}", file=self.name
                    )
                if total:
                    self._map = mmap.mmap(out.fileno(), total, access=mmap.ACCESS_COPY)
                return total
        except (zlib.error, lzma.LZMAError, EOFError, ValueError) as error:
            raise CorruptCheckpointError(
                f"cannot be inflated: {error}", file=self.name, hint="fetch or copy the file again"
            ) from error
        except OSError as error:
            if error.errno is None:  # what bz2 raises for damaged data
                raise CorruptCheckpointError(f"cannot be inflated: {error}", file=self.name) from error
            raise OpenError(
                f"cannot be inflated: {error.strerror}", file=self.name, hint="free space where temporary files go"
            ) from error

    def _pour(self, out: Any) -> int:
        """Inflate member after member; what follows the last one is counted as trailing."""
        total = at = 0
        size = self._source.size
        magic = bytes(self._source.read(0, min(3, size)))
        while at < size:
            total, at = self._pour_member(out, total, at)
            if self._declared is not None or bytes(self._source.read(at, min(3, size - at))) != magic:
                break
        self.trailing = size - at
        return total

    def _pour_member(self, out: Any, total: int, at: int) -> tuple[int, int]:
        """Inflate one member; answers the bytes in all so far, and where the member ends."""
        engine, size, feed = self._fresh(), self._source.size, b""
        while not engine.eof:
            if not feed and at < size and getattr(engine, "needs_input", True):
                count = min(_STEP, size - at)
                feed = bytes(self._source.read(at, count))
                at += count
            piece = engine.decompress(feed, _STEP)
            feed = getattr(engine, "unconsumed_tail", b"")  # only zlib hands back what it did not take
            if not piece and not feed and at >= size and not engine.eof:
                raise CorruptCheckpointError(
                    f"is truncated: its compressed data has no end at byte {size:,}",
                    file=self.name,
                    hint="fetch or copy the file again and compare its size with the original",
                )
            total += len(piece)
            if self._declared is not None and total > self._declared:
                raise CorruptCheckpointError(f"inflates to more than the {self._declared:,} bytes it declares")
            self._check_bound(total)
            out.write(piece)
        return total, at - len(engine.unused_data)
