"""Which format a source is of, by what is in it: its first bytes, the records of an archive, the files of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.registry import make_part
from ..core.source import Source, probe_of
from ..errors import OpenError, UnsafeCheckpointError
from . import FORMATS, Format, foreign
from ._zip import is_zip, read_archive


def recognise(source: Source, limits: Limits, formats: Iterable[str | Format] | None = None) -> Format:
    """The format that takes this source.

    Raises:
        UnknownFormatError, UnsupportedFeatureError: none does; the message names what it looks like.
    """
    probe = probe_of(source)
    if is_zip(probe.head):
        with suppress(OpenError):  # the format that takes every zip file reports it
            probe = replace(probe, entries=frozenset(read_archive(source, limits).entries))
    for part in formats if formats is not None else FORMATS:
        candidate: Format = make_part(FORMATS, part, "format")
        if candidate.sniff(probe):
            return candidate
    raise foreign.explain(probe, source.name)


def open_inner(source: Source, limits: Limits) -> Checkpoint:
    """The checkpoint in a source that was found inside another.

    Raises:
        UnsafeCheckpointError: it lies deeper than Limits.nesting.
    """
    if limits.nesting < 1:
        raise UnsafeCheckpointError("has files inside of files deeper than Limits.nesting allows", file=source.name)
    limits = replace(limits, nesting=limits.nesting - 1)
    return recognise(source, limits).open(source, limits)
