"""Sizes and times as people write them."""

from __future__ import annotations

import re

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SECONDS = {"": 1, "S": 1, "M": 60, "MIN": 60, "H": 3600, "D": 86400}


def parse_bytes(size: int | str) -> int:
    """A number of bytes: `5GB`, `500 MB`, `4GiB`, or a plain number.

    Raises:
        ValueError: it is none, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?[iI]?[bB]?)\s*", str(size))
    unit = found[2].upper() if found else ""
    unit = unit if unit.endswith("B") or not unit else f"{unit}B"
    factor = _BYTES.get("" if unit == "B" else unit)
    if found is None or factor is None or float(found[1]) <= 0:
        raise ValueError(f"{size!r} is no size; write 5GB, 500MB, 4GiB or a number of bytes")
    return int(float(found[1]) * factor)


def parse_seconds(time: float | str) -> float:
    """A length of time in seconds: `90s`, `30min`, `1h`, `2d`, or a plain number.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(time))
    factor = _SECONDS.get(found[2].upper()) if found else None
    if found is None or factor is None:
        raise ValueError(f"{time!r} is no length of time; write 90s, 30min, 1h, 2d or a number of seconds")
    return float(found[1]) * factor
