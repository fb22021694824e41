"""What loading will do, decided before a byte is read: which tensor of the source goes to which of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from .names import Selector
from .tensors import TensorSpec

Specs = Mapping[str, TensorSpec]


class Pair(NamedTuple):
    """A name of the source that a rule found, and how sure it is, from 0 to 1."""

    source: str
    confidence: float


class Rule(Protocol):
    """Pairs names of a model with names of a source.

    `match` gets the names that no earlier rule has paired, and the pairs that earlier rules made, and returns
    target -> source, or target -> Pair where it is less than sure. It may look at names and specs only. A rule that
    cannot decide raises AmbiguousMatchError.
    """

    @property
    def name(self) -> str: ...

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> Mapping[str, str | Pair]: ...


@dataclass(frozen=True)
class Fit:
    """What an adapter makes of a tensor, or why it cannot.

    Attributes:
        says: what it does, for the report.
        refused: why it cannot be done; empty where it can.
        taken: elements of the model that come from the source; all if None.
        keeps: whether some of the model's own values stay, so that there must be some.
        selects: whether each element is one of the source, one of the model, or zero: then what an optimizer keeps for
            each element can go the same way.
    """

    says: str = ""
    refused: str = ""
    taken: int | None = None
    keeps: bool = False
    selects: bool = True


class Adapter(Protocol):
    """Makes a tensor of another shape fit.

    `fit` looks at specs only and says what will be done, or None where nothing has to be. `apply` does it on values: it
    gets those of the source and what the model has, and returns a tensor of the model's shape. `options` are plain
    values that make the same adapter again, for a plan in a file.
    """

    @property
    def name(self) -> str: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit | None: ...

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor: ...


Adapting = Sequence[tuple[Selector, Adapter]]
"""Which adapter is for which names of the model; the first that chooses a name counts."""


class Match(NamedTuple):
    """A pair that was found: a name of the source, the rule that found it, and how sure it was."""

    source: str
    rule: str
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor that fits: from a name in the source to a name in the model, found by a rule, more or less surely.

    `adapter` is the name of what makes it fit, empty where it fits as it is; `says` what the adapter does, and `taken`
    how many elements of the model come from the source.
    """

    source: str
    target: str
    rule: str
    spec: TensorSpec
    cast_from: str = ""
    confidence: float = 1.0
    adapter: str = ""
    says: str = ""
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A name on both sides whose tensors do not fit."""

    source: str
    target: str
    rule: str
    reason: str
    confidence: float = 1.0


@dataclass(frozen=True)
class LoadPlan:
    """The whole decision. Nothing was read and nothing was changed to make it.

    Attributes:
        moves: what will be copied or adapted.
        mismatched: paired, but of another shape or an incompatible dtype.
        missing: names of the model that the source does not have.
        unexpected: names of the source that the model does not have.
        tied: name -> the name it shares memory with, in the model.
        target: dtype and shape of everything in the model.
        adapters: name of the model -> what makes its tensor fit.
    """

    moves: tuple[Move, ...]
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    target: Specs
    adapters: Mapping[str, Adapter] = field(default_factory=dict)


def make_plan(
    target: Specs,
    source: Specs,
    rules: Iterable[Rule],
    tied: Mapping[str, str] | None = None,
    adapting: Adapting = (),
) -> LoadPlan:
    """Apply the rules one after another, each to what the earlier ones left over.

    Args:
        target: what the model has.
        source: what the checkpoint has.
        rules: in order of preference.
        tied: names of the model that share memory with an earlier name: loading one of them loads all.
        adapting: what makes tensors of another shape fit.
    """
    return plan_of(target, source, paired_by(target, source, rules), tied or {}, adapting)


def paired_by(target: Specs, source: Specs, rules: Iterable[Rule]) -> dict[str, Match]:
    """For each name of the model that a rule has found something for, what it found."""
    paired: dict[str, Match] = {}
    used: set[str] = set()
    for rule in rules:
        left = {name: spec for name, spec in target.items() if name not in paired}
        free = {name: spec for name, spec in source.items() if name not in used}
        for to, found in rule.match(left, free, {name: match.source for name, match in paired.items()}).items():
            pair = Pair(found, 1.0) if isinstance(found, str) else found
            paired[to] = Match(pair.source, rule.name, pair.confidence)
            used.add(pair.source)
    return paired


def plan_of(
    target: Specs, source: Specs, paired: Mapping[str, Match], tied: Mapping[str, str], adapting: Adapting = ()
) -> LoadPlan:
    """What becomes of pairs that were found: which fit, which are made to, and what is left over."""
    moves, mismatched = [], []
    adapters: dict[str, Adapter] = {}
    chosen = _adapters(target, tied, adapting)
    for name, match in paired.items():
        to, origin = target[name], source[match.source]
        adapter = chosen.get(tied.get(name, name))
        fit = None if adapter is None else adapter.fit(to, origin)
        if adapter is None or fit is None:
            reason = _shape_reason(to, origin)
        else:
            reason = f"{adapter.name}: {fit.refused}" if fit.refused else ""
        reason = reason or _dtype_reason(to, origin)
        if reason:
            mismatched.append(Mismatch(match.source, name, match.rule, reason, match.confidence))
            continue
        cast = str(origin.dtype).removeprefix("torch.") if origin.dtype != to.dtype else ""
        move = Move(match.source, name, match.rule, to, cast, match.confidence, taken=to.numel)
        if fit is not None and adapter is not None:
            adapters[name] = adapter
            taken = to.numel if fit.taken is None else fit.taken
            move = replace(move, adapter=adapter.name, says=fit.says, taken=taken)
        moves.append(move)
    order = {name: position for position, name in enumerate(target)}
    moves.sort(key=lambda move: order[move.target])
    reached = {tied.get(move.target, move.target) for move in moves}
    used = {match.source for match in paired.values()}
    missing = [name for name in target if name not in paired and tied.get(name, name) not in reached]
    unexpected = [name for name in source if name not in used]
    return LoadPlan(tuple(moves), tuple(mismatched), tuple(missing), tuple(unexpected), tied, target, adapters)


def _adapters(target: Specs, tied: Mapping[str, str], adapting: Adapting) -> dict[str, Adapter]:
    """First name of each tensor -> the adapter that one of its names is chosen for."""
    chosen: dict[str, Adapter] = {}
    for selector, adapter in adapting:
        for name in selector.choose(target):
            chosen.setdefault(tied.get(name, name), adapter)
    return chosen


def _shape_reason(target: TensorSpec, source: TensorSpec) -> str:
    if target.shape == source.shape:
        return ""
    return f"shape {list(source.shape)} in the source, {list(target.shape)} in the model"


def _dtype_reason(target: TensorSpec, source: TensorSpec) -> str:
    """Why a tensor does not fit, or nothing. Floats may be cast to other floats; integers only to wider ones."""
    if target.dtype == source.dtype or _rank(source.dtype) < _rank(target.dtype):
        return ""
    if source.dtype.is_floating_point and target.dtype.is_floating_point:
        return ""
    if source.dtype.is_complex and target.dtype.is_complex:
        return ""
    if _rank(source.dtype) == _rank(target.dtype) == 1 and torch.can_cast(source.dtype, target.dtype):
        low, high = torch.iinfo(source.dtype), torch.iinfo(target.dtype)
        if high.min <= low.min and low.max <= high.max:
            return ""
    return f"dtype {source.dtype} in the source cannot become {target.dtype}"


def _rank(dtype: torch.dtype) -> int:
    """Booleans fit into integers, integers into floats, floats into complex numbers."""
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 0 if dtype is torch.bool else 1


def not_allowed(names: Iterable[str], allow: Selector | None) -> list[str]:
    """The names that no selector of `allow` covers."""
    return [name for name in names if allow is None or not allow.matches(name)]
