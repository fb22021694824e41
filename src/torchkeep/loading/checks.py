"""What must hold before anything is copied, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..applying import value_of
from ..core.live import AnyTensor, live_tensors, named_modules, named_parameters, spec_of, unwrapped
from ..core.memory import tensor_bytes
from ..core.names import Selector
from ..core.placement import CPU
from ..core.plan import LoadPlan
from ..core.report import LoadReport
from ..core.table import shorten
from ..core.tensors import LazyTensor
from ..errors import IncompatibleCheckpointError, LoadError
from ..freezing import held_modules, restore_freeze
from .initialising import initial_values
from .sourcing import Weights


def unused(plan: LoadPlan, weights: Weights, allow: Any) -> tuple[str, ...]:
    """Parts of `allow` that are no name of either side: probably typing errors, never dangerous."""
    parts = Selector.of(allow).unused([*plan.target, *weights.specs]) if allow else []
    return tuple(f"allow={part!r} matches no name of the model or the source" for part in parts)


def idle(plan: LoadPlan, adapt: Mapping[Any, Any] | None) -> tuple[str, ...]:
    """Keys of `adapt` under which nothing is adapted, because all fits as it is or the source has nothing."""
    refused = {one.target for one in plan.mismatched}
    keys = [key for key in adapt or {} if not Selector.of(key).choose({**plan.adapters, **dict.fromkeys(refused)})]
    return tuple(f"adapt={str(Selector.of(key))!r} had nothing to do" for key in keys)


def check_tied(report: LoadReport, weights: Weights) -> None:
    """Names of one tensor in the model must not get different values: the last would win silently."""
    groups: dict[str, list[str]] = {}
    for move in report.moves:
        if move.source in weights.tensors:
            groups.setdefault(report.plan.tied.get(move.target, move.target), []).append(move.source)
    for target, sources in groups.items():
        for other in sources[1:]:
            if not _same(weights.tensors[sources[0]], weights.tensors[other]):
                raise IncompatibleCheckpointError(
                    f"{sources[0]} and {other} of {weights.title} differ, and the model ties them to one, {target}",
                    report=report,
                    hint="untie them in the model, or take one of the two out of the source",
                )


def _same(a: AnyTensor, b: AnyTensor) -> bool:
    """Bit for bit, so that a NaN equals itself."""
    if isinstance(a, LazyTensor) and isinstance(b, LazyTensor) and a.identity == b.identity:
        return True
    return spec_of(a) == spec_of(b) and tensor_bytes(value_of(a)) == tensor_bytes(value_of(b))


def check_casts(report: LoadReport, weights: Weights) -> None:
    """A cast may round, but a finite value must not become infinite in the model."""
    for move in report.moves:
        to, adapter = move.spec.dtype, report.plan.adapters.get(move.target)
        if not (move.cast_from or adapter) or not (to.is_floating_point or to.is_complex):
            continue
        value = value_of(weights.tensors[move.source])
        most = torch.finfo(to).max
        if _largest(value.dtype) > most or (value.is_floating_point() and most < torch.finfo(torch.float32).max):
            finite = _is_finite(value)
            lost = finite & ~_fits(value, to)
            if adapter is not None and bool(finite.all()):  # a sum may be larger than what it is made of
                lost = ~_fits(adapter.apply(value, torch.zeros(move.spec.shape, dtype=to)), to)
            if bool(lost.any()):
                raise IncompatibleCheckpointError(
                    f"{int(lost.sum())} values of {move.source} are too large for {to}",
                    report=report,
                    hint="load into a model of the source's dtype and convert it knowingly",
                )


def _largest(dtype: torch.dtype) -> float:
    if dtype is torch.bool:
        return 1
    return torch.finfo(dtype).max if dtype.is_floating_point or dtype.is_complex else torch.iinfo(dtype).max


def _fits(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Where a finite value stays finite; some floats of 8 bits have nothing above their largest, and stop there."""
    if dtype.itemsize > 1:
        return values.to(dtype).isfinite()
    return values.double().abs() <= torch.finfo(dtype).max


