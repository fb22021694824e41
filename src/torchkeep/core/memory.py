"""The memory of a tensor as bytes."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import torch

from ..errors import UnsavableError


def pages(nbytes: int) -> mmap.mmap:
    """Memory of this process alone, beginning at a page, in large pages where the system has them.

    Python's own default is memory shared with children, of which there are small pages only: a disk writes from those
    a third slower.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, nbytes)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def in_place(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor is its elements in row-major order, on the CPU, as they are."""
    return tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor in row-major order as bytes; a view wherever the layout allows, else one copy.

    Raises:
        UnsavableError: it is sparse, quantized or of another kind that is not made of strided elements.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        raise UnsavableError(f"a {kind} tensor cannot be written yet", hint="save tensor.to_dense() or its parts")
    plain = tensor
    if not in_place(tensor):
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if not plain.numel():
        return memoryview(b"")
    # A view by address costs a tenth of the torch calls that would say the same, which counts with 20,000 tensors.
    array = (ctypes.c_ubyte * plain.nbytes).from_address(plain.data_ptr())
    array.owner = plain  # type: ignore[attr-defined] # keeps the memory as long as the view
    return memoryview(array).cast("B")
