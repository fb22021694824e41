"""The state of an optimizer, which goes to the new model by the names of its parameters, as the weights do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..core import tree as trees
from ..core.checkpoint import Checkpoint
from ..core.live import named_buffers, named_parameters, spec_of, tied_names, unwrapped
from ..core.plan import LoadPlan, Move
from ..core.table import shorten
from ..core.tensors import LazyTensor, TensorSpec
from ..errors import LoadError, PartialLoadError
from ..rules.prefixes import unwrap
from .sourcing import Part, Weights, joined

State = Mapping[str, Any]

# What modules of torch call their buffers: a plain state dict does not tell them from parameters.
_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class Following:
    """What an optimizer is going to have, found before anything is changed.

    Attributes:
        states: by the identity of a live parameter, its state.
        notes: what to say of it.
        applied: names of the model that are loaded before.
    """

    states: Mapping[int, State]
    notes: tuple[str, ...]
    applied: tuple[str, ...]


def plan_following(model: nn.Module, optimizer: Any, plan: LoadPlan, weights: Weights) -> Following:
    """Find for each parameter of a live optimizer what the optimizer in the source kept for it.

    What is copied takes it along; so does what an adapter makes of whole elements, with zeros for what is new. What an
    adapter computes anew, and what comes from nowhere, starts without.

    Raises:
        LoadError: there is no optimizer in the source, it is not clear whose state is whose, or it is of another kind.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in named_parameters(unwrapped(model)):
        names.setdefault(id(parameter), []).append(name)
    _check_live(optimizer, names)
    buffers = {name for name, _ in named_buffers(unwrapped(model))}
    buffers = {move.source for move in plan.moves if move.target in buffers}
    saved = {name: state for part in weights.parts for name, state in _saved(part, buffers).items()}
    _check_kind(optimizer, saved, weights.title)
    first = tied_names(weights.tensors)
    moves = {move.target: move for move in plan.moves}
    states: dict[int, State] = {}
    said: dict[str, list[str]] = {"kept": [], "adapted": [], "fresh": []}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            mine = names.get(id(parameter), [])
            move = next((moves[name] for name in mine if name in moves), None)
            state = None if move is None else saved.get(first.get(move.source, move.source), saved.get(move.source))
            if move is not None and state is not None:
                state = _fitted(state, move, plan, spec_of(weights.tensors[move.source]))
            if move is not None and state is not None:
                states[id(parameter)] = state
            if mine:
                what = "fresh" if state is None else "adapted" if move is not None and move.adapter else "kept"
                said[what].append(mine[0])
    texts = (
        ("kept", "the optimizer goes on with the state of {} parameters"),
        ("adapted", "the state of {} parameters was adapted as they were, with zeros for what is new"),
        ("fresh", "{} parameters start without a state in the optimizer"),
    )
    notes = tuple(f"{text.format(len(said[key]))}: {shorten(said[key], 4)}" for key, text in texts if said[key])
    return Following(states, notes, tuple(moves))


