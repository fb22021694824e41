"""Where the values of a model's tensors were loaded from, kept with the modules that have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from torch import nn
from torch.nn.parameter import is_lazy

from .about import Parent
from .live import named_modules

_ATTRIBUTE = "_torchkeep_origins"
_LINEAGE = "_torchkeep_lineage"


class Origin(msgspec.Struct, frozen=True):
    """Where one tensor was loaded from. What became of its values since is not said.

    Attributes:
        file: the file or run, as the caller named it.
        name: its name in there.
        digest: BLAKE3 of its bytes in there; empty where the file does not say and nobody computed it.
        adapter: what made it fit, empty where it fitted as it was.
    """

    file: str
    name: str
    digest: str = ""
    adapter: str = ""


class Origins(msgspec.Struct, frozen=True, omit_defaults=True):
    """The same for many tensors, as it is written.

    Attributes:
        files: each file once.
        tensors: name -> [number of its file, name in there or "" where that is the same, digest, adapter], without
            what is empty at the end.
    """

    files: list[str] = []
    tensors: dict[str, list[int | str]] = {}


def origins_of(model: nn.Module) -> dict[str, Origin]:
    """Name -> where it was loaded from, for all that was loaded and has the shape still that it had then.

    >>> tk.load_into(model, {"backbone": "a.pth", "head": ("b.pth", "decoder")})   # doctest: +SKIP
    >>> tk.origins(model)["head.weight"].name                                       # doctest: +SKIP
    'decoder.weight'
    """
    found = {}
    for path, module in named_modules(model):
        known = module.__dict__.get(_ATTRIBUTE)
        shapes = _shapes(module) if known else {}
        for key, (shape, *parts) in (known or {}).items():
            if shapes.get(key) == shape:
                found[f"{path}.{key}" if path else key] = Origin(*parts)
    return found


def lineage_of(model: nn.Module, files: Iterable[str]) -> list[Parent]:
    """The files that tensors of a model were loaded from as parents, with what these files said when they were loaded.

    Args:
        model: any module.
        files: those of its origins that are asked for.
    """
    found: dict[str, list[Any]] = {file: [] for file in files}
    for _, module in named_modules(model):
        for file, held in module.__dict__.get(_LINEAGE, {}).items():
            if file in found and held not in found[file]:
                found[file].append(held)
    return [msgspec.convert(held, Parent) for file, all_held in found.items() for held in all_held or [{"name": file}]]


def remember(model: nn.Module, origins: Mapping[str, Origin], parents: Iterable[Parent] = ()) -> None:
    """Keep with each module where its tensors come from; what is not named keeps what is known of it.

    It is kept as plain tuples and dicts, so that who unpickles the module needs no torchkeep.

    Args:
        model: any module.
        origins: of its tensors, by name.
        parents: what is known of the files among them.
    """
    lineage = {parent.name: msgspec.to_builtins(parent) for parent in parents}
    for path, module in named_modules(model):
        lead = f"{path}." if path else ""
        shapes = _shapes(module).items()
        loaded = [(key, shape, origins[lead + key]) for key, shape in shapes if lead + key in origins]
        held = {key: (shape, *msgspec.structs.astuple(one)) for key, shape, one in loaded}
        if held:
            module.__dict__[_ATTRIBUTE] = module.__dict__.get(_ATTRIBUTE, {}) | held
            known = {one.file: lineage[one.file] for _, _, one in loaded if one.file in lineage}
            if known:
                module.__dict__[_LINEAGE] = module.__dict__.get(_LINEAGE, {}) | known


def forget(model: nn.Module) -> None:
    """Forget where anything comes from."""
    for _, module in named_modules(model):
        module.__dict__.pop(_ATTRIBUTE, None)
        module.__dict__.pop(_LINEAGE, None)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters and buffers that a module owns itself."""
    owned = [*module._parameters.items(), *module._buffers.items()]  # of a ScriptModule these are no dicts
    return {key: tuple(tensor.shape) for key, tensor in owned if tensor is not None and not is_lazy(tensor)}


def packed(origins: Mapping[str, Origin]) -> Origins:
    """Origins as they are written."""
    files = list(dict.fromkeys(origin.file for origin in origins.values()))
    number = {file: place for place, file in enumerate(files)}
    tensors: dict[str, list[int | str]] = {}
    for name, origin in origins.items():
        row: list[int | str] = [
            number[origin.file], "" if origin.name == name else origin.name, origin.digest, origin.adapter
        ]  # fmt: skip
        while row[-1] == "":
            row.pop()
        tensors[name] = row
    return Origins(files, tensors)


def unpacked(origins: Origins) -> dict[str, Origin]:
    """Origins that were read; raises ValueError where they are none."""
    found = {}
    for name, row in origins.tensors.items():
        number, *texts = row
        if type(number) is not int or not 0 <= number < len(origins.files) or len(texts) > 3:
            raise ValueError(f"the origin of {name!r} is {row!r}")
        original, digest, adapter = [*map(str, texts), "", "", ""][:3]
        found[name] = Origin(origins.files[number], original or name, digest, adapter)
    return found


def counted(origins: Mapping[str, Origin]) -> str:
    """Which files, and how many tensors from each: `a.pth (120), b.pth (14)`."""
    counts = Counter(origin.file for origin in origins.values())
    return ", ".join(f"{file} ({count})" for file, count in counts.items())
