"""What the snapshots of a run say of its setting, for those who read its curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

from torch import nn

from ..core import tagged
from ..core.curves import Setting
from ..core.freezespec import FreezeSpec, FreezeState, state_from
from ..core.manifest import Body, Entry
from ..freezing import held_modules
from .tracking import OPTIMIZER, RESERVED

_STEPS = ("step", "global_step")


def setting_from(bodies: Sequence[Body], model: nn.Module | None, unit: str) -> Setting:
    """The setting of a run.

    Args:
        bodies: the manifests of its snapshots, oldest first, of the branch that it is on.
        model: the live model, if it is still tracked; it knows its dropout.
        unit: what places are counted in: `epoch` or `step`.
    """
    if not bodies:
        return Setting(dropout=_dropout(model))
    parameters = list(_parameters(bodies[-1]))
    total = sum(prod(entry.shape) for entry in parameters)
    trained = sum(prod(entry.shape) for entry in parameters if entry.requires_grad)
    return Setting(
        parameters=total or None,
        trainable=trained / total if total else None,
        dropout=_dropout(model),
        weight_decay=_largest(bodies[-1:], "weight_decay"),
        optimizer=_optimizer(bodies[-1]),
        rate=_largest(bodies, "initial_lr", "lr"),
        momentum=_largest(bodies[-1:], "momentum"),
        phases=_phases(bodies, unit),
        snapshots=tuple(_place(body, unit) for body in bodies),
    )


def branch(bodies: Mapping[int, Body], newest: int) -> list[Body]:
    """A snapshot and those it was continued from, oldest first, as far as they are there."""
    chain = []
    while newest in bodies:
        chain.append(bodies[newest])
        newest = bodies[newest].parent
    return chain[::-1]


def _parameters(body: Body) -> Iterator[Entry]:
    """The entries of the model's parameters, tied ones once."""
    buffers = set(body.state.get("model", {}).get("buffers", ()))
    for entry in body.entries:
        if entry.name.startswith("model/") and not entry.tied and entry.name.removeprefix("model/") not in buffers:
            yield entry


def _groups(body: Body) -> Iterator[Mapping[str, Any]]:
    """The options of every group of an optimizer that has parameters."""
    for name, part in body.state.items():
        if name not in RESERVED and part.get("kind") == OPTIMIZER:
            for group in part["groups"]:
                if group["names"]:
                    yield tagged.decode(group["options"], lambda _: None)


def _largest(bodies: Sequence[Body], *names: str) -> float | None:
    """The largest value of an option, by the first of its names that a group has."""
    found = []
    for body in bodies:
        for options in _groups(body):
            value = next((options[name] for name in names if name in options), None)
            found += [float(value)] if isinstance(value, (int, float)) else []
    return max(found, default=None)


def _optimizer(body: Body) -> str | None:
    """What kind it is, by what it can be told: one with betas is of Adam's, one with momentum and dampening is SGD."""
    for options in _groups(body):
        if "betas" in options:
            return "adam"
        if {"momentum", "dampening"} <= options.keys():
            return "sgd"
    return None


def _dropout(model: nn.Module | None) -> float | None:
    """The largest probability of a dropout that is not held off by freezing."""
    if model is None:
        return None
    held = held_modules(model)
    found = [0.0]
    for name, module in model.named_modules():
        off = any(name == path or not path or name.startswith(f"{path}.") for path in held)
        rate = getattr(module, "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "dropout", None)
        if not off and type(rate) is float and rate <= 1:
            found.append(float(rate))
    return max(found)


def _place(body: Body, unit: str) -> float:
    """Where a snapshot lies among the curves: at what was logged last before it, else at the caller's number."""
    logged = [body.metrics.get(name) for name in (["epoch"] if unit == "epoch" else _STEPS)]
    return float(next((one for one in logged if isinstance(one, (int, float))), body.step))


def _phases(bodies: Sequence[Body], unit: str) -> tuple[tuple[int, str], ...]:
    """What was trained from when on: as the freeze spec says, where the snapshots agree with it; else as they show."""
    states = [_state(body) for body in bodies]
    newest = states[-1]
    if newest is not None and unit == "epoch":
        planned = _planned(newest.spec)
        seen = zip(bodies, states, strict=True)
        if all(
            state is None or state.spec != newest.spec or state.phase == newest.spec.phase_at(int(_place(body, unit)))
            for body, state in seen
        ):
            return planned[: newest.phase + 1]
    shown = [_trained(body, state) for body, state in zip(bodies, states, strict=True)]
    if len(set(shown)) == 1 and newest is None:
        return ()
    starts = [0, *(place for place, (one, two) in enumerate(pairwise(shown), start=1) if one != two)]
    return tuple((int(_place(bodies[place], unit)) if place else 0, shown[place]) for place in starts)


def _state(body: Body) -> FreezeState | None:
    part = body.state.get("model", {})
    return state_from(tagged.decode(part["freeze"])) if "freeze" in part else None


def _planned(spec: FreezeSpec) -> tuple[tuple[int, str], ...]:
    planned, begin = [], 0
    for phase in spec.phases:
        planned.append((begin, str(phase.selector)))
        begin += phase.epochs or 0
    return tuple(planned)


def _trained(body: Body, state: FreezeState | None) -> str:
    """What a snapshot trains, in words."""
    if state is not None:
        return str(state.spec.phases[state.phase].selector)
    flags: list[Any] = [entry.requires_grad for entry in _parameters(body)]
    return "*" if all(flags) else f"{sum(flags)} of {len(flags)} parameters"
