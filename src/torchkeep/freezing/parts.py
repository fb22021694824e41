"""Freezing and unfreezing what a selector chooses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, overload

from torch import nn

from ..core.freezespec import FreezeSpec
from ..core.names import Selector, fold, is_under
from ..core.table import Table, human_count, shorten
from .holding import hold_all, is_held, release
from .phases import PhaseReport, freeze_by
from .view import Chosen, View, can_train, numel


@dataclass(frozen=True)
class FreezeReport:
    """What `freeze` or `unfreeze` did.

    Attributes:
        action: `froze` or `unfroze`.
        selection: the selector, as text.
        parameters: names of the parameters whose requires_grad was changed.
        modules: paths of the modules that are now held in eval mode and were not, or the other way round; the root
            is the empty path.
        unchanged: names of chosen parameters that were already as asked for.
        skipped: names of chosen parameters that cannot require gradients, because they hold integers.
        shared: (name, other names) of chosen parameters and modules that have several names.
        elements: elements of `parameters`.
        trainable: elements of the model that require gradients now.
        total: elements of the model.
    """

    action: str
    selection: str
    parameters: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()
    elements: int = 0
    trainable: int = 0
    total: int = 0

    def table(self) -> Table:
        """The report, folded for people."""
        eval_mode = "held in eval" if self.action == "froze" else "released"
        share = f" ({self.trainable / self.total:.1%})" if self.total else ""
        return Table(
            title=f"{self.action} {self.selection!r}",
            facts=(
                ("parameters", _counted(self.parameters, f" ({human_count(self.elements)} elements)")),
                (eval_mode, _counted([path or "(the whole model)" for path in self.modules])),
                ("trainable", f"{human_count(self.trainable)} of {human_count(self.total)} elements{share}"),
                ("unchanged", f"{len(self.unchanged)} parameters were so already" if self.unchanged else ""),
                ("skipped", f"{shorten(self.skipped)} cannot require gradients" if self.skipped else ""),
            ),
            notes=tuple(f"{name} is also known as {', '.join(others)}" for name, others in self.shared),
        )

    def __str__(self) -> str:
        return str(self.table())


def _counted(names: Iterable[str], size: str = "") -> str:
    listed = list(names)
    return f"{len(listed)}{size}: {shorten(name for name, _ in fold(listed))}" if listed else "none"


@overload
def freeze(model: nn.Module, selection: FreezeSpec, *, epoch: int = 0) -> PhaseReport: ...
@overload
def freeze(model: nn.Module, selection: str | Iterable[Any] | Selector | re.Pattern[str]) -> FreezeReport: ...
def freeze(model: nn.Module, selection: Any, *, epoch: int = 0) -> FreezeReport | PhaseReport:
    """Freeze a part of a model: parameters, normalisation statistics and dropout.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    >>> report = freeze(model, "* but 2")
    >>> report.modules, model.train()[1].training
    (('0', '1'), False)

    Chosen parameters get `requires_grad=False` and lose their gradient. Every module all of whose parameters, and
    those of its descendants, are then frozen is held in eval mode, through every later `train()`; so are modules
    without parameters (dropout, say) when the selector chooses them or they lie in a held module. Gradients still
    flow through. Dropout that a partly frozen module applies by function call stays on. Freezing again adds to what
    is frozen; a tied parameter is frozen under all its names.

    With a freeze spec the model becomes what the spec says for an epoch, and remembers the spec: it is saved with the
    model and with snapshots, and `tk.enter_phase` goes on from there.

    A pickle of the whole model needs torchkeep to be read; its state dict does not.

    Args:
        model: the model; DataParallel and torch.compile are seen through, so names do not have their prefix.
        selection: what `Selector` takes: `"backbone.*"`, `"* but head"`, `"first 3"`, `"re:^enc"` or a list. Blocks,
            for `first n` and `last n`, are the children of the model that own parameters, or of its only such child.
            Or a `FreezeSpec`.
        epoch: with a spec, the epoch that begins, from 0.

    Raises:
        SelectorError: the selector cannot be read, or chooses no parameter and no module.
    """
    if isinstance(selection, FreezeSpec):
        return freeze_by(model, selection, epoch)
    view = View(model)
    chosen = view.chosen(Selector.of(selection))
    changed = [index for index in chosen.parameters if view.parameters[index].requires_grad]
    for index in chosen.parameters:
        parameter = view.parameters[index]
        parameter.requires_grad = False
        parameter.grad = None
    frozen = _now_frozen(view, chosen)
    held = hold_all(module for key, module in view.modules.items() if key in frozen)
    return _report("froze", view, chosen, changed, held)


def unfreeze(model: nn.Module, selection: Any = "*") -> FreezeReport:
    """Train a part of a model again: the opposite of `freeze`.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4))
    >>> _ = freeze(model, "*")
    >>> unfreeze(model, "2").modules, model[2].training, model[1].training
    (('', '2'), True, False)

    Chosen parameters get `requires_grad=True`, unless they hold integers. Modules that are no longer frozen as a whole
    are released and take the training flag of the nearest module above them that is not held; the root takes
    the mode it was last asked for. A module without parameters is released when it is chosen, or when all parameters
    around it are trained again.

    Args:
        model: the whole model: of a part of it, the modules above that are held would not be seen and stay held.
        selection: as for `freeze`; everything by default.

    Raises:
        SelectorError: the selector cannot be read, or chooses no parameter and no module.
    """
    view = View(model)
    chosen = view.chosen(Selector.of(selection))
    able = [index for index in chosen.parameters if can_train(view.parameters[index])]
    changed = [index for index in able if not view.parameters[index].requires_grad]
    for index in able:
        view.parameters[index].requires_grad = True
    released = release(view.model, _no_longer_frozen(view, chosen, set(changed)))
    return _report("unfroze", view, chosen, changed, released)


def _now_frozen(view: View, chosen: Chosen) -> set[int]:
    """Ids of the modules that a freeze makes frozen as a whole."""
    selected = set(chosen.parameters)
    frozen = set(chosen.modules)
    for key, below in view.below.items():
        # A module that only happens to have no trainable parameters is not ours to hold.
        if below & selected and not any(view.parameters[parameter].requires_grad for parameter in below):
            frozen.add(key)
    return view.inside(frozen)


def _no_longer_frozen(view: View, chosen: Chosen, changed: set[int]) -> set[int]:
    """Ids of the held modules that an unfreeze makes trainable, at least in part."""
    selected = set(chosen.parameters)
    held = {key for key, module in view.modules.items() if is_held(module)}
    owners = {key for key in held if view.below[key]}

    def trains(key: int) -> bool:
        return any(view.parameters[parameter].requires_grad for parameter in view.below[key])

    # A module of integers cannot train, and is released when all of it was asked for.
    loose = {key for key in owners if trains(key) or view.below[key] <= selected}
    # What is without parameters goes when it was asked for, or when all around it trains again.
    bare = {key for key in held - owners if key in chosen.modules or _trains_around(view, key, changed)}
    return (loose | bare) - view.inside(owners - loose)


def _trains_around(view: View, key: int, changed: set[int]) -> bool:
    """Whether the parameters nearest to a module without any are all trainable, some of them only now."""
    below = view.around(key)
    able = (view.parameters[parameter] for parameter in below if can_train(view.parameters[parameter]))
    return bool(below & changed) and all(parameter.requires_grad for parameter in able)


def _report(action: str, view: View, chosen: Chosen, changed: list[int], modules: list[nn.Module]) -> FreezeReport:
    def first(keys: Iterable[int]) -> tuple[str, ...]:
        return tuple(view.parameter_names[key][0] for key in keys)

    unable = [key for key in chosen.parameters if not can_train(view.parameters[key])] if action == "unfroze" else []
    settled = {*changed, *unable}
    return FreezeReport(
        action=action,
        selection=chosen.selection,
        parameters=first(changed),
        modules=tuple(view.module_names[id(module)][0] for module in modules),
        unchanged=first(key for key in chosen.parameters if key not in settled),
        skipped=first(unable),
        shared=_shared(view, [*map(id, modules), *chosen.parameters]),
        elements=sum(numel(view.parameters[key]) for key in changed),
        trainable=sum(numel(parameter) for parameter in view.parameters.values() if parameter.requires_grad),
        total=sum(map(numel, view.parameters.values())),
    )


def _shared(view: View, keys: Iterable[int]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Other names of modules and parameters; what lies in a shared module is not listed again."""
    found: dict[str, tuple[str, ...]] = {}
    for key in keys:
        name, *others = view.module_names.get(key) or view.parameter_names[key]
        if others and not any(is_under(name, known) for known in found):
            found[name] = tuple(others)
    return tuple(found.items())
