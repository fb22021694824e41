"""Putting a snapshot back into live objects. Everything is checked before anything is changed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..core import tagged
from ..core.live import spec_of, state_of, tied_names, unwrapped
from ..core.manifest import Body
from ..core.plan import make_plan
from ..core.report import LoadReport
from ..errors import IncompatibleCheckpointError
from ..freezing import restore_held
from ..rules.exact import Exact
from .capture import class_name, group_names, parameter_names

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One checked part of a restoration, ready to be carried out."""

    what: str
    apply: Callable[[], None]
    notes: tuple[str, ...] = ()


def plan_restore(body: Body, tensors: Tensors, model: nn.Module | None, optimizer: Any, scheduler: Any) -> list[Step]:
    """Check a snapshot against the live objects and say how to restore them.

    Args:
        body: the manifest.
        tensors: its tensors by full name, already verified.
        model, optimizer, scheduler: what to restore into; None is left out.

    Raises:
        IncompatibleCheckpointError: an object does not fit what was saved; nothing was changed.
    """
    steps = []
    if model is not None:
        steps.append(_model(body, tensors, model))
    if optimizer is not None:
        steps.append(_optimizer(body, tensors, optimizer, parameter_names(model)))
    if scheduler is not None:
        steps.append(_scheduler(body, tensors, scheduler))
    steps.append(Step("rng", lambda: _random(_value(body.state["rng"], tensors))))
    return steps


def _value(part: Any, tensors: Tensors) -> Any:
    """A tracked value with tensors of its own: what is restored must never be a view of a mapped file."""
    return tagged.decode(part, lambda name: tensors[name].clone())


def extra_of(body: Body, tensors: Tensors) -> Any:
    """What was saved as `extra`."""
    return _value(body.state["extra"], tensors) if "extra" in body.state else None


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
    plan = make_plan(
        {name: spec_of(tensor) for name, tensor in live.items()},
        {name: spec_of(tensor) for name, tensor in saved.items()},
        [Exact()],
        tied_names(live),
    )
    report = LoadReport(f"snapshot {body.sequence}", plan)
    casts = [move.target for move in plan.moves if move.cast_from]
    if plan.missing or plan.unexpected or plan.mismatched or casts:
        changed = f"; other dtypes: {', '.join(casts[:5])}" if casts else ""
        raise IncompatibleCheckpointError(
            f"the model is not the one that was saved in snapshot {body.sequence}{changed}\n{report}",
            report=report,
            hint="to put weights into a changed model use tk.load_into; resume continues the same run",
        )
    flags = {
        entry.name.removeprefix("model/"): entry.requires_grad
        for entry in body.entries
        if entry.name.startswith("model/")
    }
    flipped = [name for name, tensor in live.items() if tensor.requires_grad != flags[name]]
    extra = _value(part["extra"], tensors)

    def apply() -> None:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(saved[name])
        for name, tensor in live.items():
            if tensor.requires_grad != flags[name]:
                tensor.requires_grad_(flags[name])
        for name in live_extra.keys() & extra.keys():
            inner.get_submodule(name.removesuffix("_extra_state").rstrip(".")).set_extra_state(extra[name])
        restore_held(inner, part["held"])

    note = f"requires_grad of {len(flipped)} parameters was set as in the snapshot: {', '.join(flipped[:3])}"
    return Step("model", apply, (note,) if flipped else ())


def _optimizer(body: Body, tensors: Tensors, optimizer: Any, names: Mapping[int, str]) -> Step:
    part = _part(body, "optimizer", optimizer)
    by_group = group_names(optimizer, names)
    saved_groups = part["groups"]
    live_names = [name for group in by_group for name in group]
    saved_names = [name for group in saved_groups for name in group["names"]]
    if sorted(live_names) != sorted(saved_names):
        gone = sorted(set(saved_names) - set(live_names))
        new = sorted(set(live_names) - set(saved_names))
        raise IncompatibleCheckpointError(
            f"the optimizer of snapshot {body.sequence} holds other parameters: "
            f"only there {gone[:5]} ({len(gone)}), only here {new[:5]} ({len(new)})",
            hint="freeze and group the parameters as they were when it was saved, then resume",
        )
    home = {name: position for position, group in enumerate(saved_groups) for name in group["names"]}
    sources = [sorted({home[name] for name in group}) for group in by_group]
    if any(len(source) > 1 for source in sources):
        raise IncompatibleCheckpointError(
            f"the parameter groups were split differently in snapshot {body.sequence}",
            hint="make the same groups as when it was saved",
        )
    moments = {name: _value(value, tensors) for name, value in part["state"].items()}
    options = [_value(saved_groups[source[0]]["options"], tensors) if source else {} for source in sources]
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

    return Step("optimizer", apply)


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
    return Step("scheduler", lambda: scheduler.load_state_dict(state))


def _random(value: Any) -> None:
    torch.set_rng_state(value["torch"])
    if torch.cuda.is_available() and len(value["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(value["cuda"])
    version, words, gauss = value["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = value["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