def follow(optimizer: Any, following: Following) -> None:
    """Give a live optimizer the states that were found; its groups and their options stay as they are."""
    document = optimizer.state_dict()
    keys = [key for group in document["param_groups"] for key in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    document["state"] = {
        key: dict(state)
        for key, parameter in zip(keys, parameters, strict=True)
        if (state := following.states.get(id(parameter))) is not None
    }
    try:
        optimizer.load_state_dict(document)
    except Exception as error:
        raise PartialLoadError(
            f"the weights are loaded, and the optimizer refuses its state: {type(error).__name__}: {error}",
            applied=following.applied,
            hint="make the optimizer anew before going on",
        ) from error


def _check_live(optimizer: Any, names: Mapping[int, list[str]]) -> None:
    if not hasattr(optimizer, "param_groups") or not hasattr(optimizer, "load_state_dict"):
        raise LoadError(f"optimizer= is a {type(optimizer).__name__}, which is no optimizer", hint="pass the optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [place for place, parameter in enumerate(parameters) if id(parameter) not in names]
    empty = [names[id(parameter)][0] for parameter in parameters if parameter.is_meta and id(parameter) in names]
    if strangers:
        raise LoadError(
            f"{len(strangers)} of {len(parameters)} parameters of the optimizer are not in the model",
            hint="make the optimizer of the parameters that the model has now",
        )
    if empty:
        raise LoadError(
            f"the optimizer holds {shorten(empty, 3)} on the meta device, which loading replaces",
            hint="load the weights first, make the optimizer, and then load again with optimizer=",
        )


def _fitted(state: State, move: Move, plan: LoadPlan, source: TensorSpec) -> State | None:
    """A state made to fit as the parameter was; None where the adapter computes values anew."""
    adapter = plan.adapters.get(move.target)
    if adapter is None:
        return state
    fit = adapter.fit(move.spec, source)
    if fit is None or not fit.selects or not move.taken:
        return None
    out = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and tuple(value.shape) == source.shape and source.shape:
            value = adapter.apply(value, value.new_zeros(move.spec.shape))  # noqa: PLW2901
        elif isinstance(value, torch.Tensor) and value.numel() > 1:  # sums over rows, which are other rows now
            return None
        out[key] = value
    return out


# What is in the source


def _saved(part: Part, buffers: set[str]) -> dict[str, State]:
    """The states in one source by the names of the plan; none where it is no file.

    Args:
        part: the source.
        buffers: names of the plan that go to buffers of the model.
    """
    ckpt = part.checkpoint
    if ckpt is None:
        return {}
    lead = part.prefix.removeprefix(f"{ckpt.model_key}." if ckpt.model_key else "")
    if ckpt.optimizers:
        named: Mapping[str, Any] = _the_one(list(ckpt.optimizers.values()), part.title)
    else:
        found = list(_optimizers_in(ckpt.tree))
        if not found:
            return {}
        document = _the_one(found, part.title)
        known = {lead + name for name in part.tensors if joined(part.path, name) in buffers}
        names = _names_of(ckpt, document, known)
        named = {names[key]: state for key, state in document["state"].items() if key in names}
        for name, state in named.items():
            _check_shapes(name, state, ckpt)
    own = {name.removeprefix(lead): state for name, state in named.items() if name.startswith(lead)}
    return {joined(part.path, name): _loaded(state) for name, state in own.items() if name in part.tensors}


def _the_one(found: list[Any], title: str) -> Any:
    if len(found) > 1:
        raise LoadError(
            f"{title} has the states of {len(found)} optimizers, and nothing says which one is meant",
            hint="resume the run that saved them, or save a file with the one that is meant",
        )
    return found[0]


def _optimizers_in(tree: Any) -> Iterator[dict[str, Any]]:
    """Every optimizer's state dict in a saved object: at its top, one below, or in lists there."""
    tops = [tree, *(tree.values() if isinstance(tree, dict) else ())]
    for node in tops:
        for one in node if isinstance(node, (list, tuple)) else (node,):
            inner = one.state if isinstance(one, trees.Record) and not one.is_module else one
            if isinstance(inner, dict) and {"state", "param_groups"} <= inner.keys():
                yield inner


def _loaded(state: Any) -> State:
    """A state with tensors of its own."""
    if not isinstance(state, Mapping):
        return {}
    return {str(key): trees.rebuild(value, _own) for key, value in state.items()}


def _own(tensor: Any) -> torch.Tensor:
    value: torch.Tensor = tensor.load() if isinstance(tensor, LazyTensor) else tensor
    return value.detach().clone()


def _names_of(ckpt: Checkpoint, document: Mapping[str, Any], buffers: set[str]) -> dict[Any, str]:
    """Key of a state in torch's state dict of an optimizer -> the name of its parameter in the saved model.

    torch counts the parameters. They have names where the optimizer was made of named ones; else, with a single group,
    they are the parameters of the saved model in their order, if there are as many and all shapes agree.
    """
    groups = document["param_groups"]
    keys = [key for group in groups for key in group["params"]]
    if all("param_names" in group for group in groups):
        bare = {unwrap(name): name for name in ckpt.model}
        given = [str(name) for group in groups for name in group["param_names"]]
        return {key: bare.get(unwrap(name), name) for key, name in zip(keys, given, strict=True)}
    if len(groups) > 1:
        raise LoadError(
            f"the optimizer in {ckpt.file} has {len(groups)} groups of numbered parameters, and nothing says which "
            "parameter has which number",
            hint="save runs with tk.Run, or make the optimizer of model.named_parameters(): both keep names",
        )
    candidates = _in_order(ckpt.model.tensors, buffers)
    names = next((names for names in candidates if len(names) == len(keys)), None)
    if names is None:
        raise LoadError(
            f"the optimizer in {ckpt.file} has {len(keys)} parameters and the model in it {len(candidates[0])}, so "
            "nothing says which is which",
            hint="load without optimizer=; tk.Run saves states by name",
        )
    return dict(zip(keys, names, strict=True))


def _in_order(tensors: Mapping[str, LazyTensor], buffers: set[str]) -> list[list[str]]:
    """The names of what may be the parameters of a saved model, each tensor once; then those that were trained."""
    tied = tied_names(dict(tensors))
    own = {name: tensor for name, tensor in tensors.items() if name not in tied}
    if any(tensor.kind == "parameter" for tensor in own.values()):
        all_of_them = [name for name, tensor in own.items() if tensor.kind == "parameter"]
        return [all_of_them, [name for name in all_of_them if own[name].requires_grad]]
    floats = [name for name, tensor in own.items() if tensor.dtype.is_floating_point or tensor.dtype.is_complex]
    return [[name for name in floats if name not in buffers and name.rpartition(".")[2] not in _BUFFERS]]


def _check_shapes(name: str, state: Any, ckpt: Checkpoint) -> None:
    """What an optimizer keeps has the shape of the parameter, or 1 in a dimension over which it keeps one value."""
    tensor = ckpt.model.tensors.get(name)
    if tensor is None or not isinstance(state, Mapping):
        return
    for key, value in state.items():
        shape = getattr(value, "shape", None)
        if shape is None or not len(shape):
            continue
        alike = len(shape) == tensor.ndim and all(a in (1, b) for a, b in zip(shape, tensor.shape, strict=True))
        if not alike:
            raise LoadError(
                f"{key} in the optimizer of {ckpt.file} has shape {list(shape)}, and {name!r}, to which it "
                f"should belong, {list(tensor.shape)}",
                hint="the optimizer counts its parameters in another order: load without optimizer=",
            )


# Whether it is of the same kind


def _check_kind(optimizer: Any, saved: Mapping[str, State], title: str) -> None:
    """The live optimizer must find in a state what it looks for.

    Raises:
        LoadError: there are no states, or they lack something.
    """
    states = [state for state in saved.values() if state]
    if not states:
        raise LoadError(
            f"{title} has no state of an optimizer",
            hint="a training checkpoint or a run has; load without optimizer= to start with a fresh one",
        )
    lacking = _keys_of(optimizer) - set().union(*states)
    if lacking:
        raise LoadError(
            f"the states in {title} are of another kind of optimizer: a {type(optimizer).__name__} needs "
            f"{', '.join(sorted(lacking))}, and there are {', '.join(sorted(set().union(*states)))}",
            hint="make the optimizer that was saved, with its options, or load without optimizer=",
        )


def _keys_of(optimizer: Any) -> set[str]:
    """What an optimizer keeps for a parameter: seen in its state, or on one of its kind that makes one step."""
    for state in optimizer.state.values():
        if isinstance(state, dict) and state:
            return {key for key, value in state.items() if value is not None}
    kind = type(optimizer)
    options = {**optimizer.defaults, **(optimizer.param_groups[0] if optimizer.param_groups else {})}
    parameter = nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.zeros(1, 1)
    try:
        taken = inspect.signature(kind.__init__).parameters
        one = kind([parameter], **{key: value for key, value in options.items() if key in taken and key != "params"})
        one.step()
        return {key for key, value in one.state[parameter].items() if value is not None}
    except Exception:  # the code of others, which may need a closure or more
        return set()
