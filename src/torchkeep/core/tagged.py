"""Plain values as JSON, with tags for what JSON cannot say, so that everything comes back exactly as it was.

A tagged value is an object with the key `$`: `{"$": "tuple", "v": [1, 2]}`. An ordinary dict that has a key `$`,
or keys that are no strings, is written as a list of pairs under a tag of its own, so nothing is ambiguous.
Nothing here runs code: a class that is not in this file cannot be written and cannot be read.
"""

from __future__ import annotations

import base64
import math
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import CorruptCheckpointError, UnsavableError
from .blueprint import ModuleRef, ObjectRef
from .tensors import DTYPES, dtype_name
from .tree import Global, Record, as_tensor, key_text

_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (list, dict, int, float, str, set, tuple)}
_SAFE_INT = 1 << 53
_DEPTH = 150  # well inside Python's own limit: a level costs four calls
_NODES = 10_000_000
_REVISITS = 100_000  # a container written again for each way to reach it: forty levels of two are a trillion

Json = Any
TensorName = Callable[[tuple[str, ...], Any], Json]


_ARRAY = 1 << 20  # bytes of an array that is kept as text; larger ones are saved as tensors


def encode(value: Any, tensor_name: TensorName | None = None) -> Json:
    """A value as tagged JSON.

    Args:
        value: None, bool, int, float, complex, str, bytes, list, tuple, dict, set, their standard relatives,
            torch dtypes, devices and sizes, NumPy scalars, inert records, references to modules and objects, and
            tensors where `tensor_name` is given.
        tensor_name: from the path of a tensor in `value`, and the tensor, to the name under which its bytes are kept.

    Raises:
        UnsavableError: some value is none of these; `.path` says where it is.
    """
    return _Encoder(tensor_name).encode(value, ())


