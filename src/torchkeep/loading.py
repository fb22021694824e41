"""Loading into a model: plan, check, and only then copy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .applying import apply_plan, value_of
from .core import tagged
from .core import tree as trees
from .core.checkpoint import Checkpoint
from .core.freezespec import Frozen
from .core.live import (
    AnyTensor,
    is_extra_state,
    live_tensors,
    named_modules,
    named_parameters,
    spec_of,
    state_of,
    tied_names,
    unwrapped,
)
from .core.memory import tensor_bytes
from .core.names import Selector
from .core.plan import LoadPlan, Rule, make_plan
from .core.registry import make_part
from .core.report import LoadReport
from .core.table import shorten
from .core.tensors import LazyTensor, TensorSpec
from .errors import IncompatibleCheckpointError, LoadError
from .freezing import held_modules, restore_freeze
from .opening import open_checkpoint
from .rules import DEFAULT_RULES, RULES
from .rules.prefixes import suggest

# Stands in a plan for what is no tensor: the extra state of a module, which has a name and no elements.
_EXTRA = TensorSpec(torch.uint8, (0,))


@dataclass(frozen=True)
class _Weights:
    """Where values come from: tensors and extra state by name, and what to call the whole."""

    title: str
    tensors: Mapping[str, AnyTensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    frozen: Frozen = field(default_factory=Frozen)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        return {name: spec_of(tensor) for name, tensor in self.tensors.items()} | dict.fromkeys(self.extra, _EXTRA)


def plan_load(model: nn.Module, source: Any, *, rules: Iterable[str | Rule] | None = None) -> LoadReport:
    """What `load_into` would do, without doing it: print it, look at its `.coverage`, or `.check(allow)` it.

    Args and errors are those of `load_into`; whatever does not fit is only reported.
    """
    weights = _weights_of(source)
    return LoadReport(weights.title, _plan(model, weights, rules))


def load_into(
    model: nn.Module,
    source: Any,
    *,
    allow: Any = None,
    rules: Iterable[str | Rule] | None = None,
    device: torch.device | str | None = None,
    freeze: bool | None = None,
    assign: bool = False,
) -> LoadReport:
    """Copy weights into a model, and refuse to leave anything unloaded that was not named.

    >>> tk.load_into(model, "resnet50.pth", allow=["fc.*"])        # doctest: +SKIP

    The model is untouched until the plan has passed. Values are copied into the existing parameters and buffers, so
    optimizers keep working; a dtype that differs is cast and reported, a shape that differs is never loaded. Where a
    local file has the bytes as the model needs them, several threads read them straight into the parameters.

    Args:
        model: any module; wrappers such as DataParallel are looked through.
        source: a path, a Checkpoint (of a training checkpoint, its `.model` is taken), a state dict or a module.
        allow: selectors of names that may stay unloaded, whether missing, unexpected or mismatched.
        rules: names of rules, or rules, in order of preference; `exact` and `prefixes` if None.
        device: move the model there first; parameters on the meta device are made there (on the CPU if None).
        freeze: freeze the model as the one that torchkeep saved was, with its freeze spec in its phase; if None, only
            where the whole model was loaded under its own names and nothing of it is frozen yet. The report says what
            was done.
        assign: instead of copying, make parameters and buffers on the CPU and the meta device views of the file, mapped
            privately: at once and without memory of their own, and training never changes the file. It must not be
            overwritten in place or shortened as long as the model lives; torchkeep never does that to a file, it
            replaces it, but `torch.save` and `cp` do. Parameters stay the same objects, except those on the meta
            device: an optimizer that was made before holds those of the meta device still. What is cast, lies
            otherwise in the file or is not in a mapped file is copied as ever; the report says how much.

    Raises:
        IncompatibleCheckpointError: something would stay unloaded; `.report` has all of it. The model is untouched.
        AmbiguousMatchError: two prefixes fit equally well.
        CorruptCheckpointError: the file was shortened since it was opened; the model is untouched.
        LoadError: there are no weights in `source`, or the model cannot be loaded into.
        PartialLoadError: copying failed half way; `.applied` names what was copied.
    """
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"the first argument is a {type(model).__name__}, not a model",
            hint="tk.load_into(model, source): the model comes first",
        )
    weights = _weights_of(source)
    plan = _plan(model, weights, rules)
    report = LoadReport(weights.title, plan, notes=_unused(plan, weights, allow))
    try:
        report.check(allow)
    except IncompatibleCheckpointError as error:
        error.hint = _better_hint(report, weights) or error.hint
        raise
    _check_tied(report, weights)
    _check_casts(report, weights)
    if freeze and weights.frozen and any(move.source != move.target for move in plan.moves):
        raise LoadError(
            "freeze=True goes by names, and these were loaded under others",
            hint="leave freeze=True off, and tk.freeze(model, ...) by the names that the model has",
        )
    said = apply_plan(unwrapped(model), plan, weights.tensors, weights.extra, device=device, assign=assign)
    notes = (*report.notes, *said, *_left_on_meta(model), *_freeze(model, report, weights, freeze))
    return replace(report, applied=True, notes=notes)


def _freeze(model: nn.Module, report: LoadReport, weights: _Weights, wanted: bool | None) -> tuple[str, ...]:
    """Freeze the model as it was when it was saved, if that is wanted and can be; returns what to say of it."""
    frozen, plan = weights.frozen, report.plan
    if not frozen or wanted is False:
        return ()
    what = f"{len(frozen.still)} parameters and {len(frozen.held)} modules"
    same = all(move.source == move.target for move in plan.moves)
    whole = same and not (plan.missing or plan.unexpected or plan.mismatched)
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


def _unused(plan: LoadPlan, weights: _Weights, allow: Any) -> tuple[str, ...]:
    """Parts of `allow` that are no name of either side: probably typing errors, never dangerous."""
    parts = Selector.of(allow).unused([*plan.target, *weights.specs]) if allow else []
    return tuple(f"allow={part!r} matches no name of the model or the source" for part in parts)


def _weights_of(source: Any) -> _Weights:
    if isinstance(source, (str, os.PathLike)):
        source = open_checkpoint(source)
    if isinstance(source, Checkpoint):
        weights = _of_checkpoint(source)
    elif isinstance(source, nn.Module):
        weights = _Weights(f"a {type(unwrapped(source)).__name__}", *state_of(source))
    elif isinstance(source, Mapping):
        weights = _of_state_dict(source)
    else:
        raise LoadError(
            f"weights cannot be taken from a {type(source).__name__}",
            hint="pass a path, a Checkpoint, a state dict or a module",
        )
    if not weights.tensors and not weights.extra:
        raise LoadError(f"there are no weights in {weights.title}", hint="print(tk.open(path)) shows what is in a file")
    for name, tensor in weights.tensors.items():
        plain = isinstance(tensor, LazyTensor) or (tensor.layout is torch.strided and not tensor.is_quantized)
        if not plain or str(tensor.device) == "meta":
            what = "is on the meta device and has no values" if plain else "is sparse or quantized"
            raise LoadError(f"{name!r} of {weights.title} {what}", hint="load it where it has dense values")
    return weights


def _of_checkpoint(ckpt: Checkpoint) -> _Weights:
    """The model's weights, and its extra state: beside them in a state dict, or in the facts of a saved model."""
    model = ckpt.model
    tensors: dict[str, AnyTensor] = {name: lazy for name, lazy in model.items() if not is_extra_state(name)}
    beside: Any = model.tree if isinstance(model.tree, Mapping) else {}
    if ckpt.facts is not None and ckpt.facts.kind == "module" and isinstance(ckpt.facts.tree, Mapping):
        beside = tagged.decode(ckpt.facts.tree, lambda name: ckpt[name])
    extra = {name: _own(value) for name, value in beside.items() if isinstance(name, str) and is_extra_state(name)}
    inside = tuple(f"{name}." for name in extra)
    tensors = {name: lazy for name, lazy in tensors.items() if not (inside and name.startswith(inside))}
    return _Weights(str(ckpt.file), tensors, extra, model.frozen)


