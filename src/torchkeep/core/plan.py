"""What loading will do, decided before a byte is read: which tensor of the source goes to which of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor that fits: from a name in the source to a name in the model, found by a rule, more or less surely."""

    source: str
    target: str
    rule: str
    spec: TensorSpec
    cast_from: str = ""
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A name on both sides whose tensors do not fit."""

    source: str
    target: str
    rule: str
    reason: str


@dataclass(frozen=True)
class LoadPlan:
    """The whole decision. Nothing was read and nothing was changed to make it.

    Attributes:
        moves: what will be copied.
        mismatched: same name, but another shape or an incompatible dtype.
        missing: names of the model that the source does not have.
        unexpected: names of the source that the model does not have.
        tied: name -> the name it shares memory with, in the model.
        target: dtype and shape of everything in the model.
    """

    moves: tuple[Move, ...]
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    tied: Mapping[str, str]
    target: Specs


def make_plan(target: Specs, source: Specs, rules: Iterable[Rule], tied: Mapping[str, str] | None = None) -> LoadPlan:
    """Apply the rules one after another, each to what the earlier ones left over.

    Args:
        target: what the model has.
        source: what the checkpoint has.
        rules: in order of preference.
        tied: names of the model that share memory with an earlier name: loading one of them loads all.
    """
    tied = tied or {}
    paired: dict[str, tuple[Pair, str]] = {}
    used: set[str] = set()
    for rule in rules:
        left = {name: spec for name, spec in target.items() if name not in paired}
        free = {name: spec for name, spec in source.items() if name not in used}
        for to, found in rule.match(left, free, {name: pair.source for name, (pair, _) in paired.items()}).items():
            pair = Pair(found, 1.0) if isinstance(found, str) else found
            paired[to] = (pair, rule.name)
            used.add(pair.source)
    moves, mismatched = [], []
    for name, ((origin, confidence), rule_name) in paired.items():
        reason = _reason(target[name], source[origin])
        if reason:
            mismatched.append(Mismatch(origin, name, rule_name, reason))
        else:
            cast = (
                str(source[origin].dtype).removeprefix("torch.") if source[origin].dtype != target[name].dtype else ""
            )
            moves.append(Move(origin, name, rule_name, target[name], cast, confidence))
    order = {name: position for position, name in enumerate(target)}
    moves.sort(key=lambda move: order[move.target])
    reached = {tied.get(move.target, move.target) for move in moves}
    missing = [name for name in target if name not in paired and tied.get(name, name) not in reached]
    unexpected = [name for name in source if name not in used]
    return LoadPlan(tuple(moves), tuple(mismatched), tuple(missing), tuple(unexpected), tied, target)


def _reason(target: TensorSpec, source: TensorSpec) -> str:
    """Why a tensor does not fit, or nothing. Floats may be cast to other floats; integers only to wider ones."""
    if target.shape != source.shape:
        return f"shape {list(source.shape)} in the source, {list(target.shape)} in the model"
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
