"""A checkpoint inside of a gzip, bzip2 or xz file: inflated into a temporary file, and then read as what it is."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source, probe_of
from ..core.table import human_bytes
from ..errors import CorruptCheckpointError
from ._inflate import Inflated

KINDS: tuple[tuple[bytes, str, Callable[[], Any]], ...] = (
    (b"\x1f\x8b\x08", "gzip", lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)),
    (b"BZh", "bzip2", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", "xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28)),
)


class Compressed:
    """Reads what a compressed file holds; the checksum of the compression is checked on the way."""

    name = "compressed"

    def sniff(self, probe: Probe) -> bool:
        """Whether it begins as gzip, bzip2 or xz files do."""
        return any(probe.head.startswith(magic) for magic, _, _ in KINDS)

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Inflate the whole file, which is the price of a compressed checkpoint, and open what was in it.

        Raises:
            CorruptCheckpointError: the compressed data is damaged or cut.
            UnsafeCheckpointError: it inflates to more than the limits allow.
        """
        from ._dispatch import open_inner

        inside, kind = self._inflated(source, limits)
        found = open_inner(inside, limits)
        notes = [Finding("compressed", "info", _MESSAGE.format(kind=kind, size=human_bytes(inside.size)))]
        if inside.trailing:
            message = f"{inside.trailing:,} bytes follow the compressed data"
            notes.append(Finding("trailing-data", "warning", message))
        return replace(found, findings=(*found.findings, *notes))

    def verify(self, source: Source, limits: Limits) -> list[tuple[str, bool, int]]:
        """Inflating it compares its checksum, and raises when that is wrong: (kind, True, bytes)."""
        inside, kind = self._inflated(source, limits)
        return [(f"{kind} data", True, inside.size)]

    def _inflated(self, source: Source, limits: Limits) -> tuple[Inflated, str]:
        head = probe_of(source).head
        for magic, kind, fresh in KINDS:
            if head.startswith(magic):
                return Inflated(source, fresh, limits), kind
        raise CorruptCheckpointError("is no gzip, bzip2 or xz file", file=source.name)


_MESSAGE = "is a {kind} file, so all {size} of it were inflated to open it; `torchkeep convert` makes it lazy"
