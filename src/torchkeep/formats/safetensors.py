"""safetensors files: a JSON header that says everything, then the bytes of the tensors without gaps.

The reader is as strict as the specification: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec
import numpy as np

from ..core.about import from_metadata
from ..core.checkpoint import Checkpoint, Provenance
from ..core.limits import Limits
from ..core.made import Made
from ..core.source import Probe, Source
from ..core.tensors import BY_SAFETENSORS, LazyTensor, StorageRef, TensorSpec, contiguous_stride
from ..errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFeatureError
from ._facts import read_facts, with_facts
from ._pause import collector_paused

_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_METADATA = "__metadata__"
_BLOCK = 1 << 16
_FIRST = f'{{"{_METADATA}":'.encode()

if TYPE_CHECKING:
    Code = str
else:
    Code = Literal[tuple(BY_SAFETENSORS)]  # one object for each code, and not one for each tensor


class Span(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """[begin, end] of a tensor's bytes, from the end of the header on."""

    start: int
    end: int


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One tensor of a header: its dtype's code, its shape, and where its bytes lie."""

    dtype: Code
    shape: tuple[int, ...]
    data_offsets: Span

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.data_offsets.start

    @property
    def end(self) -> int:
        """Where they end."""
        return self.data_offsets.end


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the file's text metadata, its tensors by name, where their bytes begin, and the raw JSON.

    `ordered` says that the tensors are known to stand in the order of their bytes.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int
    raw: bytes
    ordered: bool = False

    def by_place(self) -> dict[str, Entry]:
        """The tensors in the order of their bytes."""
        if self.ordered:
            return self.entries
        return dict(sorted(self.entries.items(), key=lambda item: _OFFSETS(item[1])))


_ENTRIES = msgspec.json.Decoder(dict[str, Entry])
_TEXTS = msgspec.json.Decoder(dict[str, str])
_OFFSETS = attrgetter("data_offsets.start", "data_offsets.end")


class Safetensors:
    """Reads safetensors files."""

    name = "safetensors"

    def sniff(self, probe: Probe) -> bool:
        """A length that fits the file or an immediate `{`, and an object near the place where the header begins.

        Text files are left out: eight printable characters are no length.
        """
        head = probe.head
        if probe.size <= 8 or all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:8]):
            return False
        length = int.from_bytes(head[:8], "little")
        return head[8:9] == b"{" or (length <= probe.size - 8 and b"{" in head[8:16])

    @collector_paused()
    def open(self, source: Source, limits: Limits, *, whole: bool = True) -> Checkpoint:
        """Read the header and none of the tensors; a cut file opens if it need not be `whole`."""
        header = read_header(source, limits, whole=whole)
        facts = read_facts(header.metadata, header.raw, source.name)
        entries = header.entries if facts is not None and facts.version > 1 else header.by_place()
        ckpt = Checkpoint(
            source.name,
            self.name,
            _lazies(source, entries, header.data_start),
            metadata=header.metadata,
            provenance=Provenance(reasons=("a safetensors header names no producer",)),
            about=from_metadata(header.metadata if facts is None else {}),
        )
        return ckpt if facts is None else with_facts(ckpt, facts, source, limits)


def stored_tensors(source: Source, limits: Limits) -> Mapping[str, LazyTensor]:
    """The tensors as they lie in the file, parts of others among them, in the order of the header."""
    header = read_header(source, limits)
    return _lazies(source, header.entries, header.data_start)


def read_header(source: Source, limits: Limits, *, whole: bool = True) -> Header:
    """Read a header and hold it against the specification and the file, or if not `whole` against the first alone.

    Raises:
        CorruptCheckpointError: it breaks the specification, or does not fit the file.
        UnsafeCheckpointError: it is longer than the limits allow.
        UnsupportedFeatureError: a dtype is not one that this torch has.
    """
    fail = _failer(source.name)
    size = source.size
    length = int.from_bytes(bytes(source.read(0, 8)), "little")
    if length > size - 8:
        fail(f"declares a header of {length:,} bytes in a file of {size:,}; it is truncated or no safetensors file")
    if length > limits.header_bytes:
        raise UnsafeCheckpointError(
            f"has a header of {length:,} bytes; Limits.header_bytes allows {limits.header_bytes:,}", file=source.name
        )
    raw = bytes(source.read(8, length))
    nbytes = size - 8 - length
    quick = _quick(raw, nbytes, whole=whole)
    if quick is not None:
        return quick
    parsed = _parse(raw, fail)
    metadata = _metadata(parsed.pop(_METADATA, {}), fail)
    entries = {name: _entry(name, value, fail, source.name) for name, value in parsed.items()}
    _check_layout(entries, nbytes if whole else max([nbytes, *(entry.end for entry in entries.values())]), fail)
    return Header(metadata, entries, 8 + length, raw)


def _quick(raw: bytes, nbytes: int, *, whole: bool) -> Header | None:
    """A header as nearly all are, in a fifth of the time: None leaves it, and every error, to the strict reader.

    The checks are the same. msgspec is as strict about JSON, UTF-8, types and unknown fields; only of a key that
    stands twice it takes the last. So the quotes are counted: a tensor needs five texts, which are its name, three
    keys and its dtype. Where there are ten quotes for each tensor no key can be there twice.
    """
    metadata: dict[str, str] = {}
    rest = raw
    if raw[:1] != b"{":  # msgspec would skip spaces
        return None
    try:
        if raw.startswith(_FIRST):
            end = raw.find(b'"},"') + 2  # a guess; but a valid object is never the beginning of a longer one
            texts = memoryview(raw)[len(_FIRST) : end]
            metadata = _TEXTS.decode(texts)
            if _quotes(texts) != 4 * len(metadata):
                return None
            rest = b"".join((b"{", memoryview(raw)[end + 1 :]))
        entries = _ENTRIES.decode(rest)
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return None
    if _quotes(rest) != 10 * len(entries) or _METADATA in entries:
        return None
    ordered = _fit(entries.values(), nbytes, whole=whole)
    if not ordered and not _fit(sorted(entries.values(), key=_OFFSETS), nbytes, whole=whole):
        return None
    return Header(metadata, entries, 8 + len(raw), raw, ordered)


