"""Zip and tar archives put together byte by byte, so that they can contradict themselves in every field."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

MOST = 2**32 - 1
SIZES = (0, 1, 8, 24, 0xFFFF, 2**31, MOST, 2**63)
FLAGS = (0x0001, 0x0008, 0x0040, 0x0800, 0x2000)
METHODS = (0, 8, 12, 14, 99)


@dataclass
class Record:
    """One record as it ought to be, and what is said of it instead, in front of its bytes or in the directory.

    Attributes:
        name, body, method, flags: the record.
        local, central: field -> what is written there instead of the truth.
        long: write the sizes as zip64 does.
        gap: bytes between the record and the one before.
        listed: how often the directory lists it.
    """

    name: str
    body: bytes
    method: int = 0
    flags: int = 0
    local: dict[str, int] = field(default_factory=dict)
    central: dict[str, int] = field(default_factory=dict)
    long: bool = False
    gap: int = 0
    listed: int = 1


LOCAL = ("magic", "version", "flags", "method", "time", "date", "crc", "stored", "size", "name_len", "extra_len")
CENTRAL = (
    *("magic", "made", "version", "flags", "method", "time", "date", "crc", "stored", "size", "name_len", "extra_len"),
    *("comment_len", "disk", "internal", "external", "header"),
)
END = ("magic", "disk", "first_disk", "here", "count", "nbytes", "offset", "comment_len")
END64 = ("magic", "length", "made", "version", "disk", "first_disk", "here", "count", "nbytes", "offset")
_LOCAL = struct.Struct("<I5H3I2H")
_CENTRAL = struct.Struct("<I6H3I5H2I")
_END = struct.Struct("<I4H2IH")
_END64 = struct.Struct("<IQ2H2I4Q")


def _pack(layout: struct.Struct, order: tuple[str, ...], values: dict[str, int]) -> bytes:
    """Fields in their order; what does not fit is cut to its width, as the standard's largest values are."""
    widths = {"H": 16, "I": 32, "Q": 64}
    kinds: list[str] = []
    digits = ""
    for char in layout.format[1:]:
        if char.isdigit():
            digits += char
        else:
            kinds += [char] * int(digits or 1)
            digits = ""
    pairs = zip(order, kinds, strict=True)
    return layout.pack(*[min(values.get(name, 0), 2 ** widths[kind] - 1) for name, kind in pairs])


def zipped(
    records: list[Record], end: dict[str, int], *, end64: dict[str, int] | None = None, tail: bytes = b""
) -> bytes:
    """An archive of these records; `end` and `end64` say what its end records claim instead of the truth."""
    out = bytearray()
    directory = bytearray()
    listed = 0
    for record in records:
        stored = _deflated(record.body) if record.method == 8 else record.body
        out += bytes(record.gap)
        truth = {
            "flags": record.flags,
            "method": record.method,
            "crc": zlib.crc32(record.body),
            "stored": len(stored),
            "size": len(record.body),
            "name_len": len(record.name.encode()),
            "header": len(out),
        }
        out += _local(record, truth) + stored
        if record.flags & 8:
            out += struct.pack("<4s3I", b"PK\7\10", truth["crc"], truth["stored"], truth["size"])
        directory += _central(record, truth) * record.listed
        listed += record.listed
    truth = {"here": listed, "count": listed, "nbytes": len(directory), "offset": len(out)}
    out += directory
    if end64 is not None:
        said = {"magic": 0x06064B50, "length": 44, **truth, **end64}
        where = said.pop("where", len(out))
        out += _pack(_END64, END64, said) + struct.pack("<IIQI", 0x07064B50, 0, min(where, 2**64 - 1), 1)
    out += _pack(_END, END, {"magic": 0x06054B50, **truth, **end})
    return bytes(out) + tail


def _local(record: Record, truth: dict[str, int]) -> bytes:
    extra = b""
    if record.long:
        extra = struct.pack("<2H2Q", 1, 16, truth["size"], truth["stored"])
        truth = truth | {"stored": MOST, "size": MOST}
    said = {"magic": 0x04034B50, "version": 45, **truth, "extra_len": len(extra), **record.local}
    return _pack(_LOCAL, LOCAL, said) + record.name.encode() + extra


