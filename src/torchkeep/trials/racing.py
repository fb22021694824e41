"""Which trials are done: all of them, or few for all candidates and more for the better ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.transfer import Outcome
from .comparing import Results, standing

Ask = Callable[[Sequence[tuple[str, int]]], Mapping[tuple[str, int], Outcome]]

SHARE = 1 / 3  # of the trials of the whole grid, and of their cost


def grid(names: Sequence[str], seeds: Sequence[int], ask: Ask) -> Results:
    """Every candidate with every seed."""
    return dict(ask([(name, seed) for name in names for seed in seeds]))


def race(names: Sequence[str], seeds: Sequence[int], costs: Mapping[str, float], ask: Ask) -> Results:
    """All candidates with one seed, the better ones with more: successive halving over paired seeds.

    Each round gives a seed more to at most half of the candidates of the last, and to no more than can have three
    such rounds, but to two at least: until a third of the trials of the whole grid, or a third of its cost, would be
    exceeded.

    Args:
        names: of the candidates.
        seeds: at most so many for each.
        costs: of a trial of each candidate, in any unit: not measured, so that the same seeds make the same race.
        ask: gives what trials gave.
    """
    trials = max(len(names), int(SHARE * len(names) * len(seeds)))
    budget = SHARE * sum(costs[name] for name in names) * len(seeds)
    found = dict(ask([(name, seeds[0]) for name in names]))
    budget -= sum(costs[name] for name in names)
    alive = list(names)
    for seed in seeds[1:]:
        most = max(2, min(-(-len(alive) // 2), (trials - len(found)) // 3))
        alive = standing(found, alive)[:most]
        price = sum(costs[name] for name in alive)
        if len(alive) < 2 or len(found) + len(alive) > trials or price > budget + 1e-9:
            break
        found |= ask([(name, seed) for name in alive])
        budget -= price
    return found
