"""What torch puts into its pickles: persistent ids that stand for storages, and calls that rebuild tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..core.checkpoint import Finding
from ..core.composite import quantized_ints
from ..core.limits import Limits
from ..core.source import Held, Slice, Source, Swapped
from ..core.tensors import (
    BY_STORAGE,
    DTYPES,
    LazyTensor,
    StorageRef,
    TensorSpec,
    check_geometry,
)
from ..core.tree import Global, Record, as_tensor
from ..errors import CorruptCheckpointError, OpenError, UnsupportedFeatureError
from ._composites import QUANTIZED_STORAGES, Composites, Shell, geometry, held_tensor, text_of, unwrapped
from ._names import dangers_in, findings_of
from ._pickle import Dialect, Use

_DIMENSIONS = 64
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
        elif kind.name in QUANTIZED_STORAGES:
            self._types[kind] = quantized_ints(QUANTIZED_STORAGES[kind.name])[0]
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
        part = StorageRef(size, None if root.offset is None else root.offset + start, root.problem, root.source)
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
        builders |= Composites(self.strided, self._source.name).builders()
        builders |= {
            ("torch._utils", "_rebuild_wrapper_subclass"): self._wrapper,
            ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): self._from_cpu,
            ("torch.storage", "_load_from_bytes"): self._from_bytes,
        }
        for name in ("_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor", "_rebuild_mlc_tensor"):
            builders["torch._utils", name] = self._from_numpy
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
            raise UnsupportedFeatureError(f"holds tensors of dtype {text_of(dtype)}, which torchkeep cannot read")
        spec, stride = geometry(dtype, size, stride)
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
            raise UnsupportedFeatureError(f"holds tensors of dtype {text_of(dtype)}, which torchkeep cannot read")
        spec, stride = geometry(dtype, size, stride)
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
        if isinstance(made, Shell):
            return unwrapped(made, cls, state)
        if not isinstance(made, LazyTensor):
            return NotImplemented
        name = cls.qualified if isinstance(cls, Global) else "<computed by the file>"
        kind = "parameter" if name == _PARAMETER else made.kind
        if isinstance(state, dict) and state.get("_is_buffer") is True:  # how nn.Buffer marks itself
            kind, state = "buffer", {key: state[key] for key in state if key not in {"_is_buffer", "persistent"}}
        own = name in _TENSOR_CLASSES or name == _PARAMETER
        return made.replace(kind=kind, class_name="" if own else name, attributes=state or None)

    def _wrapper(self, cls: Any, dtype: Any, size: Any, *rest: Any) -> Any:
        return Shell(tuple(size) if isinstance(size, (tuple, list)) else ())

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
        inside = Held(bytes(data), f"{self._source.name}: a save inside")
        found = open_inner(inside, self._limits)
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