def _is_finite(values: torch.Tensor) -> torch.Tensor:
    """Where they are; of floats of 8 bits torch itself does not tell."""
    small = values.is_floating_point() and values.dtype.itemsize == 1
    return (values.float() if small else values).isfinite()


def fresh_values(
    model: nn.Module, plan: LoadPlan, weights: Weights, devices: Mapping[str, torch.device]
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Values of the modules' own for what is on the meta device and not loaded, and what to say of it.

    Raises:
        LoadError: an adapter keeps values of the model where it has none, and no initialiser gives any.
    """
    live = live_tensors(unwrapped(model))
    unwanted = [name for name in plan.target if name in live and devices.get(name, CPU).type == "meta"]
    said = [f"on the meta device as asked, without values: {shorten(unwanted)}"] if unwanted else []
    meta = {plan.tied.get(name, name) for name, tensor in live.items() if tensor.is_meta} - {*unwanted}
    if not meta:
        return {}, tuple(said)
    reached = {plan.tied.get(move.target, move.target) for move in plan.moves}
    kept = {plan.tied.get(move.target, move.target): move for move in plan.moves if _keeps(plan, move, weights)}
    fresh = initial_values(unwrapped(model), sorted((meta - reached) | (meta & kept.keys())), devices)
    empty = [name for name in kept if name in meta and name not in fresh]
    if empty:
        raise LoadError(
            f"{kept[empty[0]].adapter} keeps values of the model in {shorten(empty, 3)}, which is on the meta device, "
            "and no module has a reset_parameters that gives it values",
            hint="make the model on a device, or give its module a reset_parameters",
        )
    made = [name for name in live if name in fresh and name not in kept]
    left = [name for name in live if name in meta and name not in reached and name not in fresh]
    if made:
        said.append(f"initialised by their modules, for they were on the meta device: {shorten(made)}")
    if left:
        said.append(f"still on the meta device, without values: {shorten(left)}; no reset_parameters gives them any")
    return fresh, tuple(said)


def _keeps(plan: LoadPlan, move: Any, weights: Weights) -> bool:
    adapter = plan.adapters.get(move.target)
    fit = None if adapter is None else adapter.fit(move.spec, weights.specs[move.source])
    return fit is not None and fit.keeps


def freeze_as_saved(model: nn.Module, plan: LoadPlan, weights: Weights, wanted: bool | None) -> tuple[str, ...]:
    """Freeze the model as it was when it was saved, if that is wanted and can be; returns what to say of it."""
    frozen = weights.frozen
    if not frozen or wanted is False:
        return ("freeze=True had nothing to do: the source does not say that anything was frozen",) if wanted else ()
    what = f"{len(frozen.still)} parameters and {len(frozen.held)} modules"
    same = all(move.source == move.target for move in plan.moves)
    whole = same and not (plan.missing or plan.unexpected or plan.mismatched or plan.adapters)
    if not wanted and (not whole or _is_frozen(model)):
        return (f"the model that was saved had {what} frozen; freeze=True freezes them here too",)
    paths = {path for path, _ in named_modules(model)}
    held = tuple(path for path in frozen.held if path in paths)
    restore_freeze(model, replace(frozen, held=held), None if whole else {move.target for move in plan.moves})
    return (f"{what} were frozen as in the file; freeze=False leaves the model as it is",)


def _is_frozen(model: nn.Module) -> bool:
    """Whether the caller has frozen something of the model already."""
    return bool(held_modules(model)) or any(
        not parameter.requires_grad and parameter.is_floating_point() for _, parameter in named_parameters(model)
    )


def texts_of(allow: Any) -> tuple[str, ...]:
    """What a caller allowed, as text."""
    return Selector.of(allow).texts if allow else ()


def both(allow: Any, more: Iterable[str]) -> Any:
    """What the caller allows and what a plan does."""
    listed = [*texts_of(allow), *more]
    return listed or None