class _Encoder:
    def __init__(self, tensor_name: TensorName | None) -> None:
        self._tensor_name = tensor_name
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._nodes = self._revisits = 0

    def encode(self, value: Any, path: tuple[str, ...]) -> Json:
        self._nodes += 1
        if self._tensor_name is not None and isinstance(value, torch.Tensor):
            return {"$": "tensor", "v": self._tensor_name(path, value)}
        plain = self._plain(value)
        if plain is not NotImplemented:
            return plain
        if id(value) in self._open:
            raise _unsavable(value, path, "contains itself", "break the cycle before saving")
        self._revisits += id(value) in self._seen
        if len(path) > _DEPTH or self._nodes > _NODES or self._revisits > _REVISITS:
            raise _unsavable(value, path, "is nested too deeply or shared too often", "flatten it before saving")
        self._seen.add(id(value))
        self._open.add(id(value))
        try:
            return self._container(value, path)
        finally:
            self._open.discard(id(value))

    def _plain(self, value: Any) -> Json:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -_SAFE_INT < value < _SAFE_INT else {"$": "int", "v": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"$": "float", "v": repr(value)}
        if kind is str:
            return _text(value)
        if kind is complex:
            return {"$": "complex", "v": [self._plain(value.real), self._plain(value.imag)]}
        if kind in {bytes, bytearray}:
            return {"$": kind.__name__, "v": base64.b64encode(value).decode()}
        if kind is torch.dtype and dtype_name(value) in DTYPES:
            return {"$": "dtype", "v": dtype_name(value)}
        if kind is torch.device:
            return {"$": "device", "v": str(value)}
        if kind is torch.Size:
            return {"$": "Size", "v": list(value)}
        if isinstance(value, np.generic) and not value.dtype.hasobject and value.dtype.names is None:
            return {"$": "numpy", "dtype": value.dtype.str, "v": base64.b64encode(value.tobytes()).decode()}
        if kind is np.ndarray and not value.dtype.hasobject and value.dtype.names is None and value.nbytes <= _ARRAY:
            order = np.ascontiguousarray(value)
            data = base64.b64encode(order.tobytes()).decode()
            return {"$": "array", "dtype": value.dtype.str, "shape": list(value.shape), "v": data}
        if kind is Global:
            return {"$": "global", "v": [value.module, value.name]}
        if kind is ModuleRef or kind is ObjectRef:
            return {"$": "module" if kind is ModuleRef else "object", "v": value.index}
        return NotImplemented

    def _container(self, value: Any, path: tuple[str, ...]) -> Json:
        kind = type(value)
        if as_tensor(value) is not None and self._tensor_name is not None:
            return {"$": "tensor", "v": self._tensor_name(path, as_tensor(value))}
        if kind is list:
            return self._list(value, path)
        if kind in {tuple, set, frozenset}:
            return {"$": kind.__name__, "v": self._list(value, path)}
        if kind is dict:
            if all(type(key) is str and _is_utf8(key) for key in value) and "$" not in value:
                return {key: self.encode(child, (*path, key)) for key, child in value.items()}
            return {"$": "dict", "v": self._pairs(value.items(), path)}
        if kind is OrderedDict:
            metadata = getattr(value, "_metadata", None)
            extra = {} if metadata is None else {"metadata": self.encode(metadata, (*path, "_metadata"))}
            return {"$": "OrderedDict", "v": self._pairs(value.items(), path), **extra}
        if kind is Counter:
            return {"$": "Counter", "v": self._pairs(value.items(), path)}
        if kind is defaultdict and (value.default_factory is None or value.default_factory in _FACTORIES.values()):
            factory = value.default_factory.__name__ if value.default_factory else None
            return {"$": "defaultdict", "factory": factory, "v": self._pairs(value.items(), path)}
        if kind is Record:
            return self._record(value, path)
        raise _unsavable(value, path, "cannot be written without pickle", _hint_for(value))

    def _list(self, value: Any, path: tuple[str, ...]) -> list[Json]:
        return [self.encode(child, (*path, str(position))) for position, child in enumerate(value)]

    def _pairs(self, pairs: Any, path: tuple[str, ...]) -> list[Json]:
        pairs = list(pairs)
        for key, _ in pairs:
            if as_tensor(key) is not None:
                raise _unsavable(key, path, "is used as a key of a dict", "use its name as the key")
        return [
            [self.encode(key, (*path, key_text(key, position))), self.encode(child, (*path, key_text(key, position)))]
            for position, (key, child) in enumerate(pairs)
        ]

    def _record(self, value: Record, path: tuple[str, ...]) -> Json:
        """Inert records keep the names of their tensors from `tree.leaves`, which walks module dicts first."""
        out = {"$": "record", "class": self.encode(value.cls, path), "called": value.called}
        out["args"] = self._list(value.args, path)
        out["kwargs"] = self._pairs(value.kwargs.items(), path)
        out["items"] = self._list(value.items, path)
        out["pairs"] = self._pairs(value.pairs, path)
        if value.is_module:
            state = {key: child for key, child in value.state.items() if not _is_module_dict(key)}
            held = {key: self._pairs(child.items(), path) for key, child in value.state.items() if _is_module_dict(key)}
            return out | {"state": self._pairs(state.items(), path), "module": held}
        return out | {"state": self.encode(value.state, path)}


def _is_module_dict(key: Any) -> bool:
    return key in {"_parameters", "_buffers", "_modules"}


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: str) -> Json:
    if _is_utf8(value):
        return value
    return {"$": "str", "v": base64.b64encode(value.encode(errors="surrogatepass")).decode()}


def _unsavable(value: Any, path: tuple[str, ...], what: str, hint: str) -> UnsavableError:
    where = ".".join(path)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return UnsavableError(f"the value at {where or '(the top)'} ({kind}) {what}", path=where, hint=hint)


