"""Dropout: other probabilities where there is dropout, and dropout where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from ..core.live import named_modules
from ..core.names import Selector, fold, is_under
from ..core.operations import Operation
from ..core.table import shorten
from ..errors import SelectorError, SurgeryError
from ..freezing import NORMS, blocks_of, is_held
from .describing import CONTAINERS, torch_class
from .editing import insert
from .layers import Change, child_site, head_of, owners
from .trial import calls, carried_out, target_of, undone_on_failure

_LAYERS = (nn.modules.dropout._DropoutNd,)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign),
)
_BY_KIND: tuple[tuple[tuple[type[nn.Module], ...], type[nn.Module]], ...] = (
    ((nn.SELU,), nn.AlphaDropout),
    ((nn.Conv1d, nn.ConvTranspose1d), nn.Dropout1d),
    ((nn.Conv2d, nn.ConvTranspose2d), nn.Dropout2d),
    ((nn.Conv3d, nn.ConvTranspose3d), nn.Dropout3d),
)


# Where there is dropout


def set_dropout(model: nn.Module, p: float, selector: Any = "*") -> Change:
    """Set the probability of every dropout in force: dropout layers, attention, and between layers of an RNN.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))
    >>> print(set_dropout(model, 0.5))
    set_dropout 2: p=0.1 -> p=0.5

    What is frozen keeps its own, and the note says so: it is held in eval mode. Dropout that a forward applies by
    function call is seen only where it takes its probability from one of these layers.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        p: the probability, from 0 to below 1.
        selector: what `tk.Selector` takes; the dropout of the whole model by default.

    Raises:
        SelectorError: the selector chooses no dropout, or nothing but frozen dropout.
        SurgeryError: the probability is none.
    """
    model = target_of(model)
    p = probability(p)
    chosen = _chosen(model, selector)
    frozen = [path for path, module in chosen.items() if _is_frozen(model, path, module)]
    free = {path: module for path, module in chosen.items() if path not in frozen}
    note = f"{_folded(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen: p stays as it was"
    if not free:
        raise SelectorError(f"all that {str(Selector.of(selector))!r} selects is frozen", hint="tk.unfreeze it first")
    return _put(model, free, p, note if frozen else "")


def set_at(model: nn.Module, p: Any, paths: list[str]) -> Change:
    """Set the probability of the dropout at some paths.

    Raises:
        SurgeryError: there is none at one of them.
    """
    model, found = target_of(model), {}
    for path in paths:
        found[path] = child_site(model, path).layer if path else model
        if _attribute(found[path]) is None:
            raise SurgeryError(f"{path!r} is a {type(found[path]).__name__}, which has no dropout")
    return _put(model, found, probability(p), "")


def _put(model: nn.Module, modules: dict[str, nn.Module], p: float, note: str) -> Change:
    before = ", ".join(dict.fromkeys(f"p={_p_of(module):g}" for module in modules.values()))
    name, after = _folded(modules), f"p={p:g}"
    if before == after and all(_p_of(module) == p for module in modules.values()):
        return Change("set_dropout", name, before, after, note or "it is so already")

    def change() -> None:
        for module in modules.values():
            setattr(module, str(_attribute(module)), p)

    carried_out(model, Operation("set_dropout", "", {"p": p, "modules": list(modules)}), change)
    return Change("set_dropout", name, before, after, note)


def probability(p: Any) -> float:
    """A probability of dropout.

    Raises:
        SurgeryError: it is none, or 1, which would leave nothing.
    """
    number = isinstance(p, (int, float)) and not isinstance(p, bool)
    if not number or not 0 <= p < 1:
        raise SurgeryError(
            f"the probability of dropout is from 0 to below 1, not {p!r}", hint="the usual are 0.1 to 0.5"
        )
    return float(p)


def _chosen(model: nn.Module, selection: Any) -> dict[str, nn.Module]:
    """The dropout that a selector chooses, by its first path; several paths may name one."""
    modules, blocks = list(named_modules(model)), blocks_of(model)
    selector = Selector.of(selection)
    names = [path for path, _ in modules if path]
    first: dict[int, str] = {}
    found: dict[str, nn.Module] = {}
    hit: set[int] = set()
    for path, module in modules:
        if _attribute(module) is not None:
            found.setdefault(first.setdefault(id(module), path), module)
            if selector.matches(path, blocks):
                hit.add(id(module))
    if not found:
        raise SelectorError("the model has no dropout", hint="tk.surgery.insert_dropout(model, p) puts some in")
    if hit:
        selector.check(names or [""], "selector", "the model", blocks)
        return {path: module for path, module in found.items() if id(module) in hit}
    raise SelectorError(f"{str(selector)!r} selects no dropout", hint=f"there is {shorten(_folds(found), 3)}")


def _attribute(module: nn.Module) -> str | None:
    """Under which name a module keeps the probability of a dropout that is in force; None where there is none."""
    if isinstance(module, _LAYERS):
        return "p"
    layered = isinstance(module, nn.RNNBase) and module.num_layers > 1
    return "dropout" if layered or isinstance(module, nn.MultiheadAttention) else None


def _p_of(module: nn.Module) -> float:
    return float(getattr(module, str(_attribute(module))))


def _is_frozen(model: nn.Module, path: str, module: nn.Module) -> bool:
    """Whether it is held in eval mode, or all parameters in it, or else nearest around it, are frozen."""
    if is_held(module):
        return True
    modules = dict(named_modules(model))
    while not (flags := [parameter.requires_grad for parameter in modules[path].parameters()]) and path:
        path = path.rpartition(".")[0]
    return bool(flags) and not any(flags)


def _folds(names: Any) -> list[str]:
    return [name or "(the model)" for name, _ in fold(names)]


def _folded(names: Any) -> str:
    return shorten(_folds(names), 3)


# Where there is none


@dataclass(frozen=True)
class _Place:
    """Where a dropout goes: next to a module, with what name, and of which class."""

    path: str
    behind: bool
    kind: type[nn.Module]


def insert_dropout(model: nn.Module, p: float, after: Any = None, *, example: Any = None) -> Change:
    """Put dropout in: before the head and behind the activations of hidden layers, where none is; or where you say.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> print(insert_dropout(model, 0.5))
    insert_dropout 1_dropout, 4_dropout: nothing -> Dropout2d(p=0.5, inplace=False), Dropout(p=0.5, inplace=False)
    >>> list(model.state_dict())
    ['0.weight', '0.bias', '3.weight', '3.bias', '5.weight', '5.bias']

    Behind convolutions whole channels are dropped, behind SELU it is `nn.AlphaDropout`. Parameters keep their names:
    the new modules have names of their own. Only a module with parameters outside any `nn.Sequential` gets one around
    it and other names by that; the note says so, and `history` keeps it. What is frozen gets none unless it is named.

    Args:
        model: the model; DataParallel and torch.compile are seen through.
        p: the probability, from 0 to below 1.
        after: None, or what `tk.Selector` takes: the modules to put it behind, not those inside them.
        example: an input of the model, by which the order of its layers is told, and which it is run on before and
            after. None takes the order of registration.

    Raises:
        SelectorError: `after` chooses nothing.
        SurgeryError: there is no such place, or the model fails with it. The model is untouched.
    """
    model = target_of(model)
    p = probability(p)
    line = _line(model, example)
    places, notes = _by_default(model, line, head_of(model, example)) if after is None else _named(model, line, after)
    if not places:
        return Change("insert_dropout", "(nothing)", "as it is", "as it is", "; ".join(notes))
    made: list[Change] = []
    with undone_on_failure(model):
        for place in places:
            site = child_site(model, place.path)
            parent, renames = site.parent, any(True for _ in site.layer.parameters())
            made.append(_inserted(model, place, p, example if place is places[-1] else None))
            notes += [made[-1].note] if made[-1].note and (renames or is_held(parent)) else []
    what = ", ".join(dict.fromkeys(change.after for change in made))
    paths = _folded(change.name for change in made)
    return Change("insert_dropout", paths, "nothing", what, "; ".join(notes), made[-1].check)


def _inserted(model: nn.Module, place: _Place, p: float, example: Any) -> Change:
    site = child_site(model, place.path)
    in_list = _is_sequence(site.parent)
    around = site.parent if in_list else site.layer if _is_sequence(site.layer) else nn.Sequential()
    name = f"{site.key}_dropout" if in_list and place.behind else "dropout"
    while name in around._modules or hasattr(around, name):
        name += "_"
    where: dict[str, Any] = {"after" if place.behind else "before": place.path}
    return insert(model, place.kind(p), name=name, example=example, **where)


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


@dataclass(frozen=True)
class _Part:
    """One thing that computes: a module without modules in it, or an owner of parameters.

    Attributes:
        once: whether it is known to be called once.
    """

    path: str
    module: nn.Module
    once: bool

    @property
    def learns(self) -> bool:
        """Whether it has weights, other than those of normalisation and activations."""
        return any(True for _ in self.module.parameters()) and not isinstance(self.module, (*NORMS, *_ACTIVATIONS))


def _line(model: nn.Module, example: Any) -> list[_Part]:
    """What computes, in the order of calls or of registration."""
    modules, own = dict(named_modules(model)), set(owners(model))
    parts = {path: one for path, one in modules.items() if path and (path in own or not any(one.children()))}
    if example is None:
        return [
            _Part(path, one, _is_sequence(modules[path.rpartition(".")[0]]) and len(_paths(modules, one)) == 1)
            for path, one in parts.items()
        ]
    called = sorted(calls(model, example).values(), key=lambda call: call.started)
    return [_Part(call.path, parts[call.path], call.times == 1) for call in called if call.path in parts]


def _paths(modules: dict[str, nn.Module], module: nn.Module) -> list[str]:
    return [path for path, one in modules.items() if one is module]


def _by_default(model: nn.Module, line: list[_Part], head: str) -> tuple[list[_Place], list[str]]:
    at = next((number for number, part in enumerate(line) if part.path == head), 0)
    ends = [number for number, part in enumerate(line[: at + 1]) if part.learns]
    if len(ends) < 2 or ends[-1] != at:
        raise SurgeryError(
            f"before {head!r}, taken for the head, is no hidden layer",
            hint="pass example=, as registration need not be the order of the forward; or after=",
        )
    places, notes = [], []
    for start, end in pairwise(ends):
        between = line[start + 1 : end]
        if any(isinstance(part.module, _LAYERS) for part in between):
            continue
        place = _before_head(between, line[at]) if end == at else _behind_activation(line[start], between)
        reason = "" if place is None else _unfit(model, place, frozen=end != at)
        if place is not None and reason:
            notes.append(f"none at {place.path!r}: {reason}")
        elif place is not None:
            places.append(place)
    return places, notes or ([] if places else ["there is dropout everywhere already: set_dropout sets it"])


def _behind_activation(layer: _Part, between: list[_Part]) -> _Place | None:
    """Behind the last activation between two layers that learn."""
    found = [part for part in between if isinstance(part.module, _ACTIVATIONS)]
    if not found:
        return None
    kind = _kind(found[-1].module, layer.module) if found[-1].once else nn.Dropout
    return _Place(found[-1].path, behind=True, kind=kind)


def _before_head(between: list[_Part], head: _Part) -> _Place:
    """Before the head; behind what is before it, where that keeps the names of its parameters."""
    kind = _kind(*(part.module for part in between if isinstance(part.module, nn.SELU)), head.module)
    above = head.path.rpartition(".")[0]
    bare = [part for part in between if not any(True for _ in part.module.parameters())]
    if bare and bare[-1] is between[-1] and bare[-1].once and bare[-1].path.rpartition(".")[0] == above:
        return _Place(bare[-1].path, behind=True, kind=kind)
    return _Place(head.path, behind=False, kind=kind)


def _kind(*modules: nn.Module) -> type[nn.Module]:
    """The dropout that goes with the first of some layers that has one of its own."""
    return next((kind for one in modules for classes, kind in _BY_KIND if isinstance(one, classes)), nn.Dropout)


def _unfit(model: nn.Module, place: _Place, *, frozen: bool) -> str:
    """Why dropout should not go there; empty where it may."""
    site = child_site(model, place.path)
    parent = torch_class(type(site.parent))
    if isinstance(site.parent, nn.ModuleList):
        return "it is in an nn.ModuleList, whose members have numbers"
    if parent is not None and parent not in CONTAINERS and type(site.parent).forward is parent.forward:
        return f"it is a part of a {parent.__name__}, which has dropout of its own"
    if not frozen:
        return ""
    if any(True for _ in site.layer.parameters()) and not _is_sequence(site.parent):
        return "its parameters would get other names"
    return "it is frozen" if _is_frozen(model, place.path, site.layer) else ""


def _named(model: nn.Module, line: list[_Part], after: Any) -> tuple[list[_Place], list[str]]:
    modules, blocks = dict(named_modules(model)), blocks_of(model)
    selector = Selector.of(after)
    selector.check([path for path in modules if path], "after", "the model", blocks)
    hits = [path for path in modules if path and selector.matches(path, blocks)]
    places, seen = [], set[tuple[int, str]]()
    for path in (path for path in hits if not any(path != other and is_under(path, other) for other in hits)):
        site = child_site(model, path)
        place = _Place(path, behind=True, kind=_kind(*_end_of(line, path)))
        if reason := _unfit(model, place, frozen=False):
            raise SurgeryError(f"no dropout can go behind {path!r}: {reason}", hint="tk.surgery.insert it by hand")
        if (id(site.parent), site.key) not in seen:  # a shared block has several paths
            places.append(place)
        seen.add((id(site.parent), site.key))
    return places, []


def _end_of(line: list[_Part], path: str) -> Iterator[nn.Module]:
    """What a module ends with: its last part, and those before it back to one that learns."""
    ends = [number for number, part in enumerate(line) if is_under(part.path, path)]
    for part in reversed(line[: ends[-1] + 1] if ends else []):
        if not part.once:
            return
        yield part.module
        if part.learns:
            return
