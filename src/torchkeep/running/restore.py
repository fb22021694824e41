"""Putting a snapshot back into live objects. Everything is checked before anything is changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import tagged
from ..core.live import set_extra_state, spec_of, state_of, tied_names, unwrapped
from ..core.manifest import Body, Entry
from ..core.plan import make_plan
from ..core.report import LoadReport
from ..errors import IncompatibleCheckpointError
from ..freezing import restore_held
from ..rules.exact import Exact
from .capture import class_name, group_names, parameter_names

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One checked part of a restoration, ready to be carried out.

    Attributes:
        what: the object, for reports.
        apply: restores it.
        undo: gives it back what it had, should a later step fail.
        notes: what the caller should know.
    """

    what: str
    apply: Callable[[], None]
    undo: Callable[[], None] = lambda: None
    notes: tuple[str, ...] = ()


def plan_restore(body: Body, tensors: Tensors, model: nn.Module | None, optimizer: Any, scheduler: Any) -> list[Step]:
    """Check a snapshot against the live objects and say how to restore them.

    The steps are in the order of how likely they fail: foreign `load_state_dict` methods first, plain copies last.

    Args:
        body: the manifest.
        tensors: its tensors by full name, already verified.
        model, optimizer, scheduler: what to restore into; None is left out.

    Raises:
        IncompatibleCheckpointError: an object does not fit what was saved; nothing was changed.
    """
    whole = [_model(body, tensors, model)] if model is not None else []  # checked first, applied last
    steps = []
    if scheduler is not None:
        steps.append(_scheduler(body, tensors, scheduler))
    if optimizer is not None:
        steps.append(_optimizer(body, tensors, optimizer, parameter_names(model), ordered=scheduler is not None))
    value = _value(body.state["rng"], tensors)
    notes = () if len(value["cuda"]) in {0, _cuda_devices()} else ("the generators of other GPUs were left alone",)
    return [*steps, *whole, Step("rng", lambda: _random(value), notes=notes)]


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


def _cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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


def _part(body: Body, what: str, live: Any) -> Any:
    if what not in body.state:
        raise IncompatibleCheckpointError(
            f"snapshot {body.sequence} holds no {what}", hint=f"resume without {what}=, or from a snapshot that has it"
        )
    part = body.state[what]
    if what != "model" and part["class"] != class_name(live):
        raise IncompatibleCheckpointError(
            f"snapshot {body.sequence} holds the state of a {part['class']}, not of a {class_name(live)}",
            hint=f"make the {what} that was saved, or resume without {what}=",
        )
    return part