def _hint_for(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"pass torch.from_numpy(array): arrays beyond {_ARRAY:,} bytes are no plain values"
    if hasattr(value, "state_dict"):
        return "pass its state_dict()"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return "pass its _asdict()"
    return "pass numbers, strings, lists, tuples, dicts and tensors; for an object, its vars()"


def decode(value: Json, tensor: Callable[[str], Any] | None = None) -> Any:
    """The value that `encode` was given.

    Args:
        value: decoded JSON.
        tensor: from the name of a tensor to the tensor.

    Raises:
        CorruptCheckpointError: the JSON was not made by `encode`.
    """
    try:
        return _decode(value, tensor)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise CorruptCheckpointError(f"the plain values cannot be read ({detail[:200]})") from error


def _decode(value: Json, tensor: Callable[[str], Any] | None) -> Any:
    if isinstance(value, list):
        return [_decode(child, tensor) for child in value]
    if not isinstance(value, Mapping):
        return value
    tag = value.get("$")
    if tag is None:
        return {key: _decode(child, tensor) for key, child in value.items()}
    if tag == "tensor":
        if tensor is None:
            raise ValueError("a tensor where none can be")
        return tensor(value["v"])
    if tag in _SCALARS:
        return _SCALARS[tag](value)
    return _decode_container(tag, value, tensor)


def _decode_container(tag: str, value: Mapping[str, Json], tensor: Callable[[str], Any] | None) -> Any:
    if tag == "record":
        return _decode_record(value, tensor)
    items = _decode(value["v"], tensor)
    if tag == "tuple":
        return tuple(items)
    if tag in {"set", "frozenset"}:
        return set(items) if tag == "set" else frozenset(items)
    if tag == "dict":
        return dict(items)
    if tag == "OrderedDict":
        ordered: OrderedDict[Any, Any] = OrderedDict(items)
        if "metadata" in value:
            ordered._metadata = _decode(value["metadata"], tensor)  # type: ignore[attr-defined]
        return ordered
    if tag == "Counter":
        return Counter(dict(items))
    if tag == "defaultdict":
        return defaultdict(_FACTORIES[value["factory"]] if value["factory"] else None, dict(items))
    raise ValueError(f"unknown tag {tag!r}")


def _decode_record(value: Mapping[str, Json], tensor: Callable[[str], Any] | None) -> Record:
    def pairs(items: Json) -> list[tuple[Any, Any]]:
        return [(_decode(key, tensor), _decode(child, tensor)) for key, child in items]

    if "module" in value:
        state: Any = {key: dict(pairs(held)) for key, held in value["module"].items()} | dict(pairs(value["state"]))
    else:
        state = _decode(value["state"], tensor)
    return Record(
        _decode(value["class"], tensor),
        args=tuple(_decode(value["args"], tensor)),
        kwargs=dict(pairs(value["kwargs"])),
        state=state,
        items=_decode(value["items"], tensor),
        pairs=pairs(value["pairs"]),
        called=bool(value["called"]),
    )


def _array(value: Mapping[str, Json]) -> Any:
    dtype = np.dtype(value["dtype"])
    if dtype.hasobject:
        raise ValueError("an array of objects")
    data = bytearray(base64.b64decode(value["v"]))
    return np.frombuffer(data, dtype=dtype).reshape(value["shape"]) if data else np.zeros(value["shape"], dtype)


def _number(value: Mapping[str, Json]) -> Any:
    dtype = np.dtype(value["dtype"])
    if dtype.hasobject:
        raise ValueError("a NumPy object")
    if not dtype.itemsize:  # an empty string or bytes
        return np.zeros(1, dtype)[0]
    return np.frombuffer(base64.b64decode(value["v"]), dtype=dtype)[0]


def _number_of(value: Mapping[str, Json]) -> int:
    if type(value["v"]) is not int:
        raise ValueError("no number of a module or an object")
    return int(value["v"])


_SCALARS: dict[str, Callable[[Mapping[str, Json]], Any]] = {
    "array": _array,
    "int": lambda value: int(value["v"], 16),
    "float": lambda value: float(value["v"]),
    "complex": lambda value: complex(*(_decode(part, None) for part in value["v"])),
    "str": lambda value: base64.b64decode(value["v"]).decode(errors="surrogatepass"),
    "bytes": lambda value: base64.b64decode(value["v"]),
    "bytearray": lambda value: bytearray(base64.b64decode(value["v"])),
    "dtype": lambda value: DTYPES[value["v"]].torch,
    "device": lambda value: torch.device(value["v"]),
    "Size": lambda value: torch.Size(value["v"]),
    "numpy": _number,
    "global": lambda value: Global(*value["v"]),
    "module": lambda value: ModuleRef(_number_of(value)),
    "object": lambda value: ObjectRef(_number_of(value)),
}
