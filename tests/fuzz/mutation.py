"""Changes that keep a file's structure: the record of a zip inside of its archive, with its checksum and sizes put right."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable

Mutate = Callable[[bytes], bytes]


def in_a_record(data: bytes, mutate: Mutate, rng: random.Random) -> bytes:
    """The same archive with one record changed; the bytes themselves changed where it is no archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old:
            records = [(entry.filename, entry.compress_type, old.read(entry)) for entry in old.infolist()]
    except Exception:  # the standard library raises all kinds of errors for broken archives
        return mutate(data)
    if not records:
        return mutate(data)
    chosen = rng.randrange(len(records))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as new:
        for at, (name, method, body) in enumerate(records):
            kind = method if method in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED} else zipfile.ZIP_STORED
            new.writestr(zipfile.ZipInfo(name), mutate(body) if at == chosen else body, kind)
    return out.getvalue()


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
