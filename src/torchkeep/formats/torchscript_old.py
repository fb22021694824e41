"""TorchScript archives of torch 1.0 to 1.2: a model.json that describes modules and tensors, the tensors, and code."""

from __future__ import annotations

import json
import posixpath
import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import DTYPES, LazyTensor, StorageRef, TensorSpec, check_geometry
from ..core.tree import Global, Record, as_tensor
from ..errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedFeatureError
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, Use, truncation_is_corruption, unpickle
from ._zip import Archive, find_record, is_zip, read_archive

_MODEL = "model.json"
_DESCRIPTION = re.compile(r"(?:[^/]+/)?model\.json")
_DTYPES = {
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "FLOAT16": "float16",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "BYTE": "uint8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_DIMENSIONS = 64


class TorchScriptOld:
    """Reads the first kind of TorchScript archive; its code stays text."""

    name = "torchscript_old"

    def sniff(self, probe: Probe) -> bool:
        """A zip with one model.json and no pickled object."""
        if not is_zip(probe.head) or probe.entries is None:
            return False
        names = {posixpath.basename(name) for name in probe.entries if name.count("/") < 2}
        return _MODEL in names and "data.pkl" not in names

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the description, and none of the tensors.

        Raises:
            CorruptCheckpointError: the description is damaged, or does not fit the records.
        """
        archive = read_archive(source, limits)
        name = find_record(archive, _DESCRIPTION, "TorchScript archive of torch 1.0 to 1.2")[0]
        root = name.removesuffix(_MODEL)
        try:
            model: Any = json.loads(archive.read(name, limits.header_bytes))
        except (ValueError, RecursionError) as error:
            raise CorruptCheckpointError(f"is no valid JSON: {error}", file=source.name, place=name) from error
        if not isinstance(model, dict) or not isinstance(model.get("mainModule"), dict):
            raise CorruptCheckpointError("describes no module", file=source.name, place=name)
        reading = _Reading(archive, root, limits)
        tree = reading.module(model)
        text = {f"source:{name.removeprefix(root)}": reading.text(name) for name in archive.entries if _is_code(name)}
        version = str(model.get("producerVersion"))[:20]
        hints = (Hint(f"its model.json says producer version {version}", (1, 0), (1, 2)),)
        findings = tuple(archive.findings)
        return checkpoint_from(source.name, self.name, Contents(tree, reading.seen, hints, findings, text), limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes)."""
        yield from read_archive(source, limits).verify()


def _is_code(name: str) -> bool:
    return name.endswith(".py") and "/code/" in f"/{name}"


def _number(value: Any, place: str) -> int:
    """protobuf writes 64-bit integers as text."""
    if isinstance(value, str) and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise CorruptCheckpointError(f"has {str(value)[:40]!r} where a number should be", place=place)
    return value


class _Reading:
    """One reading of an archive: its tensors by number, and the modules that hold them."""

    def __init__(self, archive: Archive, root: str, limits: Limits) -> None:
        self.archive = archive
        self.root = root
        self.limits = limits
        self.seen: dict[Global, Use] = {}
        self._storages: dict[str, StorageRef] = {}

    def text(self, name: str) -> str:
        """A record of code."""
        return self.archive.read(name, self.limits.header_bytes).decode("utf-8", "replace")

    def module(self, model: dict[str, Any]) -> Record:
        """The tree of modules, made without recursion."""
        listed = model.get("tensors")
        tensors = [self._tensor(one) for one in listed] if isinstance(listed, list) else []
        values = self._attributes(tensors)
        top = Record(Global("__torch__", str(model["mainModule"].get("name", "Module"))[:200]))
        stack = [(top, model["mainModule"])]
        count = 0
        while stack:
            record, described = stack.pop()
            count += 1
            if count > self.limits.nodes:
                raise UnsafeCheckpointError(f"has more than {self.limits.nodes:,} modules (Limits.nodes)")
            children = OrderedDict()
            for one in _objects(described, "submodules"):
                child = Record(Global("__torch__", "Module"))
                children[str(one.get("name"))] = child
                stack.append((child, one))
            record.state = self._state(described, tensors, values) | {"_modules": children}
        return top

    def _state(self, described: Any, tensors: list[LazyTensor], values: list[Any]) -> dict[str, Any]:
        state: dict[str, Any] = {"_parameters": OrderedDict(), "_buffers": OrderedDict()}
        for one in _objects(described, "parameters"):
            tensor = _nth(tensors, _number(one.get("tensorId", "0"), _MODEL))
            buffer = one.get("isBuffer") is True
            state["_buffers" if buffer else "_parameters"][str(one.get("name"))] = (
                tensor if buffer else tensor.replace(kind="parameter")
            )
        for one in _objects(described, "attributes"):
            value = _nth(values, _number(one.get("id", "0"), _MODEL))
            key = str(one.get("name"))
            if as_tensor(value) is not None:
                state["_buffers"][key] = value
            else:
                state[key] = value
        return state

    def _attributes(self, tensors: list[LazyTensor]) -> list[Any]:
        """Since 1.1 what is no parameter stands in a pickle of its own, its tensors as their numbers."""
        name = f"{self.root}attributes.pkl"
        if name not in self.archive.entries:
            return []

        def build(number: Any) -> Any:
            return _nth(tensors, _number(number, "attributes.pkl"))

        dialect = Dialect(builders={("torch.jit._pickle", "build_tensor_from_id"): build})
        data = self.archive.read(name, self.limits.pickle_bytes)
        found = unpickle(
            data, 0, dialect, self.limits, file=self.archive.source.name, stream="attributes.pkl", seen=self.seen
        ).value
        return list(found) if isinstance(found, (list, tuple)) else []

    def _tensor(self, described: Any) -> LazyTensor:
        data = described.get("data") if isinstance(described, dict) else None
        key = data.get("key") if isinstance(data, dict) else None
        name = f"{self.root}{key}"
        if not isinstance(key, str) or name not in self.archive.entries:
            raise CorruptCheckpointError(
                f"describes a tensor in record {str(key)[:100]!r}, which is not there", file=self.archive.source.name
            )
        dtype = DTYPES.get(_DTYPES.get(str(described.get("dataType")), ""))
        if dtype is None:
            raise UnsupportedFeatureError(
                f"has a tensor of type {str(described.get('dataType'))[:40]}", file=self.archive.source.name
            )
        sizes, strides = ([_number(n, key) for n in _listed(described, k)] for k in ("dims", "strides"))
        if max(len(sizes), len(strides)) > _DIMENSIONS:
            raise CorruptCheckpointError(f"has a tensor of {len(sizes)} dimensions", file=self.archive.source.name)
        spec = TensorSpec(dtype.torch, tuple(sizes))
        storage = self._storages.setdefault(name, self.archive.storage(name))
        offset = _number(described.get("offset", 0), key)
        check_geometry(spec, tuple(strides), offset, storage.nbytes, file=self.archive.source.name, place=key)
        device = str(described.get("device", "cpu"))[:20]
        grad = described.get("requiresGrad") is True
        return LazyTensor(self.archive.source, storage, spec, tuple(strides), offset, device=device, requires_grad=grad)


def _objects(described: Any, key: str) -> list[dict[str, Any]]:
    listed = described.get(key, []) if isinstance(described, dict) else []
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _listed(described: dict[str, Any], key: str) -> list[Any]:
    values = described.get(key, [])
    return values[: _DIMENSIONS + 1] if isinstance(values, list) else [None]


def _nth(values: list[Any], number: int) -> Any:
    if number >= len(values):
        raise CorruptCheckpointError(f"refers to value {number}, there are {len(values)}", place=_MODEL)
    return values[number]
