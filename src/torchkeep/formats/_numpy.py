"""NumPy's arrays, scalars and dtypes out of pickles, made here from a list of plain dtypes and checked sizes.

Arrays of objects, and of dtypes beyond the list, stay records. Pickled layouts: numpy/_core/src/multiarray, methods.c
(array_reduce, array_setstate) and descriptor.c (arraydescr_reduce, arraydescr_setstate).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.tree import Global, Record
from ..errors import CorruptCheckpointError

if TYPE_CHECKING:
    from ._plain import Meter

_CODE = re.compile(r"(?:b1|[iu][1248]|f(?:2|4|8|16)|c(?:8|16|32)|[SUV]\d{1,6}|[mM]8)")
_UNITS = frozenset({"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic"})
_ORDERS = frozenset("<>|=")
_CLASSES = frozenset({"numpy.ndarray", "numpy.memmap", "numpy.core.memmap.memmap", "numpy._core.memmap.memmap"})
_FIELDS = 1000
_ITEM_BYTES = 1 << 20
_DIMENSIONS = 32

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")


def _text(value: Any) -> str:
    """Text that Python 2 may have written as bytes."""
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def _bytes(value: Any) -> bytes | None:
    """The bytes of an array; a string of Python 2 was taken for text where it happened to be valid UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


def _scalar(meter: Meter, dtype: Any, data: Any = None) -> Any:
    raw = _bytes(data)
    if not isinstance(dtype, np.dtype) or raw is None:
        return NotImplemented
    if len(raw) != dtype.itemsize:
        raise CorruptCheckpointError(f"has a NumPy {dtype} of {len(raw)} bytes")
    return _array(meter, raw, dtype, (), False)[()] if dtype.itemsize else NotImplemented


def _from_buffer(meter: Meter, data: Any, dtype: Any, shape: Any, order: Any = "C", *rest: Any) -> Any:
    raw = _bytes(data)
    if not isinstance(dtype, np.dtype) or raw is None or order not in {"C", "F"}:
        return NotImplemented
    return _array(meter, raw, dtype, shape, order == "F")


def _array(meter: Meter, raw: bytes, dtype: np.dtype[Any], shape: Any, fortran: bool) -> Any:
    """An array of one's own, after its sizes were held against its bytes."""
    sizes = (shape,) if type(shape) is int else shape
    if not isinstance(sizes, (tuple, list)) or len(sizes) > _DIMENSIONS:
        raise CorruptCheckpointError("has a NumPy array whose shape is none")
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise CorruptCheckpointError(f"has a NumPy array of shape {str(sizes)[:100]}")
    if prod(sizes) * dtype.itemsize != len(raw):
        raise CorruptCheckpointError(
            f"has a NumPy array of shape {str(tuple(sizes))[:100]} and {dtype}, and {len(raw):,} bytes for it"
        )
    meter.charge(len(raw) // 8)
    if not raw:
        return np.empty(tuple(sizes), dtype)
    return np.frombuffer(bytearray(raw), dtype).reshape(tuple(sizes), order="F" if fortran else "C")


def finish_array(meter: Meter, record: Record) -> Any:
    """The array that `_reconstruct` and its state describe, or None: the record stays."""
    state = record.state
    cls = record.args[0] if record.args else None
    if type(state) is not tuple or not isinstance(cls, Global) or cls.qualified not in _CLASSES:
        return None
    shape, dtype, fortran, data = state[-4:] if len(state) in {4, 5} else (None,) * 4
    raw = _bytes(data)
    if not isinstance(dtype, np.dtype) or raw is None:
        return None
    return _array(meter, raw, dtype, shape, bool(fortran))


def finish_dtype(meter: Meter, record: Record) -> Any:
    """The dtype that its code and its state describe, or None where it is not one of the plain ones."""
    code = _text(record.args[0]) if record.args else ""
    state = record.state
    if type(state) is not tuple or len(state) < 3 or not _CODE.fullmatch(code):
        return None
    order = _text(state[1])
    try:
        if code[0] in "mM":
            found: np.dtype[Any] | None = _datetime(code, state)
        elif code[0] == "V":
            found = _structure(meter, code, state)
        else:
            found = np.dtype(code)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptCheckpointError(f"has a NumPy dtype that is none: {error}") from error
    if found is None or order not in _ORDERS or found.itemsize > _ITEM_BYTES:
        return None
    return found.newbyteorder(order) if order in "<>" and code[0] != "V" else found  # type: ignore[arg-type]


def _datetime(code: str, state: tuple[Any, ...]) -> np.dtype[Any] | None:
    """The unit stands at the end of the state: ({}, (unit, number, 1, 1))."""
    last = state[-1]
    if type(last) is not tuple or len(last) != 2 or type(last[1]) is not tuple or len(last[1]) < 2:
        return None
    unit, number = _text(last[1][0]), last[1][1]
    if unit not in _UNITS or type(number) is not int or not 0 < number < 1 << 31:
        return None
    return np.dtype(code) if unit == "generic" else np.dtype(f"{code}[{number}{unit}]")


def _structure(meter: Meter, code: str, state: tuple[Any, ...]) -> np.dtype[Any] | None:
    """A dtype with fields, or an array of another one; plain bytes otherwise."""
    if len(state) < 8:
        return None
    inner, names, fields, itemsize = state[2], state[3], state[4], state[5]
    if type(inner) is tuple and len(inner) == 2 and isinstance(inner[0], np.dtype):
        shape = (inner[1],) if type(inner[1]) is int else inner[1]
        if type(shape) is not tuple or not all(type(size) is int and 0 <= size <= _ITEM_BYTES for size in shape):
            return None
        return np.dtype((inner[0], shape)) if prod(shape) * inner[0].itemsize <= _ITEM_BYTES else None
    if names is None:
        return np.dtype(code)
    if not isinstance(names, (tuple, list)) or not isinstance(fields, dict) or len(names) > _FIELDS:
        return None
    meter.charge(len(names))
    described = [fields.get(name) for name in names]
    if type(itemsize) is not int or not 0 < itemsize <= _ITEM_BYTES:
        return None
    if not all(type(one) is tuple and len(one) >= 2 and isinstance(one[0], np.dtype) for one in described):
        return None
    if not all(type(one[1]) is int and 0 <= one[1] <= itemsize - one[0].itemsize for one in described if one):
        return None
    return np.dtype(
        {
            "names": [_text(name) for name in names],
            "formats": [one[0] for one in described if one],
            "offsets": [one[1] for one in described if one],
            "itemsize": itemsize,
        }
    )


BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "scalar"): _scalar for module in _MODULES},
    **{(module, "_frombuffer"): _from_buffer for module in _NUMERIC},
}
"""Calls that make a NumPy value at once; each gets the meter first."""

FINISHERS: dict[tuple[str, str], Callable[..., Any]] = {
    **{(module, "_reconstruct"): finish_array for module in _MODULES},
    ("numpy", "dtype"): finish_dtype,
}
"""Records that turn out to be a NumPy value once their state is known; each gets the meter first."""
