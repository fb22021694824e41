"""Putting the state of an optimizer back by the names of its parameters, whatever order and groups they are in now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..core.table import shorten
from ..errors import IncompatibleCheckpointError
from ..freezing import set_members
from .tracking import group_names


@dataclass(frozen=True)
class Saved:
    """The state of an optimizer as a snapshot has it.

    Attributes:
        names: for each group the names of its parameters.
        options: for each group what else is in it.
        moments: name of a parameter -> its state.
        values: name -> value of the parameters that are in no tracked module.
        others: what else the optimizer's state dict has.
    """

    names: list[list[str]]
    options: list[dict[str, Any]]
    moments: Mapping[str, Any]
    values: Mapping[str, torch.Tensor]
    others: Mapping[str, Any]


@dataclass(frozen=True)
class Fitted:
    """A saved state laid upon a live optimizer.

    Attributes:
        members: for each live group, and for each that has to come, the parameters that it is to have, by name.
        sources: for each of these the saved group whose options it takes, or None.
        notes: what was put in order.
        lost: what does not fit.
    """

    members: list[dict[str, torch.Tensor]]
    sources: list[int | None]
    notes: tuple[str, ...]
    lost: tuple[str, ...]


def fit(saved: Saved, optimizer: Any, names: Mapping[int, str], known: Mapping[str, torch.Tensor]) -> Fitted:
    """Find for each live group the saved one, and for each parameter its moments. Changes nothing.

    The optimizer gets back the parameters it had, for a script makes it as it was at the start, and freezing may have
    moved on since: groups that have names on both sides, as `tk.param_groups` makes them, become as they were; into
    others comes what they lack, in a group of its own if there was one. What only the live optimizer has stays.

    Args:
        saved: what the snapshot has.
        optimizer: the live optimizer.
        names: identity of a parameter -> its name.
        known: name -> parameter, of all tracked modules.
    """
    groups = optimizer.param_groups
    live = [
        dict(zip(ones, group["params"], strict=True))
        for ones, group in zip(group_names(optimizer, names), groups, strict=True)
    ]
    found = {**known, **{name: one for members in live for name, one in members.items()}}
    titles, saved_titles = [group.get("name") for group in groups], [options.get("name") for options in saved.options]
    lost = []
    if None not in titles and len(set(titles)) == len(titles) and set(titles) == set(saved_titles):
        sources: list[int | None] = [saved_titles.index(title) for title in titles]
        members = [_of(saved.names[source or 0], found) for source in sources]
    else:
        owned = [
            [*names, *options.get("members", ())] for names, options in zip(saved.names, saved.options, strict=True)
        ]
        sources = _sources([list(ones) for ones in live], saved.names, owned)
        there = {name for ones in saved.names for name in ones}
        for place, source in enumerate(sources):  # what a phase had taken out of its group is not in it now either
            out = set() if source is None else set(owned[source]) - there
            live[place] = {name: one for name, one in live[place].items() if name not in out}
        kept = [str(place) for place, source in enumerate(sources) if source is None and live[place]]
        if kept:
            lost.append(
                f"the options of group {', '.join(kept)} stay as given: its parameters were grouped differently"
            )
        members = _completed(live, sources, saved.names, found)
    here = {name for ones in members for name in ones}
    there = {name for ones in saved.names for name in ones}
    before = {name for ones in live for name in ones}
    new, gone, back = sorted(here - there), sorted(there - here), sorted(here - before)
    if new:
        lost.append(
            f"{len(new)} parameters were not in the saved optimizer and start without moments: {shorten(new, 5)}"
        )
    if gone:
        lost.append(f"{len(gone)} parameters of the saved optimizer are in no tracked module: {shorten(gone, 5)}")
    notes = (f"{len(back)} parameters came back into the optimizer: {shorten(back, 5)}",) if back else ()
    return Fitted(members, sources, notes, tuple(lost))


def _of(names: Iterable[str], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: found[name] for name in names if name in found}


def _completed(
    live: list[dict[str, torch.Tensor]],
    sources: list[int | None],
    saved: list[list[str]],
    found: Mapping[str, torch.Tensor],
) -> list[dict[str, torch.Tensor]]:
    """The live groups with what they lack of the saved ones, and new groups for what had one; extends `sources`."""
    here = {name for ones in live for name in ones}
    members = [dict(ones) for ones in live]
    for place, names in enumerate(saved):
        lacking = _of((name for name in names if name not in here), found)
        if not lacking:
            continue
        if place in sources:
            members[sources.index(place)] |= lacking
        else:
            members.append(lacking)
            sources.append(place)
    return members


def _sources(live: list[list[str]], saved: list[list[str]], owned: list[list[str]]) -> list[int | None]:
    """For each live group the saved one of the same parameters, else the only one that its parameters belong to."""
    left = dict(enumerate(map(frozenset, saved)))
    home = {name: place for place, group in enumerate(owned) for name in group}
    sources: list[int | None] = []
    for group in live:
        found = next((place for place, names in left.items() if names == frozenset(group)), None)
        if found is not None:
            del left[found]
        else:
            homes = {home[name] for name in group if name in home}
            found = homes.pop() if len(homes) == 1 else None
        sources.append(found)
    return sources


def check_order(fitted: Fitted, saved: Saved, what: str) -> None:
    """Refuse groups that are not the saved ones in the saved order, where a scheduler counts them.

    Raises:
        IncompatibleCheckpointError: they are not.
    """
    if fitted.sources != list(range(len(saved.names))):
        raise IncompatibleCheckpointError(
            f"the parameter groups are others, or stand in another order, than in {what}; a scheduler counts them",
            hint="make the groups in the order in which they were saved, or resume without the scheduler",
        )


def restore(optimizer: Any, fitted: Fitted, saved: Saved, names: Mapping[int, str]) -> None:
    """Give a live optimizer the parameters, options and moments that were found for it."""
    with_names = any("param_names" in group for group in optimizer.param_groups)
    for group, members in zip(optimizer.param_groups, fitted.members, strict=False):
        set_members(group, list(members.values()), names)
    _forget_the_departed(optimizer)
    for members in fitted.members[len(optimizer.param_groups) :]:
        optimizer.add_param_group({"params": list(members.items()) if with_names else list(members.values())})
    state = optimizer.state_dict()
    keys = [key for group in state["param_groups"] for key in group["params"]]
    for group, source in zip(state["param_groups"], fitted.sources, strict=True):
        if source is not None:
            group.update(saved.options[source])
    flat = [name for members in fitted.members for name in members]
    state["state"] = {key: saved.moments[name] for key, name in zip(keys, flat, strict=True) if name in saved.moments}
    optimizer.load_state_dict(state | dict(saved.others))
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    _keep_exact(optimizer, zip(flat, parameters, strict=True), saved.moments)
    with torch.no_grad():
        for name, parameter in zip(flat, parameters, strict=True):
            if name in saved.values:
                parameter.copy_(saved.values[name])


def _forget_the_departed(optimizer: Any) -> None:
    """Drop what is kept for parameters that are in no group any more: `state_dict` fails on it."""
    members = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for key in [key for key in optimizer.state if isinstance(key, torch.Tensor) and id(key) not in members]:
        del optimizer.state[key]


def _keep_exact(optimizer: Any, named: Iterable[tuple[str, torch.Tensor]], moments: Mapping[str, Any]) -> None:
    """torch casts moments to the parameter's dtype when it loads them; a resumed run needs the bits that were saved.

    They are laid out in memory as the parameter is: a file keeps no strides, and fused optimizers go by the memory.
    """
    for name, parameter in named:
        saved, live = moments.get(name), optimizer.state.get(parameter)
        if not isinstance(live, dict) or not isinstance(saved, dict):
            continue
        for key, value in saved.items():
            now = live.get(key)
            if not (isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor)):
                continue
            if now.shape == parameter.shape and now.stride() != parameter.stride():
                live[key] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            elif now.dtype != value.dtype:
                live[key] = value.to(now.device)


def keeper(optimizer: Any, names: Mapping[int, str]) -> Callable[[], None]:
    """A function that gives an optimizer back the groups, the parameters and the state it has now."""
    before = optimizer.state_dict()
    members = [list(group["params"]) for group in optimizer.param_groups]
    state = {key: dict(value) if isinstance(value, dict) else value for key, value in optimizer.state.items()}

    def undo() -> None:
        del optimizer.param_groups[len(members) :]
        for group, parameters in zip(optimizer.param_groups, members, strict=True):
            set_members(group, parameters, names)
        optimizer.load_state_dict(before)
        optimizer.state.clear()  # load_state_dict casts; these are the very tensors
        optimizer.state.update(state)

    return undo
