"""Versions of torch that files are written for: how each of them lays a file out, and what it cannot open."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.composite import Chunked, Quantized
from ..core.tensors import LazyTensor, dtype_name
from ..errors import SaveError, UnsavableError

Version = tuple[int, int]

OLDEST: Version = (0, 4)  # its tensors are the first that _rebuild_tensor_v2 rebuilds
NEWEST: Version = (2, 15)

# The first version whose torch.load gives a tensor of the dtype.
DTYPES_SINCE: dict[str, Version] = {
    **dict.fromkeys(("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8"), OLDEST),
    "bool": (1, 1),
    "bfloat16": (1, 2),
    "qint8": (1, 3),
    "quint8": (1, 3),
    "qint32": (1, 3),
    "complex64": (1, 6),
    "complex128": (1, 6),
    "quint4x2": (1, 8),
    "quint2x4": (1, 11),
    "complex32": (2, 2),
    "float8_e4m3fn": (2, 2),
    "float8_e5m2": (2, 2),
    "float8_e4m3fnuz": (2, 2),
    "float8_e5m2fnuz": (2, 2),
    "uint16": (2, 3),
    "uint32": (2, 3),
    "uint64": (2, 3),
    "float8_e8m0fnu": (2, 7),
    "float4_e2m1fn_x2": (2, 8),
}
# The same for what a tensor is beside its dtype.
KINDS_SINCE: dict[str, Version] = {
    "empty": (1, 0),
    "per_channel_affine": (1, 3),
    "sparse_coo": (1, 6),  # 1.4 and 1.5 write them, and check them before they have read them
    "per_channel_affine_float_qparams": (1, 7),
    "meta": (1, 10),
    "sparse_csr": (1, 11),
    "conj": (2, 0),
    "neg": (2, 0),
    "sparse_csc": (2, 0),
    "sparse_bsr": (2, 0),
    "sparse_bsc": (2, 0),
    "nested": (2, 2),
}
_TEXT = re.compile(r"(?:torch\s*==\s*)?(\d{1,3})\.(\d{1,3})(?:\.\w+)*(?:\+[\w.]+)?")


@dataclass(frozen=True, slots=True)
class TorchVersion:
    """A version of torch that a file is written for.

    Attributes:
        number: (1, 13); what a file is made of never changed within a minor version.
        exact: whether files are what this version itself writes, and hold nothing that it cannot open.
    """

    number: Version
    exact: bool = True

    def __str__(self) -> str:
        return spelled(self.number)

    @property
    def is_legacy(self) -> bool:
        """Whether it wrote pickles and storages one after another unless it was asked for a zip."""
        return self.number < (1, 6)

    @property
    def builtins(self) -> str:
        """The module of `set` and `complex` in its pickles."""
        return "__builtin__" if self.number < (2, 6) else "builtins"  # since then weights_only is what it reads by

    @property
    def has_rebuild_parameter(self) -> bool:
        """Whether parameters have a function that rebuilds them; before, their class was called."""
        return self.number >= (1, 0)

    @property
    def enlarges_empty(self) -> bool:
        """Whether it makes room for the strides of a tensor without elements, and then misses the bytes of it."""
        return self.number < (1, 1)

    @property
    def lists_scales(self) -> bool:
        """Whether the scales and zero points of channels are lists, and not tensors."""
        return self.number < (1, 5)

    @property
    def has_rebuild_csr(self) -> bool:
        """Whether compressed rows have a function of their own that rebuilds them, which is gone since."""
        return self.number < (2, 0)

    @property
    def has_addresses(self) -> bool:
        """Whether storages are named after where they were in memory; later they are numbered."""
        return self.number < (1, 9)

    @property
    def names_folder(self) -> bool:
        """Whether the records lie in a folder of the file's name, and not in `archive`."""
        return self.number >= (1, 13)

    @property
    def has_untyped(self) -> bool:
        """Whether storages may be without a dtype, as those that tensors of several dtypes share."""
        return self.number >= (2, 2)

    @property
    def has_byteorder(self) -> bool:
        """Whether the byte order and an id of the file are records of their own."""
        return self.number >= (2, 1)

    @property
    def has_coalesced(self) -> bool:
        """Whether sparse tensors say if their indices are sorted and without doubles."""
        return self.number >= (2, 1)

    @property
    def has_format(self) -> bool:
        """Whether the version of the format and the alignment are records; storages then stand in pickled order."""
        return self.number >= (2, 7)

    def has_dtype(self, dtype: torch.dtype) -> bool:
        """Whether it has such tensors."""
        return DTYPES_SINCE.get(dtype_name(dtype), NEWEST) <= self.number

    def check(self, tensor: LazyTensor, name: str = "") -> None:
        """Refuse a tensor that it cannot open.

        Raises:
            UnsavableError: says what of the tensor is too new, and which version is the first that can.
        """
        if not self.exact:
            return
        since, what = needs(tensor)
        if since <= self.number:
            return
        hint = f"write for {spelled(since)} or later, or leave the tensor out (`torchkeep drop`)"
        if what.startswith("dtype") and tensor.dtype.is_floating_point and not tensor.parts:
            hint = f'cast it (dtype="float32", `--dtype float32`), or {hint}'
        whose = f"tensor {name!r}" if name else "a tensor that it holds"
        raise UnsavableError(
            f"{whose} is of {what}; {self} cannot open that, {spelled(since)} is the first that can",
            path=name,
            hint=hint,
        )


