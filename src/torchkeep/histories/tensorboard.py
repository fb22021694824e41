"""TensorBoard's event files, read without TensorBoard: every scalar, checked, and none left out to save room.

A file is a sequence of records: the length of the data in 8 bytes, their checksum, the data, their checksum. The data
are a protobuf message `Event`, of which the step, and the tags and values of scalars are read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.history import History
from ..core.roles import read_name, words_of
from ..core.rows import Column, Rows

_SMALL = 1 << 12  # bytes of an event that is a scalar; larger ones are pictures and graphs, looked at one by one
_LARGEST = 1 << 20
_MOST_KINDS = 512  # of events of one length that are told apart before each is read by itself
_FOLDERS = 2000
_PART = 1 << 20  # records whose lengths are checked at a time
_ODD = (ValueError, IndexError, TypeError, KeyError, struct.error)

Bytes = NDArray[np.uint8]


class EventFiles:
    """An event file, or a folder of them: names are tags, with the folder below in front."""

    name = "tensorboard"
    wants = "TensorBoard event files, one or the folder of a run"

    def sniff(self, path: Path, head: bytes) -> bool:
        """By the checksum of the first record's length; of a folder, when its event files are of one run."""
        return bool(_folders(path)) if path.is_dir() else _is_events(head)

    def read(self, path: Path) -> History:
        """All scalars, one record a step; where a later file went back to an earlier step, it counts."""
        folders = _folders(path) if path.is_dir() else {"": [path]}
        notes: list[str] = []
        curves: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        for prefix, files in folders.items():
            read = sorted((_read(file, notes) for file in files), key=lambda one: one.began)
            for tag in dict.fromkeys(tag for one in read for tag in one.scalars):
                name = f"{prefix}/{tag}" if prefix else tag
                curves[name] = _followed(name, [one.scalars[tag] for one in read if tag in one.scalars], notes)
        axis = "step"
        if any(_of_keras(name) for name in curves):
            axis, curves = "epoch", {name: one for name, one in curves.items() if _of_keras(name)}
            notes.append("scalars that Keras logged once an epoch are read, and no others")
        return History(_rows(curves, axis), notes=tuple(dict.fromkeys(notes)))


# -- folders ----------------------------------------------------------------------------------------------------------


def _folders(root: Path) -> dict[str, list[Path]]:
    """The event files of one run by the folder below its root that they lie in; none where there are several runs.

    Folders below are of the same run if the root has files of its own, as `add_scalars` makes them, or if they are
    called after sets, as Keras's `train` and `validation` are.
    """
    found: dict[str, list[Path]] = {}
    for place, (folder, below, files) in enumerate(os.walk(root)):
        below.sort()
        events = sorted(Path(folder, file) for file in files if _is_events(_head(Path(folder, file))))
        if events:
            found[Path(folder).relative_to(root).as_posix().removeprefix(".")] = events
        if place >= _FOLDERS:
            break
    if "" in found or not found:
        return found
    if len(found) == 1:
        return {"": next(iter(found.values()))}
    return found if all(read_name(name).held and len(words_of(name)) == 1 for name in found) else {}


def _of_keras(name: str) -> bool:
    """Whether a scalar's steps are epochs, as Keras says by the tag `epoch_loss` in its folders."""
    folder, _, tag = name.rpartition("/")
    return folder in {"train", "validation"} and tag.startswith("epoch_")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(12)
    except OSError:
        return b""


def _is_events(head: bytes) -> bool:
    if len(head) < 12:
        return False
    length, checksum = struct.unpack_from("<QI", head)
    counted = np.frombuffer(head[:8], dtype=np.uint8)[None]
    return bool(0 < length < 1 << 32 and int(_checksums(counted)[0]) == checksum)


