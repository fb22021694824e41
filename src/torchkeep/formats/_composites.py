"""What torch's pickles say of tensors that are made of others: sparse, quantized, nested, and wrapped ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.composite import Composite, Compressed, Coo, Nested, Quantized, quantized_ints
from ..core.source import Held
from ..core.tensors import DTYPES, LazyTensor, StorageRef, TensorSpec, check_geometry, contiguous_stride
from ..core.tree import Global, Record, as_tensor
from ..errors import CorruptCheckpointError, UnsupportedFeatureError

QUANTIZED_STORAGES = {
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
_DIMENSIONS = 64


class Composites:
    """The rebuild functions of one file.

    Args:
        strided: makes a tensor of a storage, its offset, sizes and strides.
        file: for messages.
    """

    def __init__(self, strided: Callable[..., LazyTensor], file: str) -> None:
        self._strided = strided
        self._file = file

    def builders(self) -> dict[tuple[str, str], Callable[..., Any]]:
        """What stands in for each function of torch."""
        builders: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_sparse_tensor"): self._sparse,
            ("torch._utils", "_rebuild_sparse_csr_tensor"): self._sparse,
            ("torch._utils", "_rebuild_qtensor"): self._quantized,
            ("torch._utils", "_rebuild_nested_tensor"): self._nested,
        }
        for row in DTYPES.values():
            if row.storage:
                name = row.storage.removesuffix("Storage") + "Tensor"
                builders["torch.sparse", name] = builders["torch.cuda.sparse", name] = self._coordinates
        return builders

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
        spec, _ = geometry(values.dtype, size, ())
        check_sizes(spec)
        return Composite(composition, tensors, values.source, spec, device=values.device)

    def _quantized(
        self, storage: Any, offset: Any, size: Any, stride: Any, params: Any, grad: Any = False, hooks: Any = None
    ) -> LazyTensor:
        kind = storage.class_name.rpartition(".")[2] if isinstance(storage, LazyTensor) else ""
        if kind not in QUANTIZED_STORAGES or type(params) is not tuple or not 3 <= len(params) <= 4:
            raise CorruptCheckpointError("builds a quantized tensor from other parts than torch does")
        dtype = QUANTIZED_STORAGES[kind]
        spec, stride = geometry(dtype, size, stride)
        packed = quantized_ints(dtype)[1]
        if packed == 1:
            ints = self._strided(storage, offset, size, stride)
        else:  # several elements in a byte: the bytes as they lie
            check_sizes(spec)
            ints = self._strided(storage, offset, (-(-spec.numel // packed),), (1,))
        parts = {"ints": ints}
        scheme = text_of(params[0]).removeprefix("torch.")
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
            return held_tensor(torch.tensor(values, dtype=dtype), self._file)
        except (OverflowError, RuntimeError) as error:
            raise CorruptCheckpointError(f"has a quantized tensor with a zero point out of range: {error}") from error

    def _nested(self, buffer: Any, sizes: Any, strides: Any, offsets: Any) -> Any:
        parts = {"buffer": buffer, "sizes": sizes, "strides": strides, "offsets": offsets}
        if not all(isinstance(as_tensor(part), LazyTensor) for part in parts.values()):
            return NotImplemented
        return Composite(Nested(), parts, buffer.source, buffer.spec, device=buffer.device)


def geometry(dtype: torch.dtype, size: Any, stride: Any) -> tuple[TensorSpec, tuple[int, ...]]:
    """Sizes and strides out of a pickle, which are tuples at least."""
    if not isinstance(size, (tuple, list)) or not isinstance(stride, (tuple, list)):
        raise CorruptCheckpointError("builds a tensor with sizes or strides that are no tuples")
    if len(size) > _DIMENSIONS or len(stride) > _DIMENSIONS:
        raise CorruptCheckpointError(f"builds a tensor of {max(len(size), len(stride))} dimensions")
    return TensorSpec(dtype, tuple(size)), tuple(stride)


def text_of(value: Any) -> str:
    """What a value is called in a message."""
    return value.qualified[:200] if isinstance(value, Global) else type(value).__name__


def _layout_name(layout: Any) -> str:
    """A layout is a name, or since 2.1 a call that looks one up."""
    if isinstance(layout, Record) and layout.args and isinstance(layout.args[0], str):
        return layout.args[0].removeprefix("torch.")
    return text_of(layout).removeprefix("torch.")


def check_sizes(spec: TensorSpec) -> None:
    """Refuse sizes that are no numbers of elements."""
    check_geometry(spec, (0,) * len(spec.shape), 0, spec.dtype.itemsize, file="", place="")


def held_tensor(values: torch.Tensor, file: str) -> LazyTensor:
    """A tensor that is in memory already, as one that can be loaded."""
    data = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
    spec = TensorSpec(values.dtype, tuple(values.shape))
    return LazyTensor(Held(data, file), StorageRef(len(data), 0), spec, contiguous_stride(spec.shape))


@dataclass(frozen=True, slots=True)
class Shell:
    """A tensor of a class that wraps others, before it is known what it wraps."""

    size: tuple[Any, ...]


def unwrapped(shell: Shell, cls: Any, state: Any) -> Any:
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
