"""The story of loading: open, plan, check, copy, and say what was done."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..adapters import ADAPTERS
from ..applying import apply_plan, devices_of, value_of
from ..core.about import licences_differ
from ..core.digests import digest_tensor
from ..core.lineage import name_of, parent_of
from ..core.live import unwrapped
from ..core.origin import Origin, remember
from ..core.placement import Device, Placement
from ..core.plan import Adapter, LoadPlan, Rule
from ..core.registry import make_part
from ..core.report import Require
from ..errors import IncompatibleCheckpointError, LoadError
from .advising import advice
from .checks import both, check_casts, check_tied, freeze_as_saved, fresh_values, idle, texts_of, unused
from .following import follow, plan_following
from .outputs import compared, reference_outputs
from .planfile import LoadReport, read_plan
from .planning import Adapt, Rules, planned, rules_of, targets_of
from .sourcing import Weights, weights_of

PlanFile = str | os.PathLike[str] | None


def plan_load(
    model: nn.Module,
    source: Any,
    *,
    rules: Rules = None,
    match: str | Rule | None = None,
    adapt: Adapt = None,
    plan: PlanFile = None,
) -> LoadReport:
    """What `load_into` would do, without doing it: print it, look at its `.coverage`, `.check` it or `.save_plan` it.

    Args and errors are those of `load_into`; whatever does not fit is only reported.
    """
    weights = weights_of(source, model)
    chosen = _chosen(rules, match, plan)
    decided, allowed = _decided(model, weights, chosen, adapt, plan)
    return LoadReport(weights.title, decided, notes=(*weights.notes, *idle(decided, adapt)), allowed=tuple(allowed))


def load_into(
    model: nn.Module,
    source: Any,
    *,
    allow: Any = None,
    rules: Rules = None,
    match: str | Rule | None = None,
    adapt: Adapt = None,
    require: Require = None,
    plan: PlanFile = None,
    optimizer: Any = None,
    check: Any = None,
    reference: Any = None,
    tolerance: float = 1e-5,
    device: Device | Mapping[Any, Device] | Placement | None = None,
    freeze: bool | None = None,
    assign: bool = False,
) -> LoadReport:
    """Copy weights into a model, and refuse to leave anything unloaded that was not named.

    >>> tk.load_into(model, "resnet50.pth", allow=["fc.*"])        # doctest: +SKIP

    The model is untouched until the plan has passed. Values are copied into the existing parameters and buffers, so
    optimizers keep working; a dtype that differs is cast and reported, a shape that differs is never loaded unless
    `adapt` says how. Where a local file has the bytes as the model needs them, several threads read them straight into
    the parameters. What stays unloaded on the meta device is initialised by its module's own `reset_parameters`; what
    has none stays there, and the report says so.

    Args:
        model: any module; wrappers such as DataParallel are looked through.
        source: a path, a Checkpoint (of a training checkpoint, its `.model` is taken), a state dict, a module, or a run
            or snapshot: `runs/flowers` is the newest, `runs/flowers@best` the best. Or a dict from paths of modules to
            any of these, or to pairs of one of these and a prefix in it:
            `{"backbone": "a.pth", "heads.depth": ("b.pth", "decoder")}`.
        allow: selectors of names that may stay unloaded, whether missing, unexpected or mismatched.
        rules: names of rules, or rules, in order of preference; `exact`, `prefixes` and `weight-norm` if None.
        match: one more rule, by name or itself, for what the others leave over: `structural`.
        adapt: selectors of names of the model -> what makes their tensors fit, by name or itself:
            `{"fc": tk.adapters.rows(labels={3: 0}), "conv1.weight": "channels"}`. The first that chooses a name counts.
        require: the share of the model's elements that must be covered, or selectors, each with its share:
            `{"backbone": 1.0}`.
        plan: a file that `save_plan` wrote, in place of `rules` and `match`.
        optimizer: an optimizer of the model; it goes on with the state that the one in the source has for the same
            parameters, by name. Its options stay.
        check: an input of the model (a tuple is its positional, a dict its named arguments): afterwards the outputs in
            eval mode are compared with those of `reference`.
        reference: a module, which gets the same input, or the outputs.
        tolerance: the largest absolute difference of outputs that is accepted.
        device: move the model there first; parameters on the meta device are made there (on the CPU if None). A dict
            from selectors of names to devices places parts: `{"encoder": "cuda:0", "decoder": "cuda:1"}`. The first
            that chooses a name counts; what none chooses goes to the CPU.
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
        IncompatibleCheckpointError: something would stay unloaded, or less than `require` is covered; `.report` has
            all of it. The model is untouched.
        AmbiguousMatchError: two prefixes fit equally well.
        SelectorError: a selector of `adapt`, `require` or `device`, or a path or prefix of `source`, chooses nothing.
        CorruptCheckpointError: the file was shortened since it was opened; the model is untouched.
        LoadError: there are no weights in `source`, the model cannot be loaded into, the plan is none or does not fit,
            a device is not here, or the state of the optimizer cannot follow. The model is untouched.
        PartialLoadError: copying failed half way; `.applied` names what was copied.
        OutputsDifferError: the weights are loaded and the outputs are not those of the reference.
    """
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"the first argument is a {type(model).__name__}, not a model",
            hint="tk.load_into(model, source): the model comes first",
        )
    if (check is None) != (reference is None):
        raise ValueError("check= is an input and reference= what its outputs are compared with: give both")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it is an absolute difference, 0 or above")
    weights = weights_of(source, model)
    devices = None if device is None else devices_of(model, device)
    chosen = _chosen(rules, match, plan)
    decided, allowed = _decided(model, weights, chosen, adapt, plan)
    allow = both(allow, allowed)
    said = (*weights.notes, *unused(decided, weights, allow), *idle(decided, adapt))
    report = LoadReport(weights.title, decided, notes=said, allowed=texts_of(allow))
    _check(report, weights, allow, require, chosen)
    if freeze and weights.frozen and any(move.source != move.target for move in decided.moves):
        raise LoadError(
            "freeze=True goes by names, and these were loaded under others",
            hint="leave freeze=True off, and tk.freeze(model, ...) by the names that the model has",
        )
    if freeze and len(weights.parts) > 1:
        raise LoadError(
            "freeze=True freezes as one source was, and there are several",
            hint="leave freeze=True off, and tk.freeze(model, ...) by the names that the model has",
        )
    following = None if optimizer is None else plan_following(model, optimizer, decided, weights)
    expected = None if check is None else reference_outputs(reference, check, weights.title)
    origins = _origins(decided, weights)
    parents = [parent_of(part.checkpoint) for part in weights.parts if part.checkpoint is not None]
    fresh, made = fresh_values(model, decided, weights, devices or {})
    inner = unwrapped(model)
    views = apply_plan(inner, decided, weights.tensors, weights.extra, devices=devices, assign=assign, fresh=fresh)
    remember(model, origins, parents)
    if optimizer is not None and following is not None:
        follow(optimizer, following)
        made = (*made, *following.notes)
    notes = (*said, *licences_differ(parents), *views, *made, *freeze_as_saved(model, decided, weights, freeze))
    checked = None if check is None else compared(model, check, expected, tolerance)
    return replace(report, applied=True, notes=notes, checked=checked)


def _chosen(rules: Rules, match: str | Rule | None, plan: PlanFile) -> list[Rule]:
    """The rules that are asked; none where a file has the plan."""
    if plan is None:
        return rules_of(rules, match)
    if rules is not None or match is not None:
        raise ValueError("plan= says which name goes to which: leave rules= and match= out")
    return []


def _decided(
    model: nn.Module, weights: Weights, rules: list[Rule], adapt: Adapt, plan: PlanFile
) -> tuple[LoadPlan, list[str]]:
    """The plan, and what the file that it is read from allows."""
    if plan is None:
        return planned(model, weights, rules, adapt), []
    own: dict[str, Adapter] = {}
    if isinstance(adapt, Mapping):
        adapters = [make_part(ADAPTERS, adapter, "adapter") for adapter in adapt.values()]
        own = {adapter.name: adapter for adapter in adapters if adapter.name not in ADAPTERS}
    target, tied = targets_of(model)
    return read_plan(plan, target, weights.specs, tied, own)


def _check(report: LoadReport, weights: Weights, allow: Any, require: Require, rules: list[Rule]) -> None:
    """All that must hold before anything is touched."""
    try:
        report.check(allow, require)
    except IncompatibleCheckpointError as error:
        error.hint = advice(report, weights.specs, rules, error.hint)
        raise
    check_tied(report, weights)
    check_casts(report, weights)


def _origins(plan: LoadPlan, weights: Weights) -> dict[str, Origin]:
    """Where each tensor will come from. What is combined gets a digest in any case, for nothing else tells it apart."""
    combined = len(weights.parts) > 1 or bool(weights.parts[0].path)
    found = {}
    for move in plan.moves:
        part, name = weights.part_of(move.source)
        if name in part.extra or not (combined or part.checkpoint is not None) or (move.adapter and not move.taken):
            continue
        digest = part.known_digest(name)
        if combined and not digest:
            digest = digest_tensor(value_of(part.tensors[name]))
        file = part.title if part.checkpoint is None else name_of(part.checkpoint)
        found[move.target] = Origin(file, part.prefix + name, digest, move.adapter)
    return found
