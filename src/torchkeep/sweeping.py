"""Trying out what to freeze and what to train: candidates as trials, and a choice by what they get right."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.sweep_report import SweepReport, Tried
from .core.transfer import Candidate, Examples, Outcome, Recipe
from .errors import DataError
from .freezing import unfreeze
from .gathering import check_examples, check_head, copied, few, model_from, on_device_of
from .running import is_run
from .surgery import head_of, resize_head
from .surgery.trial import kept_generators
from .trials.caching import Cache
from .trials.candidates import candidates_for, cost_of
from .trials.comparing import Results, adjusted, choose, difference, seeds_of, zone_of
from .trials.racing import grid, race
from .trials.trying import Trials

_STEPS = 320  # of the optimizer, about, where examples are few


def sweep(
    model: nn.Module | Callable[[], nn.Module],
    examples: Examples,
    *,
    candidates: Sequence[Candidate] | None = None,
    recipe: Recipe | None = None,
    seeds: int = 5,
    folder: str | os.PathLike[str] | None = None,
    exhaustive: bool = False,
    cache: bool = True,
    cache_limit: int = 2 << 30,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> SweepReport:
    """Measure what to freeze and what to train of a pretrained model on new data, and choose.

    >>> report = tk.sweep(model, examples, folder="sweeps/flowers")                     # doctest: +SKIP
    >>> print(report)                                                                   # doctest: +SKIP

    Each trial trains a copy of the model one way on about 70 % of the examples and sees what it gets right of the
    others. With one seed all candidates have the same examples held out, the same fresh head and the same order of
    examples, so that what differs is the candidate. The better ones get more seeds; in all that is at most a third of
    the trials of the whole grid. Of the candidates that are within a standard error of the best, and within a point,
    the cheapest is chosen; fresh weights have to be better by half a standard error.

    Args:
        model: pretrained, with its old head, or a function that makes it; it is not changed.
        examples: what it is to learn; test data should not be among them.
        candidates: ways of training; those of `candidates_for` if None.
        recipe: how all of them are trained; by the number of examples if None.
        seeds: how many each candidate may get.
        folder: where trials are kept, each as a run: a sweep that was interrupted goes on there, and several processes
            share the work. Without one they are in memory.
        exhaustive: give every candidate every seed.
        cache: keep the activations of frozen layers instead of running them in each epoch.
        cache_limit: bytes of them that are kept in memory; more go into the folder, if there is one.
        seed: the first seed.
        progress: is called with a line about each trial that was done.

    Raises:
        DataError: the examples cannot be used, or the folder has a sweep over something else.
        SelectorError: a candidate trains a part that the model does not have.
        SurgeryError: the head cannot be exchanged.
        MissingDependencyError: Optuna is not installed.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; each candidate needs one at least")
    if seed < 0 or seed + seeds > 2**31:
        raise ValueError(f"seed is {seed}; it is 0 or more, and the last one below {2**31:,}")
    made, head = prepared(model, examples)
    examples = examples.to(next(made.parameters()).device)
    listed = list(candidates_for(made, head=head) if candidates is None else candidates)
    names = [candidate.name for candidate in listed]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"the candidates are {names}; there must be some, and each needs a name of its own")
    recipe = recipe or recipe_for(examples)
    costs = {candidate.name: cost_of(made, candidate, head) for candidate in listed}
    home = None if folder is None else Path(folder)
    if home is not None and is_run(home):
        raise DataError(f"{home} is a run", hint="give the sweep a folder of its own")
    kept = Cache(examples, recipe.batch, limit=cache_limit, folder=home and home / "cache") if cache else None
    try:
        trials = Trials(home, made, head, examples, listed, recipe, cache=kept, progress=progress)
        numbers = range(seed, seed + seeds)
        work = {name: 0.1 + cost[0] for name, cost in costs.items()}
        found = grid(names, numbers, trials.outcomes) if exhaustive else race(names, numbers, work, trials.outcomes)
    finally:
        if kept is not None:
            kept.close()
    notes = (*trials.notes, *(kept.notes if kept is not None else ()))
    return _report(found, listed, costs, recipe, head, trials, len(names) * seeds, notes)


def prepared(model: nn.Module | Callable[[], nn.Module], examples: Examples) -> tuple[nn.Module, str]:
    """A copy of a model with a head that fits the classes, everything trainable, and the path of the head.

    Raises:
        DataError: the examples cannot be used, or not with this model.
        SurgeryError: the head cannot be exchanged.
    """
    made = copied(model_from(model))
    held = list(made.parameters())
    if not held or any(is_lazy(one) or one.is_meta for one in held):
        raise DataError("the model has no weights to start from", hint="load them first: tk.load_into(model, file)")
    check_examples(examples, made)
    unfreeze(made)
    with kept_generators(made):
        torch.manual_seed(0)
        head = head_of(made, on_device_of(made, few(examples).inputs))
        resize_head(made, len(examples.classes), name=head)
    check_head(made, examples, head)
    return made, head


def recipe_for(examples: Examples) -> Recipe:
    """By the number of examples: small batches and more epochs for few, so that there are steps enough."""
    count = max(1, round(0.7 * len(examples)))
    batch = 16 if count < 200 else 32
    return Recipe(epochs=max(8, min(100, -(-_STEPS * batch // count))), batch=batch)


def _report(
    found: Results,
    candidates: list[Candidate],
    costs: dict[str, tuple[float, int]],
    recipe: Recipe,
    head: str,
    trials: Trials,
    full: int,
    notes: tuple[str, ...],
) -> SweepReport:
    names = [candidate.name for candidate in candidates]
    scratch = next((candidate.name for candidate in candidates if candidate.start == "scratch"), None)
    chosen, best, why = choose(found, names, costs, scratch)
    scores = adjusted(found, names, {pair: outcome.score for pair, outcome in found.items()})
    tried = tuple(_tried(found, name, best, scratch, scores[name], costs[name]) for name in names)
    mine = {seed: found[chosen, seed] for seed in seeds_of(found, chosen)}
    path = trials.path(chosen, min(mine, key=lambda one: (-mine[one].score, mine[one].loss, one)))
    if path is not None and not path.is_dir():
        notes, path = (*notes, f"its weights were in {path}, which is no longer there"), None
    if scratch is not None and len(seeds_of(found, scratch)) < max(one.trials for one in tried):
        count = len(seeds_of(found, scratch))
        notes = (*notes, f"fresh weights were tried with {count} seed{'s' if count > 1 else ''} only")
    return SweepReport(
        tried,
        chosen,
        best,
        why,
        next(candidate for candidate in candidates if candidate.name == chosen),
        recipe,
        head,
        dict(found),
        None if path is None else str(path),
        full,
        notes,
    )


def _tried(found: Results, name: str, best: str, scratch: str | None, score: float, cost: tuple[float, int]) -> Tried:
    mine: list[Outcome] = [found[name, seed] for seed in seeds_of(found, name)]
    held = sum(len(one.places) for one in mine)
    behind = difference(found, best, name)
    gain = None if scratch is None or name == scratch else difference(found, name, scratch)
    return Tried(
        name=name,
        score=score,
        stderr=math.sqrt(max(score * (1 - score), 0) / held) if name == best else behind.stderr,
        seconds=sum(one.seconds for one in mine),
        trials=len(mine),
        behind=behind.mean,
        train_score=sum(one.train_accuracy for one in mine) / len(mine),
        cost=cost[0],
        trained=cost[1],
        gain=None if gain is None else gain.mean,
        gain_stderr=None if gain is None else gain.stderr,
        zone=zone_of(gain),
    )
