"""Parameter groups for an optimizer, by name, and moving a live optimizer from one phase to the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core.freezespec import FreezeSpec, FreezeState, factor
from ..errors import SelectorError
from .state import freeze_state
from .view import NORMS, View, can_train

# What a group is called, which parameters belong to it when they are trained, its rate now and in each phase.
NAME, MEMBERS, SCALE, SCALES = "name", "members", "lr_scale", "lr_scales"
_RATES = ("initial_lr", "max_lr", "min_lr")  # what schedulers leave in a group
_LISTS = ("base_lrs", "max_lrs", "_last_lr")  # what schedulers keep for each group


@dataclass(frozen=True)
class Regrouped:
    """What became of the parameters of an optimizer.

    Attributes:
        kept: names of those that stay, with their moments.
        added: names of those that come in, without moments.
        removed: names of those that leave, and their moments with them.
        notes: what the caller should know.
    """

    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Group:
    """Parameters that share their block, their rates in all phases and whether they decay."""

    name: str
    keys: tuple[int, ...]
    factors: tuple[float, ...]
    decays: bool


def param_groups(
    model: nn.Module,
    spec: FreezeSpec | None = None,
    *,
    lr: float,
    weight_decay: float | None = None,
    layer_decay: float | None = None,
    decay_norms_and_biases: bool | None = None,
) -> list[dict[str, Any]]:
    """Groups for an optimizer: names kept, a learning rate for each block, decay where it is wanted.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = param_groups(model, lr=0.1, weight_decay=0.01, layer_decay=0.5, decay_norms_and_biases=False)
    >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    [('0', 0.05, 0.01), ('0, no decay', 0.05, 0.0), ('1', 0.1, 0.01), ('1, no decay', 0.1, 0.0)]

    There is a group for every block of the model, also for frozen ones: those are empty until their phase comes, so
    that their number and order never change and a schedule of learning rates goes on.

    Args:
        model: the model; only parameters that require gradients now are put into groups.
        spec: gives the rates of its phases; the one the model was frozen by if None. Without any, all have `lr`.
        lr: the base learning rate; a group has it times its rate.
        weight_decay: for the groups that decay; the optimizer's own if None.
        layer_decay: factor on the rate for each step away from the head, if the spec has none.
        decay_norms_and_biases: False to leave weight decay off normalisation layers, biases and other vectors; as the
            spec says if None.

    Returns:
        Dicts for `torch.optim.X(...)`: `params` as (name, parameter) pairs, `name`, `lr`, `weight_decay` where it is
        set, `members` (names of all that are trained with the group in some phase), `lr_scale` (its rate now) and
        `lr_scales` (its rate in each phase).

    Raises:
        SelectorError: a selector of the spec chooses nothing, or no parameter is trained.
    """
    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; it must be above 0 and at most 1")
    state = freeze_state(model)
    number = state.phase if state is not None and (spec is None or spec == state.spec) else 0
    spec = spec if spec is not None else state.spec if state is not None else None
    view = View(model)
    decays_all = decay_norms_and_biases
    if decays_all is None:
        decays_all = spec is None or spec.decay_norms_and_biases
    groups = []
    for group in _groups(view, spec, layer_decay, decays_all):
        named = _trained(view, group.keys)
        out: dict[str, Any] = {"params": named, NAME: group.name, "lr": lr * group.factors[number]}
        out |= {MEMBERS: list(view.first_names(group.keys)), SCALE: group.factors[number], SCALES: list(group.factors)}
        if not named:
            out["param_names"] = []  # torch wants all groups with names, or none
        if not group.decays:
            out["weight_decay"] = 0.0
        elif weight_decay is not None:
            out["weight_decay"] = weight_decay
        groups.append(out)
    if not any(group["params"] for group in groups):
        raise SelectorError("no parameter of the model requires gradients", hint="tk.unfreeze(model, ...) first")
    return groups


def _trained(view: View, keys: Iterable[int]) -> list[tuple[str, nn.Parameter]]:
    return [(view.parameter_names[key][0], view.parameters[key]) for key in keys if view.parameters[key].requires_grad]


def _groups(view: View, spec: FreezeSpec | None, layer_decay: float | None, decays_all: bool) -> list[_Group]:
    """Every parameter of the model in the group of its block, rates and decay; in the order of the model."""
    factors = _factors(view, spec, layer_decay)
    blocks = _block_names(view)
    vectors = set() if decays_all else _undecayed(view)
    members: dict[tuple[str, tuple[float, ...], bool], list[int]] = {}
    for key in view.parameters:
        members.setdefault((blocks[key], factors[key], key not in vectors), []).append(key)
    groups: list[_Group] = []
    taken: set[str] = set()
    for (block, rates, decays), keys in members.items():
        base = block if decays else f"{block}, no decay"
        name, serial = base, 2
        while name in taken:
            name, serial = f"{base} ({serial})", serial + 1
        taken.add(name)
        groups.append(_Group(name, tuple(keys), rates, decays))
    return groups


def _block_names(view: View) -> dict[int, str]:
    """For each parameter the step of the network that it belongs to; the root's own are called so."""
    steps = [step[0] or "(root)" for step in view.steps]
    return {key: "(root)" if (place := view.step_of(key)) is None else steps[place] for key in view.parameters}


