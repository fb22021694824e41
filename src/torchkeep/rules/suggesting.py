"""What would have worked: rules for names that found no partner, and how many each would pair."""

from __future__ import annotations

import math
from collections.abc import Container

from ..core.plan import Rule, Specs
from ..errors import AmbiguousMatchError
from .prefixes import counted, written
from .structural import Structural
from .suffix import Suffix
from .weight_norm import WeightNorm

_MOST = 6000  # names of both sides together, beyond which an alignment takes longer than one waits for advice

_ALIKE = 4  # prefixes that pair equally many, as those of a student and its teacher do

Found = tuple[int, str]


def suggestions(target: Specs, source: Specs, known: Container[str] = ()) -> tuple[str, ...]:
    """Which rules would pair what is left over, each with how many of the names, the best first; never raises.

    Args:
        target: what the model has and nothing was found for.
        source: what the source has and nothing was done with.
        known: names of rules that were asked already.

    >>> from torchkeep.core.tensors import TensorSpec
    >>> import torch
    >>> spec = TensorSpec(torch.float32, (2,))
    >>> suggestions({"fc.weight": spec}, {"encoder.fc.weight": spec})[0]
    "1 of 1 names match after stripping `encoder.`: rules=['exact', tk.strip('encoder.')]"
    """
    advice: list[Found] = []
    looks = {"": _prefixes, "weight-norm": _weight_norm, "suffix": _suffix, "structural": _structural}
    for look in (look for rule, look in looks.items() if rule not in known):
        try:
            found = look(target, source)
        except Exception:  # advice is given while another error is raised, which it must not hide
            continue
        most = max((count for count, _ in advice), default=0)
        advice += [one for one in found if one[0] > most]
    return tuple(text for _, text in sorted(advice, key=lambda one: -one[0]))


def by_structure_alone(target: Specs, source: Specs, more_than: int) -> list[str]:
    """Whether structure would pair more if no other rule was asked before; never raises.

    Args:
        target: what the model has.
        source: what the source has.
        more_than: how many tensors the rules that were asked have paired.
    """
    try:
        pairs = Structural().match(target, source, {})
    except Exception:
        return []
    count = sum(target[to].shape == source[pair.source].shape for to, pair in pairs.items())
    if count <= more_than:
        return []
    return [f"structure alone would pair {count} of {len(target)} tensors: rules=['structural']"]


def _prefixes(target: Specs, source: Specs) -> list[Found]:
    found = []
    for label, count in list(counted(target, source).items())[:_ALIKE]:
        verb, _, prefix = label.partition(" ")
        what = f"stripping `{prefix}`" if verb == "strip" else f"adding `{prefix}`"
        text = f"{count} of {len(target)} names match after {what}: rules=['exact', {written(label)}]"
        found.append((count, text))
    return [one for one in found if one[0] == found[0][0]]


def _weight_norm(target: Specs, source: Specs) -> list[Found]:
    count = _fitting(WeightNorm(), target, source)
    text = f"{count} of {len(target)} names are other names of weight norm: rules=['exact', 'weight-norm']"
    return [(count, text)]


def _suffix(target: Specs, source: Specs) -> list[Found]:
    count = _fitting(Suffix(), target, source)
    if count * 2 < min(len(target), len(source)):
        return []
    return [(count, f"{count} of {len(target)} names end alike: rules=['exact', 'suffix']")]


def _structural(target: Specs, source: Specs) -> list[Found]:
    if len(target) + len(source) > _MOST:
        return []
    how, note = 'match="structural"', ""
    try:
        pairs = Structural().match(target, source, {})
    except AmbiguousMatchError:
        pairs = Structural(ambiguous="leave").match(target, source, {})
        how, note = "rules=[tk.structural(ambiguous='leave')]", "; more than one of the others would fit alike"
    sure = [pair.confidence for to, pair in pairs.items() if target[to].shape == source[pair.source].shape]
    if len(sure) * 2 < min(len(target), len(source)):
        return []
    least = math.floor(100 * min(sure, default=0)) / 100
    text = f"{how} would pair {len(sure)} of {len(target)} tensors, with a confidence of {least:.2f}{note}"
    return [(len(sure), text)]


def _fitting(rule: Rule, target: Specs, source: Specs) -> int:
    """How many pairs of a rule have one shape."""
    pairs = rule.match(target, source, {}).items()
    return sum(target[to].shape == source[origin].shape for to, origin in pairs if isinstance(origin, str))
