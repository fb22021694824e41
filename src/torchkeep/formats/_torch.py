"""What torch puts into its pickles: persistent ids that stand for storages, and calls that rebuild tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..core.checkpoint import Finding
from ..core.composite import Composite, Compressed, Coo, Nested, Quantized, quantized_ints
from ..core.limits import Limits
from ..core.source import Held, Slice, Source, Swapped
from ..core.tensors import (
    BY_STORAGE,
    DTYPES,
    LazyTensor,
    StorageRef,
    TensorSpec,
    check_geometry,
    contiguous_stride,
)
from ..core.tree import Global, Record, as_tensor
from ..errors import CorruptCheckpointError, OpenError, UnsafeCheckpointError, UnsupportedFeatureError
from ._names import dangers_in, findings_of
from ._pickle import Dialect, Use

_DIMENSIONS = 64
_QUANTIZED = {
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
_UNTYPED = frozenset({"UntypedStorage", "_UntypedStorage"})
_TEXT_ID = re.compile(
    r"\('storage', <class '([\w.]+)\.(\w+)'>, u?'([^'\\]*)', u?'([^'\\]*)', (\d{1,19})L?"
    r"(?:, (?:None|\(u?'([^'\\]*)', (\d{1,19})L?, (\d{1,19})L?\)))?\)"
)

_TENSOR_CLASSES = frozenset({"torch.Tensor", "torch._tensor.Tensor", "torch.tensor.Tensor"})
_PARAMETER = "torch.nn.parameter.Parameter"
_VARIABLE = "torch.autograd.variable.Variable"


class LazyStorage(LazyTensor):
    """A storage, seen as a flat tensor of its elements; tensors are built from it, and old files save it bare."""

    __slots__ = ()


def with_dangers(error: OpenError, seen: dict[Global, Use]) -> OpenError:
    """Add to an error what was found before it, dangerous names in its text too, so that damage cannot hide them."""
    error.findings = (*error.findings, *findings_of(seen))
    names = list(dangers_in(seen))[:5]
    if names:
        error.message += f" (and names {', '.join(names)}, which can run code)"
        error.args = (error.message,)
    return error


class TensorReader:
    """Makes the lazy tensors of one file.

    Args:
        source: the file.
        place: called once for each storage key with its size in bytes; answers where the bytes are.
        limits: for saves inside of the save.
        swapped: whether the elements have their bytes in the other order than this machine.

    Attributes:
        findings: what was found in saves inside of the save.
    """

    def __init__(
        self,
        source: Source,
        place: Callable[[str, int], StorageRef],
        limits: Limits | None = None,
        *,
        swapped: bool = False,
    ) -> None:
        self._source = source
        self._place = place
        self._limits = limits or Limits()
        self._swapped = swapped
        self._turned: dict[tuple[int, int], StorageRef] = {}
        self.findings: list[Finding] = []
        self._declared: dict[str, tuple[StorageRef, str]] = {}
        self._storages: dict[tuple[str, torch.dtype, Any], LazyStorage] = {}
        self._types: dict[Global, torch.dtype] = {}
        self._views: list[tuple[StorageRef, StorageRef, int]] = []
        self.item_sizes: dict[str, int] = {}
        self.sources: dict[str, str] = {}
        self._rebuild = self._builders()

    def dialect(self) -> Dialect:
        """What the unpickler has to know to read torch's pickles."""
        finishers: dict[tuple[str, str], Callable[[Record], None]] = {
            (module, row.storage.removesuffix("Storage") + "Tensor"): self._finish_tensor
            for row in DTYPES.values()
            if row.storage
            for module in ("torch", "torch.cuda")
        }
        for name in (*_TENSOR_CLASSES, _PARAMETER, _VARIABLE):
            module, _, last = name.rpartition(".")
            finishers[module, last] = self._finish_tensor
        constants = {("torch", name): row.torch for name, row in DTYPES.items()}
        return Dialect(self.persistent, self._rebuild, constants, finishers)

    def settle_views(self) -> None:
        """Place the storages that are parts of others, once those are placed."""
        for view, root, start in self._views:
            view.offset = None if root.offset is None else root.offset + start
            view.problem = root.problem

    # Persistent ids

    def persistent(self, ident: Any) -> Any:
        """The storage or the class that a persistent id stands for."""
        if type(ident) is str:
            ident = self._parse(ident)
        if type(ident) is tuple and ident:
            if ident[0] == "storage" and len(ident) in {5, 6}:
                return self._storage(*ident[1:])
            if ident[0] == "module" and len(ident) == 4:
                return self._module(*ident[1:])
        raise CorruptCheckpointError("has a persistent id of a form that torch never wrote")

    def _parse(self, text: str) -> tuple[Any, ...]:
        """Protocol 0 wrote the id as Python prints it."""
        found = _TEXT_ID.fullmatch(text)
        if found is None:
            raise CorruptCheckpointError(f"has the persistent id {text[:120]!r}, which torch never wrote")
        module, kind, key, location, numel, view, start, size = found.groups()
        part = None if view is None else (view, int(start), int(size))
        return ("storage", Global(module, kind), key, location, int(numel), part)

    def _module(self, cls: Any, file: Any, text: Any) -> Any:
        """Up to torch 1.5 the source text of a module's class was saved beside it; it is kept as text."""
        if isinstance(cls, Global) and isinstance(text, str):
            self.sources.setdefault(cls.qualified, text)
        return cls

    def _storage(self, kind: Any, key: Any, location: Any, numel: Any, view: Any = None) -> LazyStorage:
        if type(kind) is not Global:
            raise CorruptCheckpointError("declares a storage whose type is no name")
        dtype = self._types.get(kind) or self.storage_dtype(kind)
        if type(key) is not str or type(location) is not str:
            raise CorruptCheckpointError("declares a storage whose key or location is no text")
        if type(numel) is not int or not 0 <= numel < 1 << 62:
            raise CorruptCheckpointError(f"declares storage {key!r} with {numel!r} elements")
        ref = self._declare(key, location, numel * dtype.itemsize, dtype.itemsize)
        if self._swapped and kind.name not in _UNTYPED:
            ref = self._turn(ref, dtype)
        if view is not None:
            ref, numel = self._part(ref, view, dtype.itemsize)
        slot = (key, dtype, view)
        storage = self._storages.get(slot)
        if storage is None:
            spec = TensorSpec(dtype, (numel,))
            storage = LazyStorage(self._source, ref, spec, (1,), device=location, class_name=kind.qualified)
            self._storages[slot] = storage
        return storage

    def storage_dtype(self, kind: Global) -> torch.dtype:
        """The dtype of a storage's elements, by the name of its class."""
        row = BY_STORAGE.get(kind.name)
        if row is not None:
            self._types[kind] = row.torch
        elif kind.name in _QUANTIZED:
            self._types[kind] = quantized_ints(_QUANTIZED[kind.name])[0]
        elif kind.name in _UNTYPED:
            self._types[kind] = torch.uint8
        else:
            raise UnsupportedFeatureError(f"holds storages of type {kind.qualified[:200]}, which torchkeep cannot read")
        return self._types[kind]

    def _declare(self, key: str, location: str, nbytes: int, itemsize: int) -> StorageRef:
        declared = self._declared.get(key)
        if declared is None:
            self.item_sizes[key] = itemsize
            declared = self._declared[key] = (self._place(key, nbytes), location)
        if declared[0].nbytes != nbytes or declared[1] != location:
            raise CorruptCheckpointError(
                f"declares storage {key!r} as {declared[0].nbytes} bytes on {declared[1]} "
                f"and as {nbytes} bytes on {location}"
            )
        return declared[0]

    def _turn(self, ref: StorageRef, dtype: torch.dtype) -> StorageRef:
        """The storage with the bytes of its elements in this machine's order."""
        width = dtype.itemsize // (2 if dtype.is_complex else 1)
        if width < 2 or ref.offset is None:
            return ref
        turned = self._turned.get((id(ref), width))
        if turned is None:
            whole = Slice(ref.source or self._source, ref.offset, ref.nbytes // width * width)
            turned = self._turned[id(ref), width] = StorageRef(ref.nbytes, 0, source=Swapped(whole, width))
        return turned

    def _part(self, root: StorageRef, view: Any, itemsize: int) -> tuple[StorageRef, int]:
        """A storage that is a stretch of another one, as torch 0.1 to 0.4 wrote them."""
        valid = type(view) is tuple and len(view) == 3 and all(type(number) is int for number in view[1:])
        if not valid or type(view[0]) is not str or min(view[1:]) < 0:
            raise CorruptCheckpointError("declares a part of a storage by something else than key, offset and size")
        start, size = view[1] * itemsize, view[2] * itemsize
        if start + size > root.nbytes:
            raise CorruptCheckpointError(
                f"declares a part of a storage that ends at byte {start + size} of {root.nbytes}"
            )
        part = StorageRef(size, None if root.offset is None else root.offset + start, root.problem)
        self._views.append((part, root, start))
        return part, view[2]

    # Rebuild functions

    def _builders(self) -> dict[tuple[str, str], Callable[..., Any]]:
        builders: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor"): self.strided,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor_v2,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter_with_state,
            ("torch._utils", "_rebuild_meta_tensor_no_storage"): self._meta,
            ("torch.nn.parameter", "Parameter"): _old(_PARAMETER, "parameter"),
            ("torch.autograd.variable", "Variable"): _old(_VARIABLE, "tensor"),
        }
        for module in ("torch._tensor", "torch.tensor"):
            builders[module, "_rebuild_from_type"] = self._of_type
            builders[module, "_rebuild_from_type_v2"] = self._of_type
        builders |= {
            ("torch._utils", "_rebuild_sparse_tensor"): self._sparse,
            ("torch._utils", "_rebuild_sparse_csr_tensor"): self._sparse,
            ("torch._utils", "_rebuild_qtensor"): self._quantized,
            ("torch._utils", "_rebuild_nested_tensor"): self._nested,
            ("torch._utils", "_rebuild_wrapper_subclass"): self._wrapper,
            ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): self._from_cpu,
            ("torch.storage", "_load_from_bytes"): self._from_bytes,
        }
        for name in ("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor", "_rebuild_mlc_tensor"):
            builders["torch._utils", name] = self._from_numpy
        for row in DTYPES.values():
            if row.storage:
                name = row.storage.removesuffix("Storage") + "Tensor"
                builders["torch.sparse", name] = builders["torch.cuda.sparse", name] = self._coordinates
        return builders

    def strided(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any = False,
        dtype: Any = None,
        metadata: Any = None,
    ) -> LazyTensor:
        """A tensor of a storage, after its sizes, strides and offset were held against it."""
        if type(storage) is not LazyStorage or storage.storage is None:
            raise CorruptCheckpointError("builds a tensor from something that is no storage")
        if dtype is None:
            dtype = storage.spec.dtype
        elif not isinstance(dtype, torch.dtype):
            raise UnsupportedFeatureError(f"holds tensors of dtype {_text(dtype)}, which torchkeep cannot read")
        spec, stride = _geometry(dtype, size, stride)
        check_geometry(spec, stride, offset, storage.storage.nbytes, file="", place="")
        flags = metadata if isinstance(metadata, dict) else {}
        untyped = storage.class_name.rpartition(".")[2] in _UNTYPED
        return LazyTensor(
            storage.source,
            self._turn(storage.storage, dtype) if self._swapped and untyped else storage.storage,
            spec,
            stride,
            offset,
            device=storage.device,
            requires_grad=bool(requires_grad is True or requires_grad == 1),
            conj=flags.get("conj") is True,
            neg=flags.get("neg") is True,
        )

    def _tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None
    ) -> LazyTensor:
        return self.strided(storage, offset, size, stride, grad, None, metadata)

    def _tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
    ) -> LazyTensor:
        return self.strided(storage, offset, size, stride, grad, dtype, metadata)

    def _meta(self, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> LazyTensor:
        if not isinstance(dtype, torch.dtype):
            raise UnsupportedFeatureError(f"holds tensors of dtype {_text(dtype)}, which torchkeep cannot read")
        spec, stride = _geometry(dtype, size, stride)
        check_geometry(spec, stride, 0, 1 << 200, file="", place="")
        return LazyTensor(self._source, None, spec, stride, device="meta", requires_grad=requires_grad is True)

    def _parameter(self, data: Any, requires_grad: Any, hooks: Any) -> Any:
        tensor = as_tensor(data)
        if not isinstance(tensor, LazyTensor):
            return NotImplemented
        return tensor.replace(kind="parameter", requires_grad=requires_grad is True)

    def _parameter_with_state(self, data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
        made = self._parameter(data, requires_grad, hooks)
        return made.replace(attributes=state or None) if isinstance(made, LazyTensor) else made

    def _of_type(self, function: Any, cls: Any, args: Any, state: Any) -> Any:
        """A tensor of a subclass, or one with attributes: made by another rebuild function and then dressed."""
        builder = self._rebuild.get((function.module, function.name)) if isinstance(function, Global) else None
        if builder is None or type(args) is not tuple:
            return NotImplemented
        made = builder(*args)
        if isinstance(made, _Shell):
            return _unwrapped(made, cls, state)
        if not isinstance(made, LazyTensor):
            return NotImplemented
        name = cls.qualified if isinstance(cls, Global) else "<computed by the file>"
        kind = "parameter" if name == _PARAMETER else made.kind
        if isinstance(state, dict) and state.get("_is_buffer") is True:  # how nn.Buffer marks itself
            kind, state = "buffer", {key: state[key] for key in state if key not in {"_is_buffer", "persistent"}}
        own = name in _TENSOR_CLASSES or name == _PARAMETER
        return made.replace(kind=kind, class_name="" if own else name, attributes=state or None)

    # Tensors made of other tensors

    def _sparse(self, layout: Any, data: Any) -> LazyTensor:
        """(indices, values, size[, coalesced]), or (compressed indices, plain indices, values, size)."""
        name = _layout_name(layout)
        if type(data) is not tuple or not 3 <= len(data) <= 5:
            raise CorruptCheckpointError("builds a sparse tensor from something that is no tuple of its parts")
        if name == "sparse_coo":
            return self._coordinates(*data)
        if name not in {"sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"} or len(data) < 4:
            raise UnsupportedFeatureError(f"holds a tensor of layout {name[:60]!r}, which torchkeep cannot read")
        names = ("compressed_indices", "plain_indices", "values")
        return self._composite(Compressed(name), dict(zip(names, data[:3], strict=True)), data[3])

    def _coordinates(self, indices: Any, values: Any, size: Any, coalesced: Any = None) -> LazyTensor:
        kind = Coo(coalesced if isinstance(coalesced, bool) else None)
        return self._composite(kind, {"indices": indices, "values": values}, size)

    def _composite(self, composition: Any, parts: dict[str, Any], size: Any) -> LazyTensor:
        tensors = {name: as_tensor(part) for name, part in parts.items()}
        for name, tensor in tensors.items():
            if not isinstance(tensor, LazyTensor):
                raise CorruptCheckpointError(f"builds a {composition.layout} tensor whose {name} are no tensor")
        values = tensors["values"]
        spec, _ = _geometry(values.dtype, size, ())
        check_sizes(spec)
        return Composite(composition, tensors, values.source, spec, device=values.device)

    def _quantized(
        self, storage: Any, offset: Any, size: Any, stride: Any, params: Any, grad: Any = False, hooks: Any = None
    ) -> LazyTensor:
        kind = storage.class_name.rpartition(".")[2] if type(storage) is LazyStorage else ""
        if kind not in _QUANTIZED or type(params) is not tuple or not 3 <= len(params) <= 4:
            raise CorruptCheckpointError("builds a quantized tensor from other parts than torch does")
        dtype = _QUANTIZED[kind]
        spec, stride = _geometry(dtype, size, stride)
        packed = quantized_ints(dtype)[1]
        if packed == 1:
            ints = self.strided(storage, offset, size, stride)
        else:  # several elements in a byte: the bytes as they lie
            check_sizes(spec)
            ints = self.strided(storage, offset, (-(-spec.numel // packed),), (1,))
        parts = {"ints": ints}
        scheme = _text(params[0]).removeprefix("torch.")
        if scheme == "per_tensor_affine":
            if type(params[1]) not in {float, int} or type(params[2]) is not int:
                raise CorruptCheckpointError("has a quantized tensor whose scale or zero point is no number")
            how = Quantized(scheme, float(params[1]), params[2])
        elif scheme.startswith("per_channel_affine") and len(params) == 4 and type(params[3]) is int:
            how = Quantized(scheme, axis=params[3])
            parts["scales"] = self._values(params[1], torch.float64)
            parts["zero_points"] = self._values(params[2], torch.int64)
        else:
            raise UnsupportedFeatureError(
                f"has a quantized tensor of scheme {scheme[:60]}, which torchkeep cannot read"
            )
        return Composite(how, parts, ints.source, spec, device=ints.device, stride=stride, requires_grad=grad is True)

    def _values(self, values: Any, dtype: torch.dtype) -> LazyTensor:
        """A tensor, or the list of numbers that stood for one before torch 1.5."""
        tensor = as_tensor(values)
        if isinstance(tensor, LazyTensor):
            return tensor
        if not isinstance(values, list) or not all(type(value) in {int, float} for value in values):
            raise CorruptCheckpointError("has a quantized tensor whose scales or zero points are no numbers")
        try:
            return held_tensor(torch.tensor(values, dtype=dtype), self._source.name)
        except (OverflowError, RuntimeError) as error:
            raise CorruptCheckpointError(f"has a quantized tensor with a zero point out of range: {error}") from error

    def _nested(self, buffer: Any, sizes: Any, strides: Any, offsets: Any) -> Any:
        parts = {"buffer": buffer, "sizes": sizes, "strides": strides, "offsets": offsets}
        if not all(isinstance(as_tensor(part), LazyTensor) for part in parts.values()):
            return NotImplemented
        return Composite(Nested(), parts, buffer.source, buffer.spec, device=buffer.device)

    def _wrapper(self, cls: Any, dtype: Any, size: Any, *rest: Any) -> Any:
        return _Shell(tuple(size) if isinstance(size, (tuple, list)) else ())

    # Tensors that were not saved as storages

    def _from_cpu(self, data: Any, dtype: Any, device: Any, requires_grad: Any) -> Any:
        tensor = as_tensor(data)
        if not isinstance(tensor, LazyTensor):
            return NotImplemented
        return tensor.replace(device=str(device), requires_grad=requires_grad is True)

    def _from_numpy(self, data: Any, dtype: Any, device: Any, requires_grad: Any) -> Any:
        if not isinstance(data, np.ndarray) or not isinstance(dtype, torch.dtype):
            return NotImplemented
        try:
            values = torch.from_numpy(data).to(dtype)
        except (TypeError, ValueError) as error:
            raise CorruptCheckpointError(f"builds a tensor from an array that cannot be one: {error}") from error
        return held_tensor(values, self._source.name).replace(device=str(device), requires_grad=requires_grad is True)

    def _from_bytes(self, data: Any) -> Any:
        """A whole save inside of a pickle: what pickle.dump makes of a storage."""
        from ._dispatch import open_inner

        if not isinstance(data, (bytes, bytearray)):
            message = "calls torch.storage._load_from_bytes, which can run code, on bytes that the file computes"
            self.findings.append(Finding("dangerous-global", "danger", message))
            return NotImplemented
        if self._limits.nesting < 1:
            raise UnsafeCheckpointError("has saves inside of saves deeper than Limits.nesting")
        inside = Held(bytes(data), f"{self._source.name}: a save inside")
        found = open_inner(inside, replace(self._limits, nesting=self._limits.nesting - 1))
        self.findings.extend(found.findings)
        return found.tree

    # Tensors that old files make in two steps: an empty object, then its state

    def _finish_tensor(self, record: Record) -> None:
        """Turn the state of such an object into the tensor it is: (storage, offset, size, stride),
        (data, gradient, hooks, requires_grad, volatile), or (requires_grad, volatile, hooks)."""
        state = record.state
        if type(state) is not tuple:
            return
        if len(state) == 4 and type(state[0]) is LazyStorage:
            record.tensor = self.strided(*state)
        elif len(state) == 5 and isinstance(as_tensor(state[0]), LazyTensor):
            record.tensor = as_tensor(state[0]).replace(requires_grad=state[3] is True)
        elif len(state) == 3 and record.tensor is not None:
            record.tensor = record.tensor.replace(requires_grad=state[0] is True)
        else:
            return
        if record.class_name == _PARAMETER:
            record.tensor = record.tensor.replace(kind="parameter")
        record.args, record.state = (), None  # all of it is in the tensor now


def _old(name: str, kind: str) -> Callable[..., Any]:
    """A builder for `Parameter(data)` and `Variable(data)`, which may get their flags by a state later."""

    def build(data: Any = None, requires_grad: Any = None, *rest: Any) -> Any:
        tensor = as_tensor(data)
        if not isinstance(tensor, LazyTensor):
            return NotImplemented
        grad = kind == "parameter" if requires_grad is None else requires_grad is True
        return Record(Global(*name.rsplit(".", 1)), tensor=tensor.replace(kind=kind, requires_grad=grad))

    return build


def _geometry(dtype: torch.dtype, size: Any, stride: Any) -> tuple[TensorSpec, tuple[int, ...]]:
    if not isinstance(size, (tuple, list)) or not isinstance(stride, (tuple, list)):
        raise CorruptCheckpointError("builds a tensor with sizes or strides that are no tuples")
    if len(size) > _DIMENSIONS or len(stride) > _DIMENSIONS:
        raise CorruptCheckpointError(f"builds a tensor of {max(len(size), len(stride))} dimensions")
    return TensorSpec(dtype, tuple(size)), tuple(stride)


def _text(value: Any) -> str:
    return value.qualified[:200] if isinstance(value, Global) else type(value).__name__


def _layout_name(layout: Any) -> str:
    """A layout is a name, or since 2.1 a call that looks one up."""
    if isinstance(layout, Record) and layout.args and isinstance(layout.args[0], str):
        return layout.args[0].removeprefix("torch.")
    return _text(layout).removeprefix("torch.")


def check_sizes(spec: TensorSpec) -> None:
    """Refuse sizes that are no numbers of elements."""
    check_geometry(spec, (0,) * len(spec.shape), 0, spec.dtype.itemsize, file="", place="")


def held_tensor(values: torch.Tensor, file: str) -> LazyTensor:
    """A tensor that is in memory already, as one that can be loaded."""
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    spec = TensorSpec(values.dtype, tuple(values.shape))
    return LazyTensor(Held(data, file), StorageRef(len(data), 0), spec, contiguous_stride(spec.shape))


@dataclass(frozen=True, slots=True)
class _Shell:
    """A tensor of a class that wraps others, before it is known what it wraps."""

    size: tuple[Any, ...]


def _unwrapped(shell: _Shell, cls: Any, state: Any) -> Any:
    """The part of a DTensor that its process held; of another class a record of what it wraps."""
    if type(state) is tuple and len(state) == 2 and state[0] is None:  # (dict, slots) with one of them empty
        state = state[1]
    local = as_tensor(state.get("_local_tensor")) if isinstance(state, dict) else None
    if not isinstance(local, LazyTensor):
        return Record(cls, (shell.size,), state=state)
    check_sizes(TensorSpec(local.dtype, shell.size))
    spec = state.get("_spec")
    placements = spec.state.get("placements") if isinstance(spec, Record) and isinstance(spec.state, dict) else None
    return local.replace(
        class_name=cls.qualified if isinstance(cls, Global) else "<computed by the file>",
        attributes={"placements": placements} if placements is not None else None,
        global_shape=shell.size,
    )