def _undecayed(view: View) -> set[int]:
    """Ids of the parameters that weight decay is usually left off: of norms, biases, other vectors, scalars."""
    norms = (module for module in view.modules.values() if isinstance(module, NORMS))
    of_norms = {id(parameter) for module in norms for parameter in module._parameters.values()}
    return {key for key, parameter in view.parameters.items() if key in of_norms or parameter.ndim < 2}


def _factors(view: View, spec: FreezeSpec | None, layer_decay: float | None) -> dict[int, tuple[float, ...]]:
    """For each parameter what the base rate is multiplied with in each phase."""
    depth = _depths(view)
    if spec is None:
        return {key: ((layer_decay or 1.0) ** depth[key],) for key in view.parameters}
    columns = []
    for phase in spec.phases:
        rates = [(view.chosen_parameters(selection), factor(rate)) for selection, rate in phase.rates.items()]
        decay = phase.layer_decay if phase.layer_decay != 1 or layer_decay is None else layer_decay
        columns.append({key: _first(key, rates) * decay ** depth[key] for key in view.parameters})
    return {key: tuple(column[key] for column in columns) for key in view.parameters}


def _first(key: int, rates: Iterable[tuple[set[int], float]]) -> float:
    return next((rate for keys, rate in rates if key in keys), 1.0)


def _depths(view: View) -> dict[int, int]:
    """For each parameter the number of steps between it and the head; the root's own are as far as the stem."""
    return {key: len(view.steps) - 1 - (view.step_of(key) or 0) for key in view.parameters}


def shared_out(view: View, optimizers: Sequence[Any], keys: Iterable[int]) -> list[list[int]]:
    """Which of some parameters each optimizer is to have: those it was made for or has; the first has what none has."""
    wanted = [key for key in keys if can_train(view.parameters[key])]
    owners: dict[str, int] = {}
    for place, optimizer in enumerate(optimizers):
        for group in optimizer.param_groups:
            for name in _belonging(group, view.names):
                owners.setdefault(name, place)
    return [[key for key in wanted if owners.get(view.names[key], 0) == place] for place in range(len(optimizers))]


def together(moved: Sequence[Regrouped]) -> Regrouped:
    """What became of several optimizers."""
    return Regrouped(
        kept=tuple(name for one in moved for name in one.kept),
        added=tuple(name for one in moved for name in one.added),
        removed=tuple(name for one in moved for name in one.removed),
        notes=tuple(note for one in moved for note in one.notes),
    )


def check_room(view: View, optimizer: Any, keys: Iterable[int], schedulers: Iterable[Any]) -> None:
    """Make sure that schedulers which count groups will not meet a new one.

    Args:
        view: the model.
        optimizer: before it is regrouped.
        keys: ids of the parameters that it is to have.
        schedulers: of the optimizer.

    Raises:
        SelectorError: the optimizer needs a new group for some of them.
    """
    _, homeless = _houses(view, optimizer, keys)
    if homeless and any(hasattr(scheduler, "base_lrs") for scheduler in schedulers):
        raise SelectorError(
            f"{len(homeless)} parameters are to be trained and the optimizer has no group for them, "
            "which its scheduler does not expect",
            hint="make the optimizer of tk.param_groups(model, spec, lr=...): its groups last through all phases",
        )


def regroup(
    view: View, optimizer: Any, keys: Iterable[int], state: FreezeState, schedulers: Sequence[Any]
) -> Regrouped:
    """Bring a live optimizer to what its model trains now.

    Args:
        view: the model, in its new phase.
        optimizer: is changed in place.
        keys: ids of the parameters that it is to have.
        state: the spec, and the phase now in force.
        schedulers: hold base learning rates of its groups, which change with the rates.
    """
    names = view.names
    before = _members(optimizer)
    houses, homeless = _houses(view, optimizer, keys)
    for group, (members, housed) in zip(optimizer.param_groups, houses, strict=True):
        strangers = [one for one in group["params"] if id(one) not in names]
        set_members(group, [*(view.parameters[key] for key in housed), *strangers], names)
        group[MEMBERS] = members  # so that what leaves now comes back to where it was
    notes = _adopt(view, optimizer, homeless) if homeless else ()
    after = _members(optimizer)
    if before != after and _lists_its_own(optimizer):  # its history is of another set of parameters
        optimizer.state.clear()
        notes = (*notes, f"{type(optimizer).__name__} begins anew: its history is of all parameters together")
    for parameter in [parameter for parameter in optimizer.state if id(parameter) in before - after]:
        del optimizer.state[parameter]
    for place, group in enumerate(optimizer.param_groups):
        _rescale(group, place, state.phase, schedulers)
        _begin_fused_momentum(optimizer, group)
    return Regrouped(
        kept=view.first_names(before & after),
        added=view.first_names(after - before),
        removed=view.first_names(before - after),
        notes=(*notes, *_ignored(optimizer, state, schedulers)),
    )


