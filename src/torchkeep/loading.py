"""Loading into a model: plan, check, and only then copy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .core.checkpoint import Checkpoint
from .core.live import spec_of, state_of, tied_names, unwrapped
from .core.plan import LoadPlan, Rule, make_plan
from .core.registry import make_part
from .core.report import LoadReport
from .core.table import shorten
from .core.tensors import LazyTensor
from .errors import IncompatibleCheckpointError, LoadError, PartialLoadError
from .opening import open_checkpoint
from .rules import DEFAULT_RULES, RULES

Weights = Mapping[str, Any]


def plan_load(model: nn.Module, source: Any, *, rules: Iterable[str | Rule] | None = None) -> LoadReport:
    """What `load_into` would do, without doing it: print it, look at its `.coverage`, or `.check(allow)` it.

    Args and errors are those of `load_into`; whatever does not fit is only reported.
    """
    weights, name = _weights(source)
    plan = _plan(model, weights, rules)
    return LoadReport(name, plan)


def load_into(
    model: nn.Module,
    source: Any,
    *,
    allow: Any = None,
    rules: Iterable[str | Rule] | None = None,
    device: torch.device | str | None = None,
) -> LoadReport:
    """Copy weights into a model, and refuse to leave anything unloaded that was not named.

    >>> tk.load_into(model, "resnet50.pth", allow=["fc.*"])        # doctest: +SKIP

    The model is untouched until the plan has passed. Values are copied into the existing parameters and buffers, so
    optimizers keep working; a dtype that differs is cast and reported, a shape that differs is never loaded.

    Args:
        model: any module; wrappers such as DataParallel are looked through.
        source: a path, a Checkpoint (of a training checkpoint, its `.model` is taken), a state dict or a module.
        allow: selectors of names that may stay unloaded, whether missing, unexpected or mismatched.
        rules: names of rules, or rules, in order of preference; `exact` and `prefixes` if None.
        device: move the model there first; parameters on the meta device are made there (on the CPU if None).

    Raises:
        IncompatibleCheckpointError: something would stay unloaded; `.report` has all of it. The model is untouched.
        AmbiguousMatchError: two prefixes fit equally well.
        PartialLoadError: copying failed half way; `.applied` names what was copied.
    """
    weights, name = _weights(source)
    plan = _plan(model, weights, rules)
    report = LoadReport(name, plan)
    report.check(allow)
    _check_tied(plan, weights, name)
    _place(unwrapped(model), plan, device)
    live, _ = state_of(model)
    _copy(plan, weights, live)
    return LoadReport(name, plan, applied=True)


def _weights(source: Any) -> tuple[Weights, str]:
    if isinstance(source, (str, os.PathLike)):
        source = open_checkpoint(source)
    if isinstance(source, Checkpoint):
        return source.model, str(source.file)
    if isinstance(source, nn.Module):
        return state_of(source)[0], f"a {type(unwrapped(source)).__name__}"
    if not isinstance(source, Mapping):
        raise LoadError(
            f"weights cannot be taken from a {type(source).__name__}",
            hint="pass a path, a Checkpoint, a state dict or a module",
        )
    odd = [str(key) for key, value in source.items() if not isinstance(value, (torch.Tensor, LazyTensor))]
    if odd:
        raise LoadError(
            f"the dict holds values that are no tensors: {shorten(odd, 4)}",
            hint="pass the state dict inside it, such as checkpoint['state_dict'], or its path: tk.load_into finds it",
        )
    return source, "a state dict"


def _plan(model: nn.Module, weights: Weights, rules: Iterable[str | Rule] | None) -> LoadPlan:
    live, _ = state_of(model)
    chosen: list[Rule] = [make_part(RULES, rule, "rule") for rule in (DEFAULT_RULES if rules is None else rules)]
    target = {name: spec_of(tensor) for name, tensor in live.items()}
    source = {name: spec_of(tensor) for name, tensor in weights.items()}
    return make_plan(target, source, chosen, tied_names(live))


def _check_tied(plan: LoadPlan, weights: Weights, name: str) -> None:
    """Names of one tensor in the model must not get different values: the last would win silently."""
    groups: dict[str, list[str]] = {}
    for move in plan.moves:
        groups.setdefault(plan.tied.get(move.target, move.target), []).append(move.source)
    for target, sources in groups.items():
        first = weights[sources[0]]
        for other in sources[1:]:
            if not _same(first, weights[other]):
                raise IncompatibleCheckpointError(
                    f"{sources[0]} and {other} of {name} differ, and the model ties them to one tensor, {target}",
                    report=LoadReport(name, plan),
                    hint="untie them in the model, or take one of the two out of the source",
                )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, LazyTensor) and isinstance(b, LazyTensor) and a.identity == b.identity:
        return True
    return torch.equal(_value(a), _value(b))


def _value(tensor: Any) -> torch.Tensor:
    value: torch.Tensor = tensor.load() if isinstance(tensor, LazyTensor) else tensor.detach()
    return value


def _place(model: nn.Module, plan: LoadPlan, device: torch.device | str | None) -> None:
    """Give what is on the meta device memory, but only where values for it follow; move the rest as asked."""
    reached = {plan.tied.get(move.target, move.target) for move in plan.moves}
    made: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                name = f"{path}.{key}" if path else key
                canonical = plan.tied.get(name, name)
                if tensor is None or tensor.device.type != "meta" or canonical not in reached:
                    continue
                if canonical not in made:
                    empty = torch.empty_like(tensor, device=device or "cpu")
                    made[canonical] = (
                        nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                    )
                held[key] = made[canonical]
    if device is not None:
        model._apply(lambda tensor: tensor if tensor.device.type == "meta" else tensor.to(device))


def _copy(plan: LoadPlan, weights: Weights, live: Mapping[str, torch.Tensor]) -> None:
    applied: list[str] = []
    try:
        with torch.no_grad():
            for move in plan.moves:
                live[move.target].copy_(_value(weights[move.source]))
                applied.append(move.target)
    except Exception as error:
        raise PartialLoadError(
            f"loading stopped after {len(applied)} of {len(plan.moves)} tensors: {error}",
            applied=tuple(applied),
            hint="the model holds old and new values: make it anew before going on",
        ) from error