def _own(value: Any) -> Any:
    """A value of a checkpoint with tensors of its own in it."""
    return trees.rebuild(value, lambda lazy: lazy.load().clone())


def _of_state_dict(state: Mapping[Any, Any]) -> _Weights:
    extra = {name: value for name, value in state.items() if isinstance(name, str) and is_extra_state(name)}
    tensors = {name: value for name, value in state.items() if name not in extra}
    odd = [str(key) for key, value in tensors.items() if not isinstance(value, (torch.Tensor, LazyTensor))]
    if odd:
        raise LoadError(
            f"the dict holds values that are no tensors: {shorten(odd, 4)}",
            hint="pass the state dict inside it, such as checkpoint['state_dict'], or its path: tk.load_into finds it",
        )
    return _Weights("a state dict", tensors, extra)


def _plan(model: nn.Module, weights: _Weights, rules: Iterable[str | Rule] | str | Rule | None) -> LoadPlan:
    if rules is not None and (isinstance(rules, str) or not isinstance(rules, Iterable)):
        rules = [rules]
    live, extra = state_of(model)
    lazy = [name for name, tensor in live.items() if is_lazy(tensor)]
    if lazy:
        raise LoadError(f"{shorten(lazy, 3)} of the model have no shape yet", hint="run one batch through the model")
    unreachable = sorted(live.keys() - live_tensors(unwrapped(model)).keys())
    if unreachable:
        raise LoadError(
            f"{shorten(unreachable, 3)} of its state dict are no parameters or buffers of the model: a hook makes them",
            hint="load with the model's own load_state_dict",
        )
    chosen: list[Rule] = [make_part(RULES, rule, "rule") for rule in (DEFAULT_RULES if rules is None else rules)]
    target = {name: spec_of(tensor) for name, tensor in live.items()} | dict.fromkeys(extra, _EXTRA)
    return make_plan(target, weights.specs, chosen, tied_names(live))


def _better_hint(report: LoadReport, weights: _Weights) -> str:
    """The prefix that would pair what is left over, where there is one: it is proposed and never taken by itself."""
    plan, specs = report.plan, weights.specs
    rule = suggest({name: plan.target[name] for name in plan.missing}, {name: specs[name] for name in plan.unexpected})
    return f"if these are meant, {rule} pairs more names: rules=['exact', tk.{rule}]" if rule else ""


def _check_tied(report: LoadReport, weights: _Weights) -> None:
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


def _check_casts(report: LoadReport, weights: _Weights) -> None:
    """A cast may round, but a finite value must not become infinite in the model."""
    for move in report.moves:
        to = move.spec.dtype
        if not move.cast_from or not to.is_floating_point:
            continue
        value = value_of(weights.tensors[move.source])
        if value.is_floating_point() and torch.finfo(to).max < torch.finfo(value.dtype).max:
            lost = value.isfinite() & ~value.to(to).isfinite()
            if bool(lost.any()):
                raise IncompatibleCheckpointError(
                    f"{int(lost.sum())} values of {move.source} are too large for {to}",
                    report=report,
                    hint="load into a model of the source's dtype and convert it knowingly",
                )


def _left_on_meta(model: nn.Module) -> tuple[str, ...]:
    left = [name for name, tensor in live_tensors(unwrapped(model)).items() if tensor.device.type == "meta"]
    return (f"still on the meta device, without values: {shorten(left)}",) if left else ()
