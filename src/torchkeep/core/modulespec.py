"""What a live model is made of: its modules, and the dtype, shape and flags of its tensors, without their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from .freezespec import FreezeState, Frozen
from .names import fold
from .table import Table, human_bytes, human_count, shorten
from .tensors import DTYPES, LazyTensor, dtype_name


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One module of a model.

    Attributes:
        path: dotted, from the root; empty for the root itself.
        class_name: `module.name` of its class, e.g. `torch.nn.modules.linear.Linear`.
        training: its training flag.
        frozen: whether `freeze` holds it in eval mode.
    """

    path: str
    class_name: str
    training: bool
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One parameter or buffer of a model.

    Attributes:
        name: its name in the state dict.
        dtype: torch's name, e.g. `float32`.
        shape: in elements; `()` also while a lazy module has not seen its first batch.
        device: as torch writes it, e.g. `cuda:0`, `meta`.
        kind: `parameter` or `buffer`.
        persistent: whether the state dict has it.
        requires_grad: whether it is trained.
        tied_to: the first name of the same tensor, when it has several names and this is a later one.
        initialized: False for the parameters of a lazy module that has not seen its first batch.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    kind: Literal["parameter", "buffer"]
    persistent: bool = True
    requires_grad: bool = False
    tied_to: str | None = None
    initialized: bool = True

    @property
    def numel(self) -> int:
        """Number of elements; 0 while not initialised."""
        return prod(self.shape) if self.initialized else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; a dtype that cannot be stored in a file counts as one byte an element."""
        row = DTYPES.get(self.dtype)
        return self.numel * (row.torch.itemsize if row else 1)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape)) if self.initialized else '?'}]"


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A live model, described: `spec.numel`, `spec.trainable`, `print(spec)`.

    Attributes:
        class_name: `module.name` of the root's class.
        modules: the root and every module below it, parents first; a shared module stands under each of its names.
        tensors: parameters and buffers in the order of the state dict.
        freeze: the spec it was frozen by and the phase it is in, if there is one.
    """

    class_name: str
    modules: tuple[ModuleEntry, ...]
    tensors: tuple[TensorEntry, ...]
    freeze: FreezeState | None = None

    @property
    def numel(self) -> int:
        """Elements of all parameters, tied ones counted once."""
        return sum(entry.numel for entry in self._parameters())

    @property
    def trainable(self) -> int:
        """Elements of the parameters that require gradients, tied ones counted once."""
        return sum(entry.numel for entry in self._parameters() if entry.requires_grad)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters and buffers, tied ones counted once."""
        return sum(entry.nbytes for entry in self.tensors if entry.tied_to is None)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Paths of the modules that `freeze` holds in eval mode."""
        return tuple(entry.path for entry in self.modules if entry.frozen)

    @property
    def as_frozen(self) -> Frozen:
        """How the model is frozen, apart from what it is made of."""
        still = frozenset(entry.name for entry in self.tensors if entry.kind == "parameter" and not entry.requires_grad)
        return Frozen(self.frozen, still, self.freeze)

    def _parameters(self) -> list[TensorEntry]:
        return [entry for entry in self.tensors if entry.kind == "parameter" and entry.tied_to is None]

    def table(self) -> Table:
        """What the model is made of, folded for people."""
        entries = {entry.name: entry for entry in self.tensors}
        parameters = self._parameters()
        buffers = sum(entry.kind == "buffer" for entry in self.tensors)
        share = f" ({self.trainable / self.numel:.1%})" if self.numel else ""
        return Table(
            title=self.class_name,
            facts=(
                ("modules", f"{len(self.modules)} ({shorten(sorted({_short(m.class_name) for m in self.modules}))})"),
                ("parameters", f"{len(parameters)} ({human_count(self.numel)} elements), {buffers} buffers"),
                ("trainable", f"{human_count(self.trainable)} of {human_count(self.numel)} elements{share}"),
                ("size", human_bytes(self.nbytes)),
                ("devices", ", ".join(sorted({entry.device for entry in self.tensors}))),
                ("mode", _mode(self.modules)),
                ("phase", _phase(self.freeze)),
                ("frozen", shorten(path or "(the whole model)" for path, _ in fold(_outermost(self.frozen)))),
            ),
            columns=("name", "tensor", "count", "size", "device", "grad"),
            rows=tuple(_row(name, [entries[member] for member in members]) for name, members in fold(entries)),
            notes=_notes(self.tensors),
        )

    def __str__(self) -> str:
        return str(self.table())


def of_frozen(frozen: Frozen, tensors: Mapping[str, LazyTensor]) -> ModuleSpec | None:
    """What was frozen of a model, where a file says no more of it; None where nothing was."""
    if not frozen:
        return None
    entries = (
        TensorEntry(name, dtype_name(tensor.dtype), tensor.spec.shape, tensor.device, "parameter")
        for name, tensor in tensors.items()
        if name in frozen.still
    )
    held = tuple(ModuleEntry(path, "", training=False, frozen=True) for path in frozen.held)
    return ModuleSpec("", held, tuple(entries), frozen.state)


def _phase(state: FreezeState | None) -> str:
    if state is None:
        return ""
    phases = state.spec.phases
    return f"{state.phase + 1} of {len(phases)}, trains {str(phases[state.phase].selector)!r}"


def _short(class_name: str) -> str:
    return class_name.rpartition(".")[2]


def _mode(modules: tuple[ModuleEntry, ...]) -> str:
    training = sum(entry.training for entry in modules)
    if training in (0, len(modules)):
        return "training" if training else "eval"
    return f"training, {len(modules) - training} of {len(modules)} modules in eval"


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths that lie below none of the others; `paths` has parents before children."""
    kept: set[str] = set()
    for path in paths:
        pieces = path.split(".") if path else []
        above = {".".join(pieces[:count]) for count in range(len(pieces))}
        if not above & kept:
            kept.add(path)
    return [path for path in paths if path in kept]


def _row(name: str, members: list[TensorEntry]) -> tuple[str, ...]:
    kinds = {str(entry) for entry in members}
    grads = [entry.requires_grad for entry in members]
    grad = "yes" if all(grads) else "no" if not any(grads) else f"{sum(grads)} of {len(grads)}"
    return (
        name,
        str(members[0]) if len(kinds) == 1 else f"{len(kinds)} shapes",
        str(len(members)),
        human_bytes(sum(entry.nbytes for entry in members)),
        ", ".join(sorted({entry.device for entry in members})),
        "buffer" if all(entry.kind == "buffer" for entry in members) else grad,
    )


def _notes(tensors: tuple[TensorEntry, ...]) -> tuple[str, ...]:
    lazy = [entry.name for entry in tensors if not entry.initialized]
    unsaved = [name for name, _ in fold(entry.name for entry in tensors if not entry.persistent)]
    notes = [f"{entry.name} is the same tensor as {entry.tied_to}" for entry in tensors if entry.tied_to is not None]
    if len(notes) > 8:
        notes = [*notes[:8], f"and {len(notes) - 8} more names of the same tensors"]
    if unsaved:
        notes.append(f"not in the state dict: {shorten(unsaved)}")
    if lazy:
        notes.append(f"not initialised before the first batch: {shorten(lazy)}")
    return tuple(notes)
