"""Putting a snapshot back into live objects. Everything is checked before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import nn

from ..core import tagged
from ..core.freezespec import FreezeState, Frozen, state_from
from ..core.live import named_modules, named_parameters, set_extra_state, spec_of, state_of, tied_names
from ..core.manifest import Body, Entry
from ..core.operations import Operation, operations_from
from ..core.origin import Origin, Origins, forget, remember, unpacked
from ..core.plan import make_plan
from ..core.report import LoadReport
from ..errors import CorruptCheckpointError, IncompatibleCheckpointError
from ..freezing import freeze_state, restore_freeze
from ..rules.exact import Exact
from ..surgery.recording import adopt
from .optimizers import Saved, check_order, fit, keeper, restore
from .randomness import fits, generator_state, set_generator_state, set_random_state
from .tracking import (
    GENERATOR,
    MODULE,
    OPTIMIZER,
    RESERVED,
    STATE,
    class_name,
    counts_groups,
    of_kind,
    parameter_names,
    parameters_by_name,
)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One checked part of a restoration, ready to be carried out.

    Attributes:
        what: the object, for reports.
        apply: restores it.
        undo: gives it back what it had, should a later step fail.
        notes: what the caller may want to know.
        lost: what will not be as it was saved.
    """

    what: str
    apply: Callable[[], None]
    undo: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def plan_restore(body: Body, tensors: Tensors, objects: Mapping[str, Any]) -> list[Step]:
    """Check a snapshot against the live objects and say how to restore them.

    The steps are in the order of how likely they fail: foreign `load_state_dict` methods first, plain copies last.

    Args:
        body: the manifest.
        tensors: its tensors by full name, already verified.
        objects: what to restore into, by the names under which they were saved.

    Raises:
        IncompatibleCheckpointError: an object does not fit what was saved; nothing was changed.
    """
    modules = [_module(body, tensors, name, one) for name, one in of_kind(objects, MODULE).items()]  # checked first
    extras, copies = [pair[0] for pair in modules], [pair[1] for pair in modules]
    steps = [_stateful(body, tensors, name, one, objects) for name, one in of_kind(objects, STATE).items()]
    steps += [_generator(body, tensors, name, one) for name, one in of_kind(objects, GENERATOR).items()]
    steps += [_optimizer(body, tensors, name, one, objects) for name, one in of_kind(objects, OPTIMIZER).items()]
    value = _value(body.state["rng"], tensors)
    lost = () if fits(value) else ("the generators of other GPUs were left alone",)
    return [*steps, *extras, *copies, Step("rng", lambda: set_random_state(value), lost=lost)]


def carry_out(steps: list[Step]) -> None:
    """Apply the steps; when one fails, undo those before it.

    Raises:
        IncompatibleCheckpointError: an object refused its state; all objects are as they were.
    """
    for number, step in enumerate(steps):
        try:
            step.apply()
        except Exception as error:
            for done in reversed(steps[: number + 1]):
                done.undo()
            raise IncompatibleCheckpointError(
                f"the {step.what} refuses the state that was saved: {type(error).__name__}: {error}",
                hint=f"make the {step.what} as it was when the snapshot was saved; nothing was changed",
            ) from error


def _value(part: Any, tensors: Tensors) -> Any:
    """A tracked value with tensors of its own: what is restored must never be a view of a mapped file."""
    return tagged.decode(part, lambda name: tensors[name].clone())


def extra_of(body: Body, tensors: Tensors) -> Any:
    """What was saved as `extra`."""
    return _value(body.state["extra"], tensors) if "extra" in body.state else None


def extra_state_of(body: Body, lazy: Mapping[str, Any]) -> dict[str, Any]:
    """The extra state of the model's modules by its name in a state dict, tensors still lazy."""
    value: dict[str, Any] = tagged.decode(body.state["model"]["extra"], lambda name: lazy[name])
    return value


def frozen_of(body: Body) -> Frozen:
    """How the model of a snapshot was frozen."""
    part = body.state["model"]
    buffers = set(part.get("buffers", ()))
    still = frozenset(name for name, entry in _entries_of(body, "model").items() if not entry.requires_grad)
    state = state_from(tagged.decode(part["freeze"])) if "freeze" in part else None
    return Frozen(tuple(part["held"]), still - buffers, state)


def surgery_of(body: Body, what: str = "model") -> tuple[Operation, ...]:
    """What surgery had done to the model of a snapshot, and the plan that was applied to it."""
    return operations_from(tagged.decode(body.state[what].get("surgery", [])))


