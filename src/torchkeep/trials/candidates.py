"""The ways of training that a sweep tries, made for a model from its blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ..core.transfer import Candidate, Stage
from ..freezing import View, freeze_spec
from ..freezing.view import numel

BODY = 0.3  # rate of pretrained layers beside that of the fresh head


def candidates_for(model: nn.Module, count: int = 4) -> list[Candidate]:
    """The head alone; the head and then all; the last stages; the first one; all; all from fresh weights.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4))
    >>> [candidate.name for candidate in candidates_for(net)]
    ['head', 'lp-ft', 'stage 2', 'stage 1', 'full', 'scratch']

    What lies below the head is cut into stages of equally many steps of the network. The head learns at the base rate
    and what is pretrained at 0.3 of it.

    Args:
        model: with its head.
        count: of stages, at most.
    """
    view = View(model)
    top = freeze_spec(model, "head").phases[0].train
    head = [_exactly(path) for path in ([top] if isinstance(top, str) else top)]
    fast = {_exactly(path): 1.0 for path in view.steps[-1]}
    whole = Candidate("full", [Stage("*", rate=BODY, rates=fast)])
    scratch = Candidate("scratch", [Stage("*")], start="scratch")
    stages = stages_of(view.steps[:-1], count)
    if not stages:
        return [whole, scratch]
    linear = Stage(_one(head), share=1 / 3)
    found = [Candidate("head", [Stage(_one(head))])]
    found.append(Candidate("lp-ft", [linear, Stage("*", share=2 / 3, rate=BODY, rates=fast)]))
    total = len(stages)
    for start, end in [*((start, total) for start in range(total - 1, 0, -1)), *([(0, 1)] if total > 1 else [])]:
        paths = [_exactly(path) for stage in stages[start:end] for path in stage]
        name = f"stage {end}" if end - start == 1 else f"stages {start + 1}-{end}"
        found.append(Candidate(name, [Stage([*paths, *head], rate=BODY, rates=fast)]))
    return [*found, whole, scratch]


def stages_of(steps: Sequence[tuple[str, ...]], count: int) -> list[list[str]]:
    """Steps of a network in so many stages, each as paths: the first ones have a step more where it does not come out."""
    count = min(count, len(steps))
    bounds = [-(-len(steps) * number // count) for number in range(count + 1)] if count else [0]
    return [
        [path for step in steps[start:end] for path in step] for start, end in zip(bounds, bounds[1:], strict=False)
    ]


def cost_of(model: nn.Module, candidate: Candidate) -> tuple[float, int]:
    """What a candidate costs beside others, without a clock: how far gradients go, and how many parameters they train.

    The first figure is the share of the network's steps that have to be run and trained in each epoch, 0 to 1, a mean
    over the epochs: what is frozen below the first trained step is not.
    """
    view, work, trained = View(model), 0.0, 0
    total = sum(stage.share for stage in candidate.stages)
    for stage in candidate.stages:
        keys = view.chosen_parameters(stage.train)
        steps = [view.step_of(key) for key in keys]
        first = min((0 if step is None else step) for step in steps)
        work += stage.share / total * (1 - first / len(view.steps))
        trained = max(trained, sum(numel(view.parameters[key]) for key in keys))
    return work, trained


def _exactly(path: str) -> str:
    """A selector of this path and what is below it, whatever characters are in it."""
    if re.fullmatch(r"[\w.\-]+", path):
        return path
    return rf"re:\A{re.escape(path)}(?:\.|\Z)"


def _one(words: list[str]) -> str | list[str]:
    return words[0] if len(words) == 1 else words