TODAY = TorchVersion(NEWEST, exact=False)  # what no version was named for: torch.load of here has to open it


def needs(tensor: LazyTensor) -> tuple[Version, str]:
    """The first version of torch that can open a tensor, and what of the tensor is as new as that."""
    name = dtype_name(tensor.dtype)
    found = [(DTYPES_SINCE.get(name, NEWEST), f"dtype {name}")]
    kinds: list[str] = [kind for kind in ("conj", "neg") if getattr(tensor, kind)]
    kinds += ["empty"] if not tensor.numel() and tensor.ndim > 1 else []
    kinds += ["meta"] if tensor.device == "meta" and tensor.storage is None and not tensor.parts else []
    how: Any = getattr(tensor, "composition", None)
    if isinstance(how, Quantized):
        kinds.append(how.scheme)
    elif how is not None and not isinstance(how, Chunked):
        kinds.append(tensor.layout)
        found += map(needs, tensor.parts.values())
    found += [(KINDS_SINCE.get(kind, OLDEST), _KINDS.get(kind, f"layout {kind}")) for kind in kinds]
    return max(found)


_KINDS: Mapping[str, str] = {
    "empty": "several dimensions and no elements",
    "meta": "the meta device",
    "conj": "conjugated numbers that are not computed yet",
    "neg": "negated numbers that are not computed yet",
    "nested": "nested tensors",
    "per_channel_affine": "scheme per_channel_affine",
    "per_channel_affine_float_qparams": "scheme per_channel_affine_float_qparams",
}


def spelled(version: Version) -> str:
    """`torch 1.13`."""
    return f"torch {version[0]}.{version[1]}"


def torch_version(text: str) -> TorchVersion:
    """The version that a text names: `torch==1.13.1`, `1.4`.

    Raises:
        SaveError: it names none, or one that files cannot be written for.
    """
    found = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
    if found is None:
        raise SaveError(f"{text!r} names no version of torch", hint='give one as text, such as "torch==1.4" or "1.13"')
    number = (int(found[1]), int(found[2]))
    if number < OLDEST:
        raise SaveError(
            f"files are not written for {spelled(number)}: what its pickles call is gone since",
            hint=f"{spelled(OLDEST)} is the oldest that can be written for",
        )
    if number > NEWEST:
        raise SaveError(
            f"what {spelled(number)} writes is not known here; {spelled(NEWEST)} is the newest that is",
            hint="leave the version out: then the file is what torch.load of today opens",
        )
    return TorchVersion(number)