def _model(body: Body, tensors: Tensors, model: nn.Module) -> Step:
    part = _part(body, "model", model)
    inner = unwrapped(model)
    live, live_extra = state_of(inner)
    saved = {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")}
    extra = _value(part["extra"], tensors)
    entries = _entries_of_model(body)
    _check_model(body, live, saved)
    _check_names(body, "extra state", set(live_extra), set(extra))
    held = set(part["held"])
    _check_names(body, "frozen modules", held & {name for name, _ in inner.named_modules()}, held)
    flipped = [name for name, tensor in live.items() if tensor.requires_grad != entries[name].requires_grad]

    def apply() -> None:
        for name, value in extra.items():
            set_extra_state(inner, name, value)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(saved[name])
        for name in flipped:
            live[name].requires_grad_(entries[name].requires_grad)
        restore_held(inner, part["held"])

    def undo() -> None:
        """Only extra state can be refused, and it is set before anything is copied."""
        for name, value in live_extra.items():
            set_extra_state(inner, name, value)

    note = f"requires_grad of {len(flipped)} parameters was set as in the snapshot: {', '.join(flipped[:3])}"
    return Step("model", apply, undo, notes=(note,) if flipped else ())


def _entries_of_model(body: Body) -> dict[str, Entry]:
    """The entries of the model's tensors by their names in a state dict."""
    return {entry.name.removeprefix("model/"): entry for entry in body.entries if entry.name.startswith("model/")}


def _check_model(body: Body, live: Tensors, saved: Tensors) -> None:
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
    digests = {name: entry.digest for name, entry in _entries_of_model(body).items()}
    torn = [name for name, first in plan.tied.items() if digests.get(name) != digests.get(first)]
    if torn:
        problem = f"tied now and of different values then: {', '.join(torn[:5])}"
    if plan.missing or plan.unexpected or plan.mismatched or problem:
        report = LoadReport(f"snapshot {body.sequence}", plan)
        raise IncompatibleCheckpointError(
            f"the model is not the one that was saved in snapshot {body.sequence}; {problem}".rstrip("; ")
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


def _optimizer(body: Body, tensors: Tensors, optimizer: Any, names: Mapping[int, str], *, ordered: bool) -> Step:
    part = _part(body, "optimizer", optimizer)
    by_group = group_names(optimizer, names)
    saved_groups = part["groups"]
    live_names = [name for group in by_group for name in group]
    sources = _match_groups(body, by_group, [group["names"] for group in saved_groups])
    if ordered and sources != sorted(sources):
        raise IncompatibleCheckpointError(
            f"the parameter groups stand in another order than in snapshot {body.sequence}; a scheduler counts them",
            hint="make the groups in the order in which they were saved",
        )
    moments = {name: _value(value, tensors) for name, value in part["state"].items()}
    options = [_value(saved_groups[source]["options"], tensors) for source in sources]
    others = _value(part["others"], tensors)

    def apply() -> None:
        state = optimizer.state_dict()
        keys = [key for group in state["param_groups"] for key in group["params"]]
        for group, saved in zip(state["param_groups"], options, strict=True):
            group.update(saved)
        by_key = dict(zip(keys, live_names, strict=True))
        state["state"] = {key: moments[name] for key, name in by_key.items() if name in moments}
        optimizer.load_state_dict(state | others)
        _keep_exact(optimizer, dict(zip(live_names, _parameters(optimizer), strict=True)), moments)

    before = optimizer.state_dict()
    return Step("optimizer", apply, lambda: optimizer.load_state_dict(before))


def _match_groups(body: Body, live: list[list[str]], saved: list[list[str]]) -> list[int]:
    """For each live group the saved one of the same parameters, in whatever order they stand.

    Raises:
        IncompatibleCheckpointError: the optimizer held other parameters, or other groups of them.
    """
    here, there = {name for group in live for name in group}, {name for group in saved for name in group}
    if here != there:
        gone, new = sorted(there - here), sorted(here - there)
        raise IncompatibleCheckpointError(
            f"the optimizer of snapshot {body.sequence} holds other parameters: "
            f"only there {gone[:5]} ({len(gone)}), only here {new[:5]} ({len(new)})",
            hint="freeze and group the parameters as they were when it was saved, then resume",
        )
    left = dict(enumerate(map(frozenset, saved)))
    sources = []
    for group in live:
        found = next((place for place, names in left.items() if names == frozenset(group)), None)
        if found is None:
            break
        sources.append(found)
        del left[found]
    if left or len(sources) < len(live):
        raise IncompatibleCheckpointError(
            f"the parameters were grouped differently in snapshot {body.sequence}",
            hint="make the same groups as when it was saved",
        )
    return sources


def _parameters(optimizer: Any) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _keep_exact(optimizer: Any, parameters: Mapping[str, torch.Tensor], moments: Mapping[str, Any]) -> None:
    """torch casts moments to the parameter's dtype when it loads them; a resumed run needs the bits that were saved."""
    for name, saved in moments.items():
        live = optimizer.state.get(parameters.get(name))
        if not isinstance(live, dict) or not isinstance(saved, dict):
            continue
        for key, value in saved.items():
            now = live.get(key)
            if isinstance(value, torch.Tensor) and isinstance(now, torch.Tensor) and now.dtype != value.dtype:
                live[key] = value.to(now.device)


def _scheduler(body: Body, tensors: Tensors, scheduler: Any) -> Step:
    part = _part(body, "scheduler", scheduler)
    state = _value(part["state"], tensors)
    before = copy.deepcopy(scheduler.state_dict())
    return Step("scheduler", lambda: scheduler.load_state_dict(state), lambda: scheduler.load_state_dict(before))


def _random(value: Any) -> None:
    torch.set_rng_state(value["torch"])
    if value["cuda"] and len(value["cuda"]) == _cuda_devices():
        torch.cuda.set_rng_state_all(value["cuda"])
    version, words, gauss = value["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = value["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
