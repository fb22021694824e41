"""Pickles that torch.save did not write: `pickle.dump` of tensors, arrays or dicts, one or several in a row.

Tensors in them are calls of torch.storage._load_from_bytes with a whole save as bytes, which is read inertly too.
"""

from __future__ import annotations

import re
from typing import Any

from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import StorageRef
from ..core.tree import Global
from ..errors import CorruptCheckpointError, OpenError, UnsupportedFeatureError
from ._assemble import Contents, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, TruncatedStreamError, Use, truncation_is_corruption, unpickle
from ._stream import unpickle_at
from ._torch import TensorReader, with_dangers
from .torch_legacy import joined

_TEXT = re.compile(rb"\(?[cPILSVF(\]})dltNi0-9pg]")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_MOST = 1000


class PlainPickle:
    """Reads bare pickles of every protocol. It is asked after every format that is a pickle with a meaning."""

    name = "plain_pickle"

    def sniff(self, probe: Probe) -> bool:
        """A pickle of protocol 2 or later begins with a mark of its own; of a text one the beginning must be read."""
        if probe.head[:1] == b"\x80" and probe.head[1:2] in {b"\2", b"\3", b"\4", b"\5"}:
            return True
        if not _TEXT.match(probe.head):
            return False
        seen: dict[Global, Use] = {}
        try:
            found = unpickle(probe.head, 0, Dialect(persistent=_any), Limits(opcodes=100_000), seen=seen)
        except TruncatedStreamError:
            return probe.size > len(probe.head) or any(map(_is_name, seen))
        except OpenError:
            return any(map(_is_name, seen))
        return any(map(_is_name, seen)) or isinstance(found.value, (dict, list, tuple)) or found.end == probe.size

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read every pickle of the file as data.

        Raises:
            CorruptCheckpointError: it is no valid pickle, or is cut.
            UnsupportedFeatureError: it refers to bytes outside of the pickle, as joblib's files do.
        """
        seen: dict[Global, Use] = {}
        reader = TensorReader(source, _nowhere, limits)
        values: list[Any] = []
        findings: list[Finding] = []
        at = 0
        while at < source.size and len(values) < _MOST:
            try:
                found = unpickle_at(source, at, reader.dialect, limits, stream="pickle", seen=seen)
            except OpenError as error:
                if not values or isinstance(error, UnsupportedFeatureError):
                    raise _named(with_dangers(error, seen), seen)  # noqa: B904 - it is the same error
                break
            values.append(found.value)
            at = found.end
        if any(named.module.startswith("joblib.") for named in seen):
            raise _joblib(source.name)
        if at < source.size:
            message = f"{source.size - at:,} bytes follow the pickle and are none"
            findings.append(Finding("trailing-data", "warning", message, f"byte {at}"))
        if len(values) > 1:
            findings.append(Finding("several-saves", "info", f"holds {len(values)} pickles one after another"))
        contents = Contents(joined(values), seen, findings=(*reader.findings, *findings))
        return checkpoint_from(source.name, self.name, contents, limits)


def _is_name(named: Global) -> bool:
    """Whether it could be imported: words of a text that begins like a pickle could not."""
    return _NAME.fullmatch(named.module) is not None and _NAME.fullmatch(named.name) is not None


def _any(ident: Any) -> Any:
    return None


def _nowhere(key: str, nbytes: int) -> StorageRef:
    raise CorruptCheckpointError(
        f"refers to storage {key[:100]!r}, and a bare pickle has none",
        hint="this may be the data.pkl out of an unpacked archive: pack its folder again, zip -0 -r new.pth folder",
    )


def _named(error: OpenError, seen: dict[Global, Use]) -> OpenError:
    joblib = any(named.module.startswith("joblib.") for named in seen)
    return _joblib(error.file) if joblib else error


def _joblib(file: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(
        "is a joblib file, whose arrays lie between its pickle's opcodes",
        file=file,
        hint="if you trust it: joblib.load it and save what is in it with tk.save or torch.save",
    )