def _quotes(text: bytes | memoryview) -> int:
    """How many quotes begin or end a text in valid JSON, -1 where that would take more than a look at each byte."""
    array = np.frombuffer(text, dtype=np.uint8)
    count = 0
    for at in range(0, len(array), _BLOCK):  # a block stays in the cache
        block = array[at : at + _BLOCK]
        count += int(np.count_nonzero(block == ord('"')))
        escapes = at + np.flatnonzero(block == ord("\\"))
        if not np.all(array[escapes + 1] == ord('"')):
            return -1
        count -= len(escapes)
    return count


def _fit(entries: Iterable[Entry], nbytes: int, *, whole: bool) -> bool:
    """Whether tensors lie one behind the other and fill the data, each as long as its dtype and shape say."""
    known: dict[str, dict[tuple[int, ...], int]] = {}
    sizes: dict[tuple[int, ...], int] = {}
    dtype = ""
    position = 0
    for entry in entries:
        if entry.dtype != dtype:
            dtype = entry.dtype
            sizes = known.setdefault(dtype, {})
        size = sizes.get(entry.shape)
        if size is None:
            row = BY_SAFETENSORS.get(dtype)
            if row is None or not _counts(entry.shape):
                return False
            size = sizes[entry.shape] = prod(entry.shape) * row.torch.itemsize
        span = entry.data_offsets
        if span.start != position or span.end != position + size:
            return False
        position += size
    return position == nbytes or (not whole and nbytes < position < 1 << 62)


def _failer(file: str) -> Callable[..., NoReturn]:
    def fail(what: str, place: str = "header") -> NoReturn:
        raise CorruptCheckpointError(what, file=file, place=place, hint="fetch or write the file again")

    return fail


def _parse(raw: bytes, fail: Callable[..., NoReturn]) -> dict[str, Any]:
    if raw[:1] != b"{":
        fail(f"begins with {raw[:1]!r} where the specification demands '{{'")
    try:
        parsed = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        fail(f"is not UTF-8 at byte {8 + error.start}")
    except RecursionError:
        fail("is nested too deeply")
    except ValueError as error:
        fail(f"is no valid JSON: {error}")
    if not isinstance(parsed, dict):
        fail("is no JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:100]!r} stands twice in one object, and readers disagree which one counts")
    return out


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _metadata(value: Any, fail: Callable[..., NoReturn]) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        fail("has metadata that is not text by name", f"header, {_METADATA}")
    return value


def _entry(name: str, value: Any, fail: Callable[..., NoReturn], file: str) -> Entry:
    place = f"header, tensor {name[:100]!r}"
    if type(value) is not dict or value.keys() != _FIELDS:
        fail("is not described by exactly dtype, shape and data_offsets", place)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if type(shape) is not list or not _counts(shape):
        fail("has a shape that is no list of sizes", place)
    if type(offsets) is not list or len(offsets) != 2 or not _counts(offsets) or offsets[0] > offsets[1]:
        fail("has data_offsets that are no pair of begin and end", place)
    if type(dtype) is not str:
        fail("has a dtype that is no text", place)
    row = BY_SAFETENSORS.get(dtype)
    if row is None:
        raise UnsupportedFeatureError(
            f"has dtype {dtype[:40]!r}, which torchkeep does not read with this torch", file=file, place=place
        )
    start, end = offsets
    needed = prod(shape) * row.torch.itemsize
    if end - start != needed:
        fail(f"has shape {shape} of {dtype}, which is {needed:,} bytes, and data_offsets of {end - start:,}", place)
    return Entry(dtype, tuple(shape), Span(start, end))


def _counts(numbers: Sequence[Any]) -> bool:
    """Whether all are sizes; each below 2**62, so that products of many stay cheap."""
    if len(numbers) > 64:
        return False
    for number in numbers:  # noqa: SIM110 - this runs for every tensor, and a generator takes twice as long
        if type(number) is not int or not 0 <= number < 1 << 62:
            return False
    return True


def _check_layout(entries: dict[str, Entry], nbytes: int, fail: Callable[..., NoReturn]) -> None:
    """The tensors must cover the data exactly: what no tensor covers could hide anything."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            fail(f"{what}: it begins at {entry.start:,} and not at {position:,}", f"header, tensor {name[:100]!r}")
        position = entry.end
    if position > nbytes:
        fail(f"describes {position:,} bytes of tensors, the file has {nbytes:,}; it is truncated")
    if position < nbytes:
        fail(f"describes {position:,} bytes of tensors, and {nbytes - position:,} more follow")


def _lazies(source: Source, entries: dict[str, Entry], data_start: int) -> Mapping[str, LazyTensor]:
    return Made(entries, lambda _, entry: _lazy(source, entry, data_start))


@lru_cache(4096)
def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(BY_SAFETENSORS[dtype].torch, shape)


def _lazy(source: Source, entry: Entry, data_start: int) -> LazyTensor:
    span = entry.data_offsets
    storage = StorageRef(span.end - span.start, data_start + span.start)
    if data_start + span.end > source.size:  # a cut file, of which the rest is wanted
        storage.offset, storage.problem = None, f"lost: the file ends at byte {source.size:,}"
    return LazyTensor(source, storage, _spec(entry.dtype, entry.shape), contiguous_stride(entry.shape))
