"""What it takes to make a model again, as data: the class of each module, what it held, and which tensors are its."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class ModuleRef:
    """A module of the model, where it stands among plain values: its place in `Blueprint.parts`."""

    index: int


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A value that several modules hold, where it stands in one: its place in `Blueprint.objects`."""

    index: int


@dataclass(frozen=True, slots=True)
class Construction:
    """What a class or a function was called with. Inert: records, names, lazy tensors and ModuleRefs for the rest."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """One module.

    Attributes:
        path: the first of its dotted paths, empty for the root; of a module that only an attribute holds, where.
        class_name: `module.name` of its class.
        training: its training flag; None where the file does not say.
        children: name -> its place in `Blueprint.parts`, or None for a child that was registered as None.
        parameters: name -> the tensor, or None for one that was registered as None.
        buffers: name -> the tensor, or None.
        transient: names of the buffers that no state dict has.
        attributes: everything else that it held, inert.
        construction: what its class was called with, where that was recorded.
        hooks: kind -> what was hooked in, inert. None of it is run.
        code: method -> digest of its source, for classes that are not torch's.
        source: text of its class, where the file has it.
        parametrized: its class had been given properties by `torch.nn.utils.parametrize`.
    """

    path: str
    class_name: str
    training: bool | None = None
    children: Mapping[str, int | None] = field(default_factory=dict)
    parameters: Mapping[str, LazyTensor | None] = field(default_factory=dict)
    buffers: Mapping[str, LazyTensor | None] = field(default_factory=dict)
    transient: frozenset[str] = frozenset()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    construction: Construction | None = None
    hooks: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    parametrized: bool = False


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A model that can be made.

    Attributes:
        file: where it was found.
        parts: its modules, each once, the root first.
        places: identity of a pickled module's record -> its place in `parts`, for records that attributes lead to.
        factory: name of the function that makes the whole model, `package.module:function`, where one was given.
        construction: what that function is called with.
        libraries: versions of the packages that its classes are from.
        lost: place -> why it could not be kept when it was saved.
        objects: values that several modules hold, inert.
    """

    file: str
    parts: tuple[Part, ...]
    places: Mapping[int, int] = field(default_factory=dict)
    factory: str = ""
    construction: Construction = Construction()
    libraries: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    objects: tuple[Any, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes of its modules, each once, in the order of the parts."""
        return tuple(dict.fromkeys(part.class_name for part in self.parts))
