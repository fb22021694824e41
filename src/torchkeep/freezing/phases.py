"""Freezing by a spec: which phase is in force, and going to the next with model, optimizer and schedulers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..core.freezespec import FreezeSpec, FreezeState, Frozen
from ..core.live import named_parameters
from ..core.names import fold
from ..core.table import Table, human_count, shorten
from ..errors import SelectorError
from .groups import Regrouped, check_room, regroup, shared_out, together
from .holding import held_modules, restore_held
from .state import attach, freeze_state
from .view import DROPOUTS, NORMS, View, can_train, numel


@dataclass(frozen=True)
class PhaseReport:
    """What going to a phase changed.

    Attributes:
        phase, phases: its number from 1, and how many there are.
        train: the selector of what is trained.
        frozen, trained: names of parameters that are frozen, and trained, from now on and were not.
        held, released: paths of modules that are held in eval mode from now on, and no longer.
        regrouped: what became of the optimizer; None if none was given.
        trainable, total: elements that require gradients, and all.
    """

    phase: int
    phases: int
    train: str
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    released: tuple[str, ...] = ()
    regrouped: Regrouped | None = None
    trainable: int = 0
    total: int = 0

    def table(self) -> Table:
        """The report, folded for people."""
        share = f" ({self.trainable / self.total:.1%})" if self.total else ""
        moved = self.regrouped
        optimizer = (
            "" if moved is None else f"{len(moved.kept)} kept, {len(moved.added)} new, {len(moved.removed)} gone"
        )
        return Table(
            title=f"phase {self.phase} of {self.phases} trains {self.train!r}",
            facts=(
                ("frozen now", _folded(self.frozen)),
                ("trained now", _folded(self.trained)),
                ("held in eval", _folded(path or "(the whole model)" for path in self.held)),
                ("released", _folded(path or "(the whole model)" for path in self.released)),
                ("optimizer", optimizer),
                ("trainable", f"{human_count(self.trainable)} of {human_count(self.total)} elements{share}"),
            ),
            notes=() if moved is None else moved.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


def _folded(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{len(listed)}: {shorten(name for name, _ in fold(listed))}" if listed else ""


def freeze_by(model: nn.Module, spec: FreezeSpec, epoch: int = 0) -> PhaseReport:
    """Freeze a model as a spec says for an epoch, and remember the spec with the model.

    Raises:
        SelectorError: a selector of any phase chooses nothing. The model is untouched.
    """
    view = View(model)
    for number, phase in enumerate(spec.phases, start=1):
        try:
            view.chosen(phase.selector)
            for selection in phase.rates:
                view.chosen_parameters(selection)
        except SelectorError as error:
            error.message = f"phase {number}: {error.message}"
            raise
    state = FreezeState(spec, spec.phase_at(epoch))
    report = _apply(view, state)
    attach(model, state)
    return report


def enter_phase(model: nn.Module, epoch: int, optimizer: Any = None, scheduler: Any = None) -> PhaseReport | None:
    """Go to the phase that a model's freeze spec has for an epoch; call it at the start of each.

    >>> for epoch in range(start, 20):                                             # doctest: +SKIP
    ...     tk.enter_phase(model, epoch, optimizer, scheduler)
    ...     train(...)

    Parameters that are trained before and after keep their moments, new ones start without, frozen ones leave the
    optimizer. Learning rates change by the ratio of the phases' rates, so that a schedule goes on.

    Args:
        model: was frozen by `tk.freeze(model, spec)`, or resumed or loaded with its spec.
        epoch: the epoch that begins, from 0.
        optimizer: made of `tk.param_groups(model, ...)`, or any other; a list, if there are several.
        scheduler: of that optimizer, or a list of them: their base learning rates follow.

    Returns:
        What changed; None while the phase is the same.

    Raises:
        SelectorError: the model has no spec, or a scheduler cannot follow. Nothing was changed.
    """
    state = freeze_state(model)
    if state is None:
        raise SelectorError(
            "the model was not frozen by a spec", hint="tk.freeze(model, tk.freeze_spec(model, 'lp-ft'))"
        )
    new = FreezeState(state.spec, state.spec.phase_at(epoch))
    if new == state:
        return None
    view = View(model)
    optimizers, schedulers = _listed(optimizer), _listed(scheduler)
    keys = view.chosen(new.spec.phases[new.phase].selector).parameters
    shares = shared_out(view, optimizers, keys)
    for one, share in zip(optimizers, shares, strict=True):
        check_room(view, one, share, _of(schedulers, one, optimizers))
    report = _apply(view, new)
    attach(model, new)
    moved = [
        regroup(view, one, share, new, _of(schedulers, one, optimizers))
        for one, share in zip(optimizers, shares, strict=True)
    ]
    return replace(report, regrouped=together(moved)) if moved else report


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _of(schedulers: list[Any], optimizer: Any, optimizers: list[Any]) -> list[Any]:
    """The schedulers of an optimizer; one that does not say whose it is counts for the only one."""
    only = len(optimizers) == 1
    return [one for one in schedulers if getattr(one, "optimizer", optimizer if only else None) is optimizer]


def _apply(view: View, state: FreezeState) -> PhaseReport:
    """Make a model exactly what a phase says, wherever it stood before."""
    phase = state.spec.phases[state.phase]
    chosen = view.chosen(phase.selector)
    trained = set(chosen.parameters)
    before = {key for key, parameter in view.parameters.items() if parameter.requires_grad}
    held_before = held_modules(view.model)
    for key, parameter in view.parameters.items():
        if key in trained and can_train(parameter):
            parameter.requires_grad = True
        else:
            parameter.requires_grad = False
            parameter.grad = None
    hold = _held(view, trained, chosen.modules, state.spec)
    restore_held(view.model, [view.module_names[key][0] for key in view.modules if key in hold])
    after = {key for key, parameter in view.parameters.items() if parameter.requires_grad}
    held = held_modules(view.model)
    return PhaseReport(
        phase=state.phase + 1,
        phases=len(state.spec.phases),
        train=str(phase.selector),
        frozen=view.first_names(before - after),
        trained=view.first_names(after - before),
        held=tuple(path for path in held if path not in set(held_before)),
        released=tuple(path for path in held_before if path not in set(held)),
        trainable=sum(numel(view.parameters[key]) for key in after),
        total=sum(map(numel, view.parameters.values())),
    )


def _held(view: View, trained: set[int], live: set[int], spec: FreezeSpec) -> set[int]:
    """Ids of the modules that a phase holds in eval mode.

    Those none of whose parameters is trained, and what is inside of them; of the others without parameters those that
    the selector does not choose. What the spec leaves live is not held, nor is what contains it.
    """
    still = {key for key, below in view.below.items() if below and not below & trained}
    held = view.inside(still | {key for key, below in view.below.items() if not below and key not in live})
    kinds: tuple[type[nn.Module], ...] = ()
    kinds += NORMS if spec.norm == "live" else ()
    kinds += DROPOUTS if spec.dropout == "live" else ()
    if not kinds:
        return held
    return {key for key in held if not any(isinstance(inner, kinds) for inner in view.modules[key].modules())}


def restore_freeze(model: nn.Module, frozen: Frozen, names: Collection[str] | None = None) -> None:
    """Freeze a model as it was when it was saved: exactly these parameters and modules, and its spec.

    Args:
        model: the model.
        frozen: how it was frozen.
        names: the parameters that were saved; others stay as they are. All, if None.

    Raises:
        SelectorError: the model has no module of a path that was held. Nothing was changed.
    """
    restore_held(model, frozen.held)
    for name, parameter in named_parameters(model):
        if names is not None and name not in names:
            continue
        parameter.requires_grad_(name not in frozen.still and can_train(parameter))
        if not parameter.requires_grad:
            parameter.grad = None
    attach(model, frozen.state)