def optimizers_in(body: Body, lazy: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The states of the optimizers by the names of their parameters, tensors still lazy."""
    parts = {name: part for name, part in body.state.items() if name not in RESERVED and part["kind"] == OPTIMIZER}
    return {
        tracked: {name: tagged.decode(value, lambda key: lazy[key]) for name, value in part["state"].items()}
        for tracked, part in parts.items()
    }


def origins_in(body: Body, what: str = "model") -> dict[str, Origin]:
    """Where the tensors of a module were loaded from, as far as the snapshot says."""
    part = body.state[what].get("origins")
    try:
        return {} if part is None else unpacked(msgspec.convert(tagged.decode(part), Origins))
    except ValueError as error:  # msgspec's own errors are ValueErrors
        raise CorruptCheckpointError(f"the origins of {what} cannot be read: {error}") from error


def data_of(body: Body, tensors: Tensors) -> dict[str, Any]:
    """The positions in the data that were saved, by the name of the loader."""
    return _value(body.state["data"], tensors) if "data" in body.state else {}


def random_of(body: Body, tensors: Tensors) -> dict[str, Any]:
    """The state of the global generators that was saved."""
    value: dict[str, Any] = _value(body.state["rng"], tensors)
    return value


def tracked_in(body: Body) -> list[str]:
    """The names of the objects that a snapshot holds."""
    return [name for name in body.state if name not in RESERVED]


def _part(body: Body, what: str, live: Any) -> Any:
    if what not in body.state:
        raise IncompatibleCheckpointError(
            f"snapshot {body.sequence} holds no {what}", hint=f"resume without {what}=, or from a snapshot that has it"
        )
    part = body.state[what]
    if not isinstance(live, nn.Module) and part["class"] != class_name(live):
        raise IncompatibleCheckpointError(
            f"snapshot {body.sequence} holds the state of a {part['class']}, not of a {class_name(live)}",
            hint=f"make the {what} that was saved, or resume without {what}=",
        )
    return part


def plan_weights(body: Body, tensors: Tensors, modules: Mapping[str, nn.Module]) -> list[Step]:
    """Check a snapshot against live modules and say how to put its weights back, and nothing else of it.

    Args:
        body, tensors: as for `plan_restore`.
        modules: those of them that the snapshot does not hold are left as they are.

    Raises:
        IncompatibleCheckpointError: a module differs from what was saved; nothing was changed.
    """
    fits = [_Fit.of(body, tensors, name, one) for name, one in modules.items() if name in body.state]
    return [*(fit.extra_step() for fit in fits), *(Step(fit.what, fit.copy) for fit in fits)]


@dataclass(frozen=True)
class _Fit:
    """A live module and what a snapshot has for it, checked to fit."""

    what: str
    module: nn.Module
    part: Mapping[str, Any]
    live: dict[str, torch.Tensor]
    saved: dict[str, torch.Tensor]
    extra: dict[str, Any]
    before: dict[str, Any]

    @classmethod
    def of(cls, body: Body, tensors: Tensors, what: str, module: nn.Module) -> _Fit:
        part = _part(body, what, module)
        live, live_extra = state_of(module)
        saved = {name: tensors[f"{what}/{name}"] for name in _entries_of(body, what)}
        extra = _value(part["extra"], tensors)
        _check_module(body, what, live, saved)
        _check_names(body, "extra state", set(live_extra), set(extra))
        return cls(what, module, part, live, saved, extra, copy.deepcopy(live_extra))

    def extra_step(self) -> Step:
        """What a module may refuse."""
        return Step(self.what, lambda: self._give(self.extra), lambda: self._give(self.before))

    def _give(self, extra: Mapping[str, Any]) -> None:
        for name, value in extra.items():
            set_extra_state(self.module, name, value)

    def copy(self) -> None:
        """What it cannot."""
        with torch.no_grad():
            for name, tensor in self.live.items():
                tensor.copy_(self.saved[name])


def _module(body: Body, tensors: Tensors, what: str, module: nn.Module) -> tuple[Step, Step]:
    """What a module may refuse, its extra state, and what it cannot: plain copies."""
    fit = _Fit.of(body, tensors, what, module)
    part, live, entries = fit.part, fit.live, _entries_of(body, what)
    held = set(part["held"])
    _check_names(body, "frozen modules", held & {path for path, _ in named_modules(module)}, held)
    flipped = [name for name, tensor in live.items() if tensor.requires_grad != entries[name].requires_grad]
    still = frozenset(name for name, entry in entries.items() if not entry.requires_grad)
    gradients = {name: tensor for name, tensor in _gradients(body, tensors, what).items() if name in live}
    freeze, lost = _freeze(part, module)
    origins, surgery = origins_in(body, what), surgery_of(body, what)
    note = f"requires_grad of {len(flipped)} parameters was set as in the snapshot: {', '.join(flipped[:3])}"

    def apply() -> None:
        fit.copy()
        restore_freeze(module, Frozen(tuple(part["held"]), still, freeze))
        forget(module)
        remember(module, origins)
        adopt(module, surgery)
        for name, parameter in named_parameters(module):
            grad = gradients.get(name)
            parameter.grad = None if grad is None else torch.empty_like(parameter, requires_grad=False).copy_(grad)

    return fit.extra_step(), Step(what, apply, notes=(note,) if flipped else (), lost=lost)


def _gradients(body: Body, tensors: Tensors, what: str) -> dict[str, torch.Tensor]:
    if what not in body.state.get("gradients", ()):
        return {}
    prefix = f"gradients/{what}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _freeze(part: Mapping[str, Any], module: nn.Module) -> tuple[FreezeState | None, tuple[str, ...]]:
    """The freeze spec to go on with, and what to say of it."""
    here = freeze_state(module)
    if "freeze" not in part:
        note = "the snapshot has no freeze spec: the model keeps its own, with requires_grad as in the snapshot"
        return here, (note,) if here is not None else ()
    there = state_from(tagged.decode(part["freeze"]))
    changed = here is not None and here.spec != there.spec
    return there, ("the freeze spec of the snapshot is used, which differs from the model's",) if changed else ()


def _entries_of(body: Body, what: str) -> dict[str, Entry]:
    """The entries of a module's tensors by their names in a state dict."""
    prefix = f"{what}/"
    return {entry.name.removeprefix(prefix): entry for entry in body.entries if entry.name.startswith(prefix)}


def _check_module(body: Body, what: str, live: Tensors, saved: Tensors) -> None:
    """The model must be the one that was saved: names, shapes, dtypes, ties, and memory to copy into."""
    plan = make_plan(
        {name: spec_of(tensor) for name, tensor in live.items()},
        {name: spec_of(tensor) for name, tensor in saved.items()},
        [Exact()],
        tied_names(live),
    )
    wrong = [move.target for move in plan.moves if move.cast_from]
    problem = f"other dtypes: {', '.join(wrong[:5])}" if wrong else ""
    empty = [name for name, tensor in live.items() if tensor.device.type == "meta"]
    if empty:
        problem = f"on the meta device, without memory: {', '.join(empty[:5])}"
    digests = {name: entry.digest for name, entry in _entries_of(body, what).items()}
    torn = [name for name, first in plan.tied.items() if digests.get(name) != digests.get(first)]
    if torn:
        problem = f"tied now and of different values then: {', '.join(torn[:5])}"
    if plan.missing or plan.unexpected or plan.mismatched or problem:
        report = LoadReport(f"snapshot {body.sequence}", plan)
        raise IncompatibleCheckpointError(
            f"the {what} is not the one that was saved in snapshot {body.sequence}; {problem}".rstrip("; ")
            + f"\n{report}",
            report=report,
            hint="to put weights into a changed model use tk.load_into; resume continues the same run",
        )


def _check_names(body: Body, what: str, here: set[str], there: set[str]) -> None:
    if here != there:
        raise IncompatibleCheckpointError(
            f"the model and snapshot {body.sequence} differ in {what}: {', '.join(sorted(here ^ there)[:5])}",
            hint="resume into the model that was saved",
        )


def _optimizer(body: Body, tensors: Tensors, what: str, optimizer: Any, objects: Mapping[str, Any]) -> Step:
    part = _part(body, what, optimizer)
    saved = Saved(
        names=[group["names"] for group in part["groups"]],
        options=[_value(group["options"], tensors) for group in part["groups"]],
        moments={name: _value(value, tensors) for name, value in part["state"].items()},
        values=_value(part.get("values", {}), tensors),
        others=_value(part["others"], tensors),
    )
    names = parameter_names(objects)
    fitted = fit(saved, optimizer, names, parameters_by_name(objects))
    if counts_groups(objects.values(), optimizer):
        check_order(fitted, saved, f"snapshot {body.sequence}")
    return Step(
        what,
        lambda: restore(optimizer, fitted, saved, names),
        keeper(optimizer, names),
        notes=fitted.notes,
        lost=fitted.lost,
    )


def _stateful(body: Body, tensors: Tensors, what: str, live: Any, objects: Mapping[str, Any]) -> Step:
    state = _value(_part(body, what, live)["state"], tensors)
    before = copy.deepcopy(live.state_dict())
    optimizer = getattr(live, "optimizer", None)
    tracked = any(one is optimizer for one in objects.values())
    lost = () if optimizer is None or tracked else (f"the optimizer of the {what} is not restored, nor its rates",)
    return Step(what, lambda: live.load_state_dict(state), lambda: live.load_state_dict(before), lost=lost)


def _generator(body: Body, tensors: Tensors, what: str, live: Any) -> Step:
    state = _value(_part(body, what, live)["state"], tensors)
    before = copy.deepcopy(generator_state(live))
    return Step(what, lambda: set_generator_state(live, state), lambda: set_generator_state(live, before))
