"""Names that differ by a leading part, or by the segments that wrappers put in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.plan import Specs
from ..errors import AmbiguousMatchError

Fits = Callable[[str, str], bool]

# What DataParallel, torch.compile and FSDP put into names. They never carry meaning of their own.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


class Prefixes:
    """Pairs names after taking a prefix off either side, found by trying, and wrapper segments off both.

    A prefix is looked for only while nothing is paired: among a few leftovers, an auxiliary head would be taken for the
    head. The prefix that pairs most names wins. Two that pair equally many with different tensors, as a student and its
    teacher in one file do, are an AmbiguousMatchError: which one is meant, only the caller knows.
    """

    name = "prefixes"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source; the names inside are those of the caller, prefixes and wrappers included."""
        wrapped, bare = _unwrapped(target), _unwrapped(source)
        found = {wrapped[name]: bare[name] for name in wrapped if name in bare}
        if paired or found or not wrapped or not bare:
            return found
        _, best = _best(wrapped, bare, _fits(target, source, wrapped, bare))
        return {wrapped[to]: bare[origin] for to, origin in best.items()}


def suggest(target: Specs, source: Specs) -> str:
    """The rule, as one would write it, that pairs most of what is left over; empty where none does."""
    wrapped, bare = _unwrapped(target), _unwrapped(source)
    try:
        label, best = _best(wrapped, bare, _fits(target, source, wrapped, bare))
    except AmbiguousMatchError:
        return ""
    return written(label).removeprefix("tk.") if best else ""


def counted(target: Specs, source: Specs) -> dict[str, int]:
    """Each prefix that could be meant, as `strip teacher.`, and how many names and shapes agree with it; best first."""
    wrapped, bare = _unwrapped(target), _unwrapped(source)
    pairings, fits = _pairings(wrapped, bare), _fits(target, source, wrapped, bare)
    scores = {label: sum(fits(to, origin) for to, origin in pairs.items()) for label, pairs in pairings.items()}
    least = max(1, (min(len(wrapped), len(bare)) + 1) // 2)
    return {label: count for label, count in sorted(scores.items(), key=lambda one: -one[1]) if count >= least}


def written(label: str) -> str:
    """`strip teacher.` as one writes it in Python."""
    verb, _, prefix = label.partition(" ")
    return f"tk.{verb}({prefix!r})"


def _fits(target: Specs, source: Specs, wrapped: dict[str, str], bare: dict[str, str]) -> Fits:
    return lambda to, origin: target[wrapped[to]].shape == source[bare[origin]].shape


@dataclass(frozen=True)
class Strip:
    """Takes one prefix off the names of the source: `rules=[tk.strip("encoder.")]`."""

    prefix: str

    @property
    def name(self) -> str:
        """How the report calls it."""
        return f"strip {self.prefix!r}"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source."""
        return {
            name.removeprefix(self.prefix): name
            for name in source
            if name.startswith(self.prefix) and name.removeprefix(self.prefix) in target
        }


@dataclass(frozen=True)
class Add:
    """Puts one prefix before the names of the source: `rules=[tk.add("backbone.")]`."""

    prefix: str

    @property
    def name(self) -> str:
        """How the report calls it."""
        return f"add {self.prefix!r}"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source."""
        return {self.prefix + name: name for name in source if self.prefix + name in target}


def unwrap(name: str) -> str:
    """A name without the segments that wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def _unwrapped(names: Specs) -> dict[str, str]:
    """Bare name -> name. Where two names are one without their wrappers, the first keeps the bare one."""
    bare: dict[str, str] = {}
    for name in names:
        bare.setdefault(unwrap(name), name)
    return bare


def _best(target: dict[str, str], source: dict[str, str], fits: Fits) -> tuple[str, dict[str, str]]:
    """The prefix that fits most names, and its pairs of bare names; few coincidences are no reason to pair."""
    pairings = _pairings(target, source)
    score = {label: sum(fits(to, origin) for to, origin in pairs.items()) for label, pairs in pairings.items()}
    most = max(score.values(), default=0)
    if most * 2 < min(len(target), len(source)) or not most:
        return "", {}
    tied = sorted(label for label, value in score.items() if value == most)
    if len({frozenset(pairings[label].items()) for label in tied}) > 1:
        raise AmbiguousMatchError(
            f"{most} names match after {', '.join(map(repr, tied[:4]))} alike",
            candidates=tuple(tied),
            hint=f"say which one: rules=[{written(tied[0])}], or the other; or load from ckpt.sub(...)",
        )
    return tied[0], pairings[tied[0]]


def _pairings(target: dict[str, str], source: dict[str, str]) -> dict[str, dict[str, str]]:
    """For each prefix that leads from one side to the other: target -> source."""
    pairings: dict[str, dict[str, str]] = defaultdict(dict)
    for longer, shorter, verb in ((source, target, "strip"), (target, source, "add")):
        for name in longer:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                tail = ".".join(parts[cut:])
                if tail in shorter:
                    to, origin = (tail, name) if verb == "strip" else (name, tail)
                    pairings[f"{verb} {'.'.join(parts[:cut])}."][to] = origin
    return pairings