def _central(record: Record, truth: dict[str, int]) -> bytes:
    extra = b""
    said = truth | {key: value for key, value in record.central.items() if key in truth}
    if record.long:
        extra = struct.pack("<2H3Q", 1, 24, *(min(said[key], 2**64 - 1) for key in ("size", "stored", "header")))
        said |= {"stored": MOST, "size": MOST, "header": MOST}
    rest = {key: value for key, value in record.central.items() if key not in truth}
    said = {"magic": 0x02014B50, "made": 45, "version": 45, **said, "extra_len": len(extra), **rest}
    return _pack(_CENTRAL, CENTRAL, said) + record.name.encode() + extra


def _deflated(body: bytes) -> bytes:
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return engine.compress(body) + engine.flush()


_VALUES = st.one_of(st.sampled_from((*SIZES, *FLAGS, *METHODS)), st.integers(0, 300))
_LIES = {
    "local": st.tuples(st.sampled_from(LOCAL), _VALUES),
    "central": st.tuples(st.sampled_from(CENTRAL), _VALUES),
    "flags": st.sampled_from((8, 0x800, 0x808, 1)),
    "method": st.sampled_from((8, 8, 8, 12)),
    "long": st.just(True),
    "gap": st.sampled_from((1, 12, 16, 24, 64)),
    "listed": st.sampled_from((0, 2)),
    "end": st.tuples(st.sampled_from(END), _VALUES),
    "end64": st.one_of(st.just(()), st.tuples(st.sampled_from((*END64, "where")), _VALUES)),
    "drop": st.just(None),
    "double": st.just(None),
    "name": st.sampled_from(("x", "../x", "a/b", "é", "archive/data.pkl", "data.pkl", "archive/data/0")),
    "tail": st.sampled_from((b"x", b"PK\5\6", bytes(30))),
}
_LIE = st.sampled_from(sorted(_LIES)).flatmap(lambda what: st.tuples(st.just(what), _LIES[what], st.integers(0, 5)))


@st.composite
def zips(draw: st.DrawFn, archives: list[dict[str, bytes]], bodies: st.SearchStrategy[bytes]) -> bytes:
    """One of these archives, a record of which has another body perhaps, with a few lies about the records."""
    made = [Record(name, body) for name, body in draw(st.sampled_from(archives)).items()]
    if draw(st.booleans()):
        made[draw(st.integers(0, len(made) - 1))].body = draw(bodies)
    whole: dict[str, Any] = {"end": {}, "end64": None, "tail": b""}
    for what, value, at in draw(st.lists(_LIE, max_size=3)):
        record = made[at % len(made)]
        if what in {"local", "central"}:
            getattr(record, what).update([value])
        elif what in {"end", "end64"}:
            whole[what] = dict([value] if value else [])
        elif what == "tail":
            whole[what] = value
        elif what == "double":
            made.append(record)
        elif what == "drop" and len(made) > 1:
            made.remove(record)
        elif what != "drop":
            setattr(record, what, value)
    return zipped(made, whole["end"], end64=whole["end64"], tail=whole["tail"])


KINDS = (*[b"0"] * 8, b"\0", b"1", b"2", b"5", b"x", b"g", b"L", b"S")


def member(name: str, body: bytes, kind: bytes = b"0", size: int | None = None) -> bytes:
    """One member of a tar archive, with the right checksum."""
    declared = len(body) if size is None else size
    header = bytearray(512)
    raw = name.encode()[:100]
    header[: len(raw)] = raw
    header[124:136] = f"{min(declared, 8**11 - 1):011o}\0".encode()
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = f"{sum(header) + 8 * 32:06o}\0 ".encode()
    return bytes(header) + body + bytes(-len(body) % 512)


@st.composite
def tars(draw: st.DrawFn, archives: list[dict[str, bytes]], bodies: st.SearchStrategy[bytes]) -> bytes:
    """One of these archives, in another order perhaps; one member has another body, or is a link, or leaves the file."""
    records = draw(st.sampled_from(archives))
    names = draw(st.one_of(st.just(list(records)), st.permutations([*records, "../x"])))
    odd = draw(st.integers(0, len(names) - 1))
    out = b""
    for at, name in enumerate(names):
        body = draw(bodies) if at == odd else records.get(name, b"x")
        kind = draw(st.sampled_from(KINDS)) if at == odd else b"0"
        out += member(name, body, kind, draw(st.sampled_from((None, None, None, 0, 1, 2**40))) if at == odd else None)
    return out + bytes(draw(st.sampled_from((0, 512, 1024))))