def _followed(
    name: str, parts: list[tuple[NDArray[Any], NDArray[Any]]], notes: list[str]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Steps and values of one scalar through all files: ascending, the later one counts, and what a file went back
    behind is left out."""
    kept: list[tuple[NDArray[Any], NDArray[Any]]] = []
    left = 0
    for steps, values in parts:
        for place, (before, held) in enumerate(kept):
            stays = before < steps.min()
            left += len(before) - int(stays.sum())
            kept[place] = (before[stays], held[stays])
        kept.append((steps, values))
    if left:
        notes.append(f"a later event file went back to an earlier step: {left:,} values of {name!r} are left out")
    steps, values = (np.concatenate(one) for one in zip(*kept, strict=True))
    if len(steps) > 1 and bool((steps == steps[0]).all()):
        notes.append(f"{name!r} was logged {len(steps):,} times at step {steps[0]}: counted from 0 instead")
        return np.arange(len(steps)), values
    once, first = np.unique(steps[::-1], return_index=True)
    latest = values[::-1][first]
    other = int((latest[np.searchsorted(once, steps)] != values).sum()) if len(once) < len(steps) else 0
    if other:
        notes.append(f"{name!r} was logged again with another value at {other:,} steps: the later counts")
    return once, latest


def _rows(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], axis: str) -> Rows:
    """Scalars side by side, one record a step."""
    steps = np.unique(np.concatenate([steps for steps, _ in curves.values()] or [np.zeros(0, dtype=np.int64)]))
    columns = {name: Column(np.searchsorted(steps, at), values) for name, (at, values) in curves.items()}
    return Rows({axis: Column(np.arange(len(steps)), steps), **columns}, len(steps))


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass
class _Scalars:
    """What a file says: when it was begun, and the steps and values of each tag in order."""

    began: float = 0.0
    found: list[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]] = field(default_factory=list)
    scalars: dict[str, tuple[NDArray[Any], NDArray[Any]]] = field(default_factory=dict)

    def settle(self) -> None:
        """Put together what was found of each tag, in the order in which it stands in the file."""
        by_tag: dict[str, list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]] = {}
        for tag, *parts in self.found:
            by_tag.setdefault(tag, []).append((parts[0], parts[1], parts[2]))
        first = {}
        for tag, pieces in by_tag.items():
            places, steps, values = (np.concatenate(one) for one in zip(*pieces, strict=True))
            order = np.argsort(places, kind="stable")
            first[tag] = int(places[order[0]])
            self.scalars[tag] = (steps[order].astype(np.int64), values[order].astype(np.float64))
        self.scalars = {tag: self.scalars[tag] for tag in sorted(first, key=first.__getitem__)}


def _read(path: Path, notes: list[str]) -> _Scalars:
    """The scalars of one file, up to where it is whole."""
    scalars = _Scalars()
    data: Any = np.memmap(path, dtype=np.uint8, mode="r")
    begins, lengths, torn = _frames(data)
    if torn:
        notes.append(f"{path.name}: {torn}")
    if len(begins) and lengths[0] >= 9 and data[begins[0]] == 9:
        scalars.began = struct.unpack_from("<d", data, int(begins[0]) + 1)[0]
    damaged = 0
    for length in np.unique(lengths[lengths <= _SMALL]).tolist():
        these = np.flatnonzero(lengths == length)
        for part in np.array_split(these, 1 + len(these) * (length + 4) // (1 << 26)):
            rows = _at(data, begins[part], length + 4)
            good = _checksums(rows[:, :length]) == _numbers(rows[:, length:])
            damaged += int((~good).sum())
            _take(rows[good, :length], part[good], scalars)
    for place in np.flatnonzero((lengths > _SMALL) & (lengths <= _LARGEST)).tolist():
        _one(data[begins[place] : begins[place] + lengths[place]].tobytes(), place, scalars)
    if damaged:
        notes.append(f"{path.name}: {damaged:,} records are damaged and are left out")
    scalars.settle()
    return scalars


def _frames(data: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
    """Where the data of each record begin and how long they are, and why the rest is not read, if it is not."""
    begins, lengths, place, size = [], [], 0, len(data)
    unpack = struct.Struct("<Q").unpack_from
    while place + 12 <= size:
        length = unpack(data, place)[0]
        if length > size - place - 16:
            break
        begins.append(place + 12)
        lengths.append(length)
        place += length + 16
    starts = np.array(begins, dtype=np.int64)
    sound = np.concatenate(
        [_sound(data, starts[part : part + _PART]) for part in range(0, len(starts), _PART)] or [np.zeros(0, bool)]
    )
    whole = len(sound) if bool(sound.all()) else int(np.argmin(sound))
    torn = "the last record is torn and is left out" if place < size else ""
    if whole < len(sound):
        torn = f"nothing is read beyond record {whole:,}, which is damaged"
    return starts[:whole], np.array(lengths, dtype=np.int64)[:whole], torn


def _sound(data: Bytes, begins: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the lengths of records are what they were."""
    heads = _at(data, begins - 12, 12)
    return np.equal(_checksums(heads[:, :8]), _numbers(heads[:, 8:]))


def _at(data: Bytes, begins: NDArray[np.int64], length: int) -> Bytes:
    """Stretches of one length, one a row."""
    return np.asarray(data[begins[:, None] + np.arange(length)])


def _numbers(rows: Bytes) -> NDArray[np.uint32]:
    """Four bytes each as a number."""
    return np.ascontiguousarray(rows).view("<u4")[:, 0]


def _take(rows: Bytes, places: NDArray[Any], scalars: _Scalars) -> None:
    """Events of one length. Those that differ in time, step and a value at the end only are read all at once."""
    kinds = 0
    while len(rows):
        template = _value_at_end(rows[0].tobytes())
        if template is None or kinds > _MOST_KINDS:
            _one(rows[0].tobytes(), int(places[0]), scalars)
            rows, places = rows[1:], places[1:]
            if kinds > _MOST_KINDS:
                for row, place in zip(rows, places, strict=True):
                    _one(row.tobytes(), int(place), scalars)
                return
            kinds += 1
            continue
        tag, begin, end = template  # of the step
        alike = (rows[:, 0] == 9) & (rows[:, 9] == 16)  # the members for time and step
        alike &= (rows[:, end:-4] == rows[0, end:-4]).all(axis=1)
        alike &= (rows[:, begin : end - 1] >= 128).all(axis=1) & (rows[:, end - 1] < 128)
        chosen = rows[alike]
        steps = np.zeros(len(chosen), dtype=np.int64)
        for place in range(begin, end):
            steps |= (chosen[:, place].astype(np.int64) & 127) << (7 * (place - begin))
        values = np.ascontiguousarray(chosen[:, -4:]).view("<f4")[:, 0]
        scalars.found.append((tag, places[alike], steps, values))
        rows, places = rows[~alike], places[~alike]
        kinds += 1


def _value_at_end(event: bytes) -> tuple[str, int, int] | None:
    """The tag of an event that is time, step and one scalar with its value at the end; and where its step stands."""
    if len(event) < 12 or event[0] != 9 or event[9] != 16:
        return None
    end = 10
    while end < len(event) and event[end] >= 128:
        end += 1
    end += 1
    try:
        found = list(_scalars_in(event))
    except _ODD:
        return None
    if len(found) != 1 or end > 18 or event[end : end + 1] != b"\x2a" or event[-5:-4] != b"\x15":
        return None
    return (found[0][0], 10, end) if struct.pack("<f", found[0][1]) == event[-4:] else None


def _one(event: bytes, place: int, scalars: _Scalars) -> None:
    try:
        step = next((value for number, value in _members(event) if number == 2), 0)
        if step >= 1 << 63:
            step -= 1 << 64
        for tag, value in _scalars_in(event):
            scalars.found.append((tag, np.array([place]), np.array([step]), np.array([value])))
    except _ODD:
        return  # its checksum is right, so it is something else than a scalar


def _scalars_in(event: bytes) -> Iterator[tuple[str, float]]:
    """Tags and values of the scalars of an event."""
    for number, summary in _members(event):
        if number == 5:
            for inner, content in _members(summary):
                if inner == 1:
                    yield from _scalar(dict(_members(content)))


def _scalar(value: Mapping[int, Any]) -> Iterable[tuple[str, float]]:
    """A value: its tag is member 1, a number member 2, a tensor member 8."""
    tag = bytes(value.get(1, b"")).decode(errors="replace")
    if 2 in value:
        return [(tag, struct.unpack("<f", value[2])[0])]
    number = _tensor(dict(_members(value[8]))) if 8 in value else None
    return [] if number is None else [(tag, number)]


_TENSORS: dict[int, tuple[str, int]] = {1: ("<f4", 5), 2: ("<f8", 6)}
"""Kind of a tensor -> how its bytes are read, and the member that has its values."""


def _tensor(tensor: Mapping[int, Any]) -> float | None:
    """A tensor of one number, as TensorFlow 2 writes scalars; None for anything else."""
    if tensor.get(1) not in _TENSORS or any(number == 2 for number, _ in _members(tensor.get(2, b""))):
        return None
    kind, member = _TENSORS[tensor[1]]
    data = tensor.get(4) or tensor.get(member) or b""
    return float(np.frombuffer(data, dtype=kind)[0]) if len(data) == np.dtype(kind).itemsize else None


def _members(message: bytes) -> Iterator[tuple[int, Any]]:
    """The members of a protobuf message: number and value, an integer or bytes.

    Raises:
        ValueError, IndexError: it is none.
    """
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        if kind == 2:
            size, place = _varint(message, place)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a member of kind {kind}")
        if size > len(message) - place:
            raise ValueError("a member that is longer than its message")
        yield key >> 3, message[place : place + size]
        place += size


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number that is too long")


# -- checksums --------------------------------------------------------------------------------------------------------


def _table() -> NDArray[np.uint32]:
    """CRC-32C (Castagnoli) of every byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1).astype(np.uint32)
    return table


_CRC = _table()


def _checksums(rows: Bytes) -> NDArray[np.uint32]:
    """The masked CRC-32C of each row, all rows at once: byte after byte."""
    crc = np.full(len(rows), 0xFFFFFFFF, dtype=np.uint32)
    for byte in rows.T:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> np.uint32(8))
    crc = ~crc
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
