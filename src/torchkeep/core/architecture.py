"""What it takes to make a saved model again, as it stands in its file: kinds of modules, and which stands where."""

from __future__ import annotations

from typing import Any

import msgspec


class ClassEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One class of modules.

    Attributes:
        name: `module.name`.
        code: method -> digest of its source, for classes outside of torch.
        parametrized: its modules had parametrizations of `torch.nn.utils.parametrize`.
    """

    name: str
    code: dict[str, str] = {}
    parametrized: bool = False


class Kind(msgspec.Struct, frozen=True, omit_defaults=True):
    """What modules have in common that differ in nothing but their tensors, their mode and their place.

    Attributes:
        of: its class, by its place in `Architecture.classes`.
        attributes: name -> tagged JSON; of a later kind of a class only those that its first kind has not.
        without: attributes of the first kind that it lacks.
        children, parameters, buffers: names in their order; None where they are those of the first kind.
        absent: which of these were registered as None.
        transient: names of the buffers that no state dict has.
        call: [arguments, named arguments] of the constructor as tagged JSON, where they were recorded.
        hooks: kind of hook -> what was hooked in, as tagged JSON.
    """

    of: int
    attributes: dict[str, Any] = {}
    without: list[str] = []
    children: list[str] | None = None
    parameters: list[str] | None = None
    buffers: list[str] | None = None
    absent: list[str] = []
    transient: list[str] = []
    call: Any = None
    hooks: dict[str, list[Any]] = {}


class HeldTensor(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """A tensor outside of the state dict.

    Attributes:
        dtype, shape: of it.
        start, size: where its bytes, compressed, are in the bytes of `Architecture.bytes`; start -1 on the meta device.
        parameter, requires_grad: what it was.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = -1
    size: int = 0
    parameter: bool = False
    requires_grad: bool = False


class Architecture(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the modules of a model were, without the values of its state dict.

    Modules are numbered from 0 in the order in which one meets them: the root, then all below its first child, ...

    Attributes:
        classes, kinds: of modules.
        modules: the kind of each module in that order; -1 - number where a module is met again.
        eval: which modules were in eval mode, by their numbers: [first, count, first, count ...].
        objects: values that several modules hold, or that hold themselves, as tagged JSON.
        tensors: those outside of the state dict.
        held: name -> number in `tensors` of parameters and buffers outside of it.
        bytes: of `tensors`, each compressed by zlib, one after another, as base64.
        lost: place -> why it could not be kept.
        factory: `package.module:function` that makes the model, where one was given.
        call: [arguments, named arguments] of the factory.
        libraries: versions of the packages that the classes are from.
    """

    classes: list[ClassEntry] = []
    kinds: list[Kind] = []
    modules: list[int] = []
    eval: list[int] = []
    objects: list[Any] = []
    tensors: list[HeldTensor] = []
    held: dict[str, int] = {}
    bytes: str = ""
    lost: dict[str, str] = {}
    factory: str = ""
    call: Any = None
    libraries: dict[str, str] = {}
