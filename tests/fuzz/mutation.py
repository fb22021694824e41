"""Changes that keep a file's structure: what is inside is changed, and sizes and checksums around it are put right.

A zip is changed in one of its records, a folder in one of its files, a pickle in one of its opcodes, JSON in one of its
values; what is left is changed byte by byte.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import pickletools
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from fuzz.targets import MARK, as_input, files_of

Mutate = Callable[[bytes], bytes]
NUMBERS = (0, 1, 2, 3, 6, 24, 255, 65535, 2**31 - 1, -1, 2**62, 2**63, -(2**63), 2**70)
TEXTS = ("", "a", "0", "cpu", "cuda:0", "little", "..", "../a", "/a", "é", "x" * 70)
_MOST = 1 << 16
_DEEPEST = 4


def changed(data: bytes, mutate: Mutate, rng: random.Random, depth: int = 0) -> bytes:
    """The same file with one thing in it changed, however deep; `mutate` changes what has no structure."""
    inside = _INSIDE.get(_kind(data))
    if inside is None or depth == _DEEPEST or rng.random() < 0.3:
        return mutate(data)
    try:
        return inside(data, lambda body: changed(body, mutate, rng, depth + 1), rng)
    except Exception:  # what is broken already is changed as bytes: the standard library raises anything for it
        return mutate(data)


def _kind(data: bytes) -> str:
    if data.startswith((MARK, b"PK\3\4", b"\x1f\x8b")):
        return {MARK[:1]: "files", b"P": "zip", b"\x1f": "gzip"}[data[:1]]
    if data[257:262] == b"ustar":
        return "tar"
    if data[:1] == b"\x80":
        return "pickles"
    if data[8:9] == b"{" and len(data) - 8 >= struct.unpack("<Q", data[:8])[0]:
        return "safetensors"
    return "json" if data[:1] in {b"{", b"["} else ""


def _in_files(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    files = files_of(data)
    chosen = rng.choice(list(files))
    if rng.random() < 0.1:
        files[chosen], other = files[rng.choice(list(files))], files[chosen]
        files[rng.choice(list(files))] = other
    elif rng.random() < 0.1:
        del files[chosen]
    else:
        files[chosen] = change(files[chosen])
    return as_input(files)


def _in_zip(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        records = [(entry.filename, entry.compress_type, old.read(entry)) for entry in old.infolist()]
    chosen = rng.randrange(len(records))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for at, (name, method, body) in enumerate(records):
            kind = method if method in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), change(body) if at == chosen else body, kind)
    return out.getvalue()


def _in_gzip(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    return gzip.compress(change(gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MOST)), mtime=0)


def _in_tar(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w") as new:
        members = old.getmembers()
        chosen = rng.randrange(len(members))
        for at, entry in enumerate(members):
            file = old.extractfile(entry)
            body = file.read() if file else b""
            body = change(body) if at == chosen else body
            entry.size = len(body)
            new.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def _in_safetensors(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    header = change(data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _in_json(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    whole = json.loads(data)
    places: list[tuple[Any, Any]] = []
    waiting = [whole]
    while waiting:
        node = waiting.pop()
        pairs = list(node.items() if isinstance(node, dict) else enumerate(node))
        places += [(node, key) for key, _ in pairs]
        waiting += [value for _, value in pairs if isinstance(value, (dict, list))]
    node, key = rng.choice(places)
    other = rng.choice(places)
    if rng.random() < 0.1:
        del node[key]
    elif isinstance(node[key], str) and node[key][:1] in {"{", "["} and rng.random() < 0.9:
        node[key] = change(node[key].encode()).decode(errors="replace")
    elif isinstance(node[key], int) and rng.random() < 0.5:
        node[key] += rng.choice((-8, -1, 1, 4))
    else:
        copied = json.loads(json.dumps(other[0][other[1]]))
        node[key] = rng.choice([*NUMBERS, *TEXTS, None, 1.5, [], {}, copied, copied, copied])
    return json.dumps(whole).encode()


def _in_pickles(data: bytes, change: Mutate, rng: random.Random) -> bytes:
    """One of the pickles that stand in a row at the beginning, and what follows them."""
    streams, at = [], 0
    while data[at : at + 1] == b"\x80":
        stops = [where for opcode, _, where in pickletools.genops(data[at:]) if opcode.name == "STOP"]
        streams.append(data[at : at + stops[-1] + 1])
        at += stops[-1] + 1
    if rng.random() < 0.3 and at < len(data):
        return data[:at] + change(data[at:])
    chosen = max(rng.randrange(len(streams)), rng.randrange(len(streams)))
    streams[chosen] = _in_pickle(streams[chosen], rng)
    return b"".join(streams) + data[at:]


def _in_pickle(data: bytes, rng: random.Random) -> bytes:
    found = list(pickletools.genops(data))
    ends = [where for _, _, where in found[1:]] + [len(data)]
    pieces = [data[where:end] for (_, _, where), end in zip(found, ends, strict=True)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, other = rng.randrange(1, len(pieces)), rng.randrange(1, len(pieces))
        match rng.randrange(7):
            case 0:
                del pieces[at]
            case 1:
                pieces.insert(at, pieces[other])
            case 2:
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 3:
                pieces[at] = rng.choice(OPCODES)
            case 4:
                pieces[at] = pieces[other]
            case _:
                pieces[at] = _other_value(pieces[at], rng)
        if len(pieces) < 2:
            break
    return b"".join(pieces)


OPCODES = tuple(
    bytes([code]) for code in b"N.(0)]}aesutbRQ\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x982oic1"
)


def _other_value(piece: bytes, rng: random.Random) -> bytes:
    """A number in the place of a number, a string in the place of a string, a small change of anything else."""
    if piece[:1] in b"KMJ\x8aIL":
        return pickle.dumps(rng.choice(NUMBERS), 2)[2:-1]
    if piece[:1] in b"XU\x8cTSV":
        raw = rng.choice(TEXTS).encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    return at_random(piece, rng)


_INSIDE: dict[str, Callable[[bytes, Mutate, random.Random], bytes]] = {
    "files": _in_files,
    "zip": _in_zip,
    "gzip": _in_gzip,
    "tar": _in_tar,
    "pickles": _in_pickles,
    "safetensors": _in_safetensors,
    "json": _in_json,
}


def at_random(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, removed, doubled or cut off, a few at a time."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return bytes(out)
        at, length = rng.randrange(len(out)), rng.choice((1, 1, 2, 4, 8, 40))
        match rng.randrange(6):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length]
            case 4:
                out[at : at + length] = rng.choice((b"\xff", b"\0", b"\x7f")) * length
            case _:
                if rng.random() < 0.2:
                    del out[at:]
    return bytes(out)
