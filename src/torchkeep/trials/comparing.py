"""Comparing candidates by the examples that they were both tried on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core.sweep_report import Zone
from ..core.transfer import Outcome

Results = Mapping[tuple[str, int], Outcome]
POINT = 0.01  # more is not given away for a cheaper candidate, whatever the standard error
BLEND = 0.25  # weight of the probability of the right class beside the hit
DOUBT = 0.5  # standard errors by which fresh weights have to be better than pretrained ones


@dataclass(frozen=True)
class Difference:
    """How much better one candidate is than another on the same examples held out of the same trainings.

    Attributes:
        mean: of the accuracy, 0 to 1.
        stderr: of that mean, over the examples.
        merit: the same as `mean` by `merit_of`.
        seeds: how many both were trained with.
    """

    mean: float
    stderr: float
    merit: float
    seeds: int


def merit_of(outcome: Outcome) -> torch.Tensor:
    """For each example held out, three quarters whether it was right, one quarter the probability of the right class.

    On few examples accuracy goes by large steps; the probability tells candidates apart that get the same ones right.
    """
    return (1 - BLEND) * outcome.hits.double() + BLEND * torch.exp(-outcome.losses.double())


def seeds_of(found: Results, name: str) -> list[int]:
    """The seeds that a candidate was tried with."""
    return sorted(seed for other, seed in found if other == name)


def difference(found: Results, one: str, other: str) -> Difference:
    """How much better one is than another, over the seeds that both have; examples held out twice count once."""
    seeds = sorted(set(seeds_of(found, one)) & set(seeds_of(found, other)))
    if not seeds:
        return Difference(0.0, math.inf, 0.0, 0)
    places = torch.cat([found[one, seed].places for seed in seeds])
    hits = torch.cat([found[one, seed].hits.double() - found[other, seed].hits.double() for seed in seeds])
    merits = torch.cat([merit_of(found[one, seed]) - merit_of(found[other, seed]) for seed in seeds])
    each, where = places.unique(return_inverse=True)
    counts = torch.bincount(where, minlength=len(each)).double()
    means = torch.zeros(len(each), dtype=torch.float64).index_add_(0, where, hits) / counts
    spread = float(means.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return Difference(float(hits.mean()), spread, float(merits.mean()), len(seeds))


def adjusted(found: Results, names: Sequence[str], figures: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """The mean of a figure for each candidate, as if all had had all seeds: what a seed adds is taken out.

    The figures are fitted by one number a candidate and one a seed; where all have the same seeds, it is the mean.
    """
    pairs = [(name, seed) for name, seed in found if name in names]
    seeds = sorted({seed for _, seed in pairs})
    rows = np.zeros((len(pairs) + 1, len(names) + len(seeds)))
    wanted = np.zeros(len(pairs) + 1)
    for row, (name, seed) in enumerate(pairs):
        rows[row, names.index(name)] = rows[row, len(names) + seeds.index(seed)] = 1
        wanted[row] = figures[name, seed]
    rows[-1, len(names) :] = 1  # the seeds add nothing together
    solved = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return {name: round(float(solved[place]), 12) + 0.0 for place, name in enumerate(names)}


def standing(found: Results, names: Sequence[str]) -> list[str]:
    """Candidates, the best first; ties stay in their order."""
    merits = adjusted(found, list(names), {pair: float(merit_of(one).mean()) for pair, one in found.items()})
    return sorted(names, key=lambda name: -round(merits[name], 9))


def choose(
    found: Results, names: Sequence[str], costs: Mapping[str, tuple[float, int]], scratch: str | None = None
) -> tuple[str, str, str]:
    """The candidate to go on with, the best one, and why.

    Only candidates that were tried with as many seeds as the best one are taken instead of it. Fresh weights have to
    be better than the best pretrained candidate by half a standard error. Then the cheapest is taken of those whose
    accuracy on the same examples is within a standard error of the best one's, and within a point.
    """
    most = max(len(seeds_of(found, name)) for name in names)
    final = [name for name in names if len(seeds_of(found, name)) == most]
    ranked = standing(found, final)
    best = ranked[0]
    if best == scratch and len(ranked) > 1:
        ahead = difference(found, best, ranked[1])
        if ahead.mean <= DOUBT * ahead.stderr:
            chosen = ranked[1]
            why = f"fresh weights are not better by more than noise: {_points(ahead)} points"
            return chosen, best, why
    near = {}
    for name in final:
        behind = difference(found, best, name)
        if name == best or behind.mean <= min(behind.stderr, POINT) + 1e-12:
            near[name] = behind
    chosen = min(near, key=lambda name: (costs[name], names.index(name)))
    if chosen == best:
        return chosen, best, f"the best on examples held out, with {most} seed{'s' if most > 1 else ''}"
    return chosen, best, f"it costs less than {best!r}, which is better by {_points(near[chosen])} points"


def _points(apart: Difference) -> str:
    return f"{apart.mean * 100:.1f} ± {apart.stderr * 100:.1f}"


def zone_of(gain: Difference | None) -> Zone:
    """What transfer does, by how much more accurate it is than fresh weights.

    Two standard errors tell, and three where both were trained once only: what another seed would give is not in them.
    """
    if gain is None or not gain.seeds:
        return "not compared"
    noise = (2 if gain.seeds > 1 else 3) * gain.stderr
    if gain.mean > noise:
        return "helps"
    return "hurts" if gain.mean < -noise else "does not matter"
