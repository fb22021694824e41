"""Auditing: is what is frozen frozen, is what is trained trained, and has nothing moved that should stand still?"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.audit_report import AuditReport, Fingerprint, FrozenReport, Observation
from .core.checkpoint import SEVERITIES, Checkpoint
from .core.digests import digest_tensors
from .core.live import live_tensors, named_buffers, named_modules
from .core.names import Selector
from .core.snapshot import Snapshot
from .core.table import shorten
from .errors import FrozenChangedError, LoadError
from .freezing import DROPOUTS, NORMS, View, blocks_of, is_held
from .opening import open_checkpoint
from .running import Run


def audit(model: nn.Module, optimizer: Any = None) -> AuditReport:
    """Look for what is frozen and moves, what is trained and does not, and what is neither trained nor saved.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> _ = model.requires_grad_(False)
    >>> sorted(audit(model, torch.optim.SGD(model.parameters(), lr=0.1)).codes)
    ['frozen-in-optimizer', 'moving-statistics', 'nothing-trains']

    Args:
        model: as it is about to be trained, in train mode.
        optimizer: the one that trains it, if there is one, or a list of them.

    Returns:
        Findings with a code, the worst first. Nothing is changed.
    """
    view = View(model)
    optimizers = optimizer if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
    found = [*_modules(view), *_shared(view), *_stray(view), *_gradients(view, optimizers)]
    if optimizers:
        found += _optimizers(view, optimizers)
    sizes = {key: 0 if is_lazy(one) else one.numel() for key, one in view.parameters.items()}
    trainable = sum(sizes[key] for key, one in view.parameters.items() if one.requires_grad)
    if view.parameters and not trainable:
        found.append(Observation("nothing-trains", "warning", "no parameter requires gradients", hint="tk.unfreeze"))
    found.sort(key=lambda one: -SEVERITIES.index(one.severity))
    return AuditReport(tuple(found), trainable, sum(sizes.values()))


def _still(view: View) -> dict[int, str]:
    """Modules, by id with their path, that are frozen as a whole or lie in one that is."""
    owners = {
        key
        for key, below in view.below.items()
        if below and not any(view.parameters[parameter].requires_grad for parameter in below)
    }
    inside = view.inside(owners) | {key for key, module in view.modules.items() if is_held(module)}
    return {key: names[0] for key, names in view.module_names.items() if key in inside}


def _modules(view: View) -> Iterator[Observation]:
    """Modules in a frozen part that are not in eval mode, and held ones that are trained."""
    still = _still(view)
    moving = [path for key, path in still.items() if _tracks(view.modules[key]) and view.modules[key].training]
    dropping = [path for key, path in still.items() if _drops(view.modules[key]) and view.modules[key].training]
    trained = [
        view.module_names[key][0]
        for key, module in view.modules.items()
        if is_held(module)
        and any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None)
    ]
    if moving:
        message = "normalisation layers of a frozen part are in train mode: their running statistics move"
        yield Observation("moving-statistics", "danger", message, tuple(moving), "tk.freeze holds them in eval mode")
    if dropping:
        message = "dropout of a frozen part is in train mode"
        yield Observation("live-dropout", "info", message, tuple(dropping), "tk.freeze holds it in eval mode")
    renormed = [
        path for key, path in still.items() if getattr(view.modules[key], "max_norm", None) is not None
        and isinstance(view.modules[key], (nn.Embedding, nn.EmbeddingBag))
    ]  # fmt: skip
    if renormed:
        message = "a frozen embedding with max_norm is renormalised in every forward: its rows change"
        yield Observation(
            "renormalised", "danger", message, tuple(renormed), "renormalise once, and set max_norm = None"
        )
    if trained:
        message = "modules are held in eval mode, and parameters of theirs are trained"
        yield Observation("held-but-trained", "warning", message, tuple(trained), "tk.unfreeze them")


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, NORMS) and getattr(module, "running_mean", None) is not None


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, DROPOUTS) and bool(getattr(module, "dropout", 0))


def _shared(view: View) -> Iterator[Observation]:
    """One memory that is frozen here and trained there."""
    by_memory: dict[object, list[int]] = {}
    for key, parameter in view.parameters.items():
        if not is_lazy(parameter) and parameter.layout is torch.strided and parameter.device.type != "meta":
            by_memory.setdefault((parameter.device, parameter.untyped_storage().data_ptr()), []).append(key)
    half: list[str] = []
    for keys in by_memory.values():
        flags = {view.parameters[key].requires_grad for key in keys}
        if len(flags) == 2 and any(view.parameters[key].numel() for key in keys):
            half += view.first_names(keys)
    if half:
        message = "parameters share memory, and some of them are frozen and some are trained"
        yield Observation(
            "half-frozen", "danger", message, tuple(half), "freeze all of them, or give them memory of their own"
        )
    across = []
    still = _still(view)
    trained = {names[0] for key, names in view.module_names.items() if key not in still}
    for key, names in view.parameter_names.items():
        if len(names) > 1 and not view.parameters[key].requires_grad:
            owners = [name.rpartition(".")[0] for name in names]
            if any(owner in trained for owner in owners) and any(owner not in trained for owner in owners):
                across.append(names[0])
    if across:
        message = "tied parameters are frozen, and belong to a part that trains too"
        yield Observation("frozen-tie", "warning", message, tuple(across), "untie them to train one of the two")


def _stray(view: View) -> Iterator[Observation]:
    """Tensors and modules that hang on a module as plain attributes."""
    tensors: list[str] = []
    parameters: list[str] = []
    modules: list[str] = []
    known = set(view.modules) | set(view.parameters) | {id(one) for _, one in named_buffers(view.model)}
    for path, module in named_modules(view.model):
        for key, value in vars(module).items():
            if key in {"_parameters", "_buffers", "_modules"}:
                continue
            for one in _members(value):
                name = f"{path}.{key}" if path else key
                if id(one) in known or name in (*tensors, *parameters, *modules) or _computed(module, key):
                    continue
                kind = (
                    modules if isinstance(one, nn.Module) else parameters if isinstance(one, nn.Parameter) else tensors
                )
                kind.append(name)
    if tensors:
        message = "plain tensors are neither parameters nor buffers: they are not trained, not moved and not saved"
        yield Observation("plain-tensor", "warning", message, tuple(tensors), "register_buffer, or nn.Parameter")
    if parameters:
        message = "parameters stand in a plain list or dict: they are not trained, not moved and not saved"
        yield Observation("unregistered-parameter", "danger", message, tuple(parameters), "use nn.ParameterList")
    if modules:
        message = "modules stand in a plain list or dict: their parameters are not trained, not moved and not saved"
        yield Observation("unregistered-module", "danger", message, tuple(modules), "use nn.ModuleList")


def _computed(module: nn.Module, key: str) -> bool:
    """Whether an attribute is made anew before each forward, as old weight norm, spectral norm and pruning do."""
    return any(f"{key}_{part}" in module._parameters for part in ("g", "v", "orig"))


def _members(value: Any) -> Iterable[Any]:
    """Tensors and modules that an attribute is, or that stand in it."""
    listed = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else (value,)
    return [one for one in listed if isinstance(one, (torch.Tensor, nn.Module))]


def _gradients(view: View, optimizers: Sequence[Any]) -> Iterator[Observation]:
    """Gradients that were left on frozen parameters, which an optimizer would still apply."""
    stale = {
        key for key, parameter in view.parameters.items() if not parameter.requires_grad and parameter.grad is not None
    }
    if not stale:
        return
    groups = [group for one in optimizers for group in one.param_groups]
    held = {id(one) for group in groups for one in group["params"]}
    severity = "danger" if stale & held else "warning"
    message = "frozen parameters still have a gradient" + (", and an optimizer will apply it" if stale & held else "")
    yield Observation("stale-gradient", severity, message, view.first_names(stale), "set .grad to None; tk.freeze does")
    pulled = {id(one) for group in groups if group.get("weight_decay") for one in group["params"]} & stale
    if pulled:
        message = "weight decay pulls on frozen parameters, for they have a gradient"
        yield Observation(
            "decay-on-frozen", "danger", message, view.first_names(pulled), "set .grad to None; tk.freeze does"
        )


def _optimizers(view: View, optimizers: Sequence[Any]) -> Iterator[Observation]:
    """Parameters in groups where they should not be, or in none."""
    groups = [group for one in optimizers for group in one.param_groups]
    held = {id(one) for group in groups for one in group["params"]}
    frozen = {key for key, parameter in view.parameters.items() if not parameter.requires_grad}
    loose = view.parameters.keys() - frozen - held
    if frozen & held:
        message = "frozen parameters are in the optimizer"
        hint = "make it of tk.param_groups(model, lr=...), or pass it to tk.enter_phase"
        severity = (
            "danger" if any(hasattr(one, "_numel_cache") for one in optimizers) else "warning"
        )  # LBFGS moves them
        yield Observation("frozen-in-optimizer", severity, message, view.first_names(frozen & held), hint)
    if loose:
        message = "trainable parameters are in no group of the optimizer"
        yield Observation("in-no-group", "danger", message, view.first_names(loose), "add them, or tk.freeze them")
    strangers = sum(key not in view.parameters for key in held)
    if strangers:
        message = f"{strangers} tensors of the optimizer are not in the model: it will train what nobody uses"
        hint = "make the optimizer after surgery and after replacing parameters"
        yield Observation("not-in-model", "warning", message, hint=hint)
    idle = [
        str(group.get("name", number))
        for number, group in enumerate(groups)
        if group["params"] and float(group["lr"]) == 0
    ]
    if idle:
        message = "groups have the learning rate 0, so that only weight decay and statistics can move"
        yield Observation(
            "zero-rate", "warning", message, tuple(idle), "freeze what should not learn; a warm-up is fine"
        )


def fingerprint(model: nn.Module) -> Fingerprint:
    """The bits of every parameter and buffer now, to compare with later: `assert_frozen(model, since=fingerprint)`."""
    tensors = _plain_tensors(live_tensors(model))
    return Fingerprint(dict(zip(tensors, digest_tensors(list(tensors.values())), strict=True)))


def assert_frozen(model: nn.Module, since: Any, selection: Any = None) -> FrozenReport:
    """Make sure that what is frozen has not changed by a single bit, buffers included.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    >>> before = fingerprint(model)
    >>> print(assert_frozen(model, before, "*"))
    4 frozen parameters and 3 buffers are bit for bit what they were

    Args:
        model: as it is now.
        since: what it was: a `fingerprint`, a snapshot of a run, a Checkpoint such as `run.open(3)`, or a file that
            `tk.save` wrote.
        selection: what should have stood still; if None, parameters that do not require gradients, and the buffers of
            modules that are frozen as a whole.

    Raises:
        FrozenChangedError: something differs, or nothing is frozen; `.changed` names it.
        LoadError: `since` lacks a frozen parameter.
    """
    view = View(model)
    parameters, buffers = _frozen_names(view, selection)
    if not parameters and not buffers:
        raise FrozenChangedError(
            "nothing in the model is frozen", hint="name what should be: assert_frozen(m, since, '*')"
        )
    wanted = _plain_tensors(
        {name: one for name, one in live_tensors(model).items() if name in parameters or name in buffers}
    )
    before = _digests(since, wanted)
    lacking = sorted((parameters & wanted.keys()) - before.keys())
    if lacking:
        raise LoadError(f"what the model was has no {shorten(lacking, 3)}", hint="compare with the same model")
    now = dict(zip(wanted, digest_tensors(list(wanted.values())), strict=True))
    changed = tuple(name for name in wanted if name in before and before[name] != now[name])
    if changed:
        raise FrozenChangedError(
            f"{len(changed)} frozen tensors changed: {shorten(changed, 6)}",
            changed=changed,
            hint=_reason(view, changed),
        )
    same = [name for name in wanted if name in before]
    return FrozenReport(
        tuple(name for name in same if name in parameters),
        tuple(name for name in same if name in buffers),
        tuple(name for name in wanted if name not in before),
    )


def _plain_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one.detach() for name, one in tensors.items() if not is_lazy(one) and one.device.type != "meta"}


def _frozen_names(view: View, selection: Any) -> tuple[set[str], set[str]]:
    """Names of the parameters and buffers that stand still."""
    names = {name: key for key, names in view.parameter_names.items() for name in names}
    if selection is not None:
        view.chosen(Selector.of(selection))
        selector, blocks = Selector.of(selection), blocks_of(view.model)
        buffers = {name for name, _ in named_buffers(view.model) if selector.matches(name, blocks)}
        return {name for name in names if selector.matches(name, blocks)}, buffers
    still = set(_still(view).values())
    buffers = {name for name, _ in named_buffers(view.model) if name.rpartition(".")[0] in still}
    return {name for name, key in names.items() if not view.parameters[key].requires_grad}, buffers


def _digests(since: Any, wanted: Mapping[str, torch.Tensor]) -> Mapping[str, str]:
    """The digests of what the model was, of the names that are wanted."""
    if isinstance(since, Fingerprint):
        return since.digests
    if isinstance(since, Snapshot):
        if not since.path:
            raise LoadError("the snapshot does not say which run it is of", hint="pass run.open(snapshot)")
        stored = Run(since.path).digests(since.sequence)
        return {name.removeprefix("model/"): digest for name, digest in stored.items() if name.startswith("model/")}
    if isinstance(since, (str, os.PathLike)):
        since = open_checkpoint(since)
    if not isinstance(since, Checkpoint):
        raise LoadError(
            f"a model cannot be compared with a {type(since).__name__}",
            hint="pass tk.fingerprint(model), a snapshot of a run, a Checkpoint or the path of a saved model",
        )
    weights = since.model
    there = [name for name in wanted if name in weights]
    return dict(zip(there, digest_tensors([weights[name].load() for name in there]), strict=True))


def _reason(view: View, changed: Iterable[str]) -> str:
    """What probably moved it."""
    modules = dict(named_modules(view.model))
    owners = [modules.get(name.rpartition(".")[0]) for name in changed]
    if any(getattr(one, "max_norm", None) is not None for one in owners):
        return "an embedding with max_norm is renormalised in every forward: renormalise once, and set max_norm = None"
    if any(isinstance(one, NORMS) and one.training for one in owners):
        return "normalisation layers are in train mode: tk.freeze holds them in eval mode, tk.audit(model) lists them"
    if any(name in dict(named_buffers(view.model)) for name in changed):
        return "a module writes its buffers even in eval mode; no freezing can hold it, leave it out or change it"
    return "tk.audit(model, optimizer) lists gradients and weight decay on frozen parameters"