def _ignored(optimizer: Any, state: FreezeState, schedulers: Sequence[Any]) -> tuple[str, ...]:
    """What of a phase an optimizer that was made in another way, or a call without its scheduler, does not follow."""
    phases = state.spec.phases
    if not any(phase.rates or phase.layer_decay != 1 for phase in phases):
        return ()
    if not any(SCALES in group for group in optimizer.param_groups):
        return ("the rates of the phases are not applied: make the optimizer of tk.param_groups(model, lr=...)",)
    if not schedulers and any("initial_lr" in group for group in optimizer.param_groups):
        return ("the optimizer has a scheduler, which may undo the rates: give it to enter_phase too",)
    return ()


def _lists_its_own(optimizer: Any) -> bool:
    """LBFGS keeps a list of its parameters beside its only group; bring it up to date, and say whether there is one."""
    if not hasattr(optimizer, "_params") or not hasattr(optimizer, "_numel_cache"):
        return False
    optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None
    return True


def _begin_fused_momentum(optimizer: Any, group: Mapping[str, Any]) -> None:
    """Give new parameters of a fused SGD a momentum of zero, from which its first step is the same as from none.

    torch's fused SGD fails when some parameters of a group have a momentum and some do not.
    """
    if not (group.get("fused") and group.get("momentum") and "dampening" in group) or group["dampening"]:
        return
    started = [one for one in group["params"] if optimizer.state.get(one, {}).get("momentum_buffer") is not None]
    for parameter in group["params"] if started else ():
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _members(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _houses(view: View, optimizer: Any, keys: Iterable[int]) -> tuple[list[tuple[list[str], list[int]]], list[int]]:
    """For each group the names of all that belong to it and which of some parameters those are; and who has no group.

    To a group belong those it was made for, or has; to an only group belong all.
    """
    left = {view.names[key]: key for key in keys}
    houses = []
    for group in optimizer.param_groups:
        members = _belonging(group, view.names)
        if len(optimizer.param_groups) == 1:
            members += [name for name in left if name not in members]
        houses.append((members, [left.pop(name) for name in members if name in left]))
    return houses, list(left.values())


def _belonging(group: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    """The names of the parameters that a group was made for, or has."""
    return list(group.get(MEMBERS) or (names[id(one)] for one in group["params"] if id(one) in names))


def set_members(group: dict[str, Any], parameters: list[Any], names: Mapping[int, str]) -> None:
    """Put these parameters into a group of an optimizer, with their names where the group has names."""
    known = dict(zip(map(id, group["params"]), group.get("param_names", ()), strict=False))
    group["params"] = parameters
    if "param_names" in group:
        group["param_names"] = [known.get(id(one)) or names.get(id(one), "") for one in parameters]


def _adopt(view: View, optimizer: Any, keys: list[int]) -> tuple[str, ...]:
    """A group of their own for parameters that no group of the optimizer was made for; returns what to say of it."""
    named = [(view.parameter_names[key][0], parameter) for key, parameter in view.parameters.items() if key in keys]
    with_names = "param_names" in optimizer.param_groups[0]
    optimizer.add_param_group({"params": named if with_names else [parameter for _, parameter in named]})
    return (
        f"{len(keys)} parameters came into a group of their own; groups of tk.param_groups last through all phases",
    )


def _rescale(group: dict[str, Any], place: int, phase: int, schedulers: Iterable[Any]) -> None:
    """Multiply what a group's learning rate is, and what its schedulers start from, by the change of its rate."""
    scales = group.get(SCALES)
    if scales is None or phase >= len(scales):
        return
    ratio = scales[phase] / group.get(SCALE, scales[0])
    group[SCALE] = scales[phase]
    if ratio == 1:
        return
    if hasattr(group["lr"], "mul_"):
        group["lr"].mul_(ratio)
    else:
        group["lr"] = group["lr"] * ratio
    for key in _RATES:
        if key in group:
            group[key] = group[key] * ratio
    for scheduler in schedulers:
        _rescale_scheduler(scheduler, place, ratio)


def _rescale_scheduler(scheduler: Any, place: int, ratio: float) -> None:
    for name in _LISTS:
        rates = getattr(scheduler, name, None)
        if isinstance(rates, list) and place < len(rates):
            rates[place] = rates[place] * ratio
    for inner in getattr(scheduler, "_schedulers", ()):
        _rescale_scheduler(inner, place, ratio)
