"""The ways of training that a sweep tries, made for a model from its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from ..core.live import module_at, named_modules, unwrapped
from ..core.names import is_under, selection_of
from ..core.transfer import Candidate, Stage
from ..freezing import DROPOUTS, NORMS, View
from ..freezing.view import numel

BODY = 0.3  # rate of the last pretrained layer beside that of the fresh head
DECAY = 0.9  # of the rate, for each step further down


def candidates_for(model: nn.Module, count: int = 4, *, head: str | None = None) -> list[Candidate]:
    """The head alone; the head and then all; the last stages; the first one; all; all from fresh weights.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4))
    >>> [candidate.name for candidate in candidates_for(net)]
    ['head', 'lp-ft', 'stage 2', 'stage 1', 'full', 'scratch']

    What lies below the head is cut into stages of equally many steps of the network. The head, which is the last layer
    and the dropout before it, learns at the base rate and what is pretrained at 0.3 of it, less by a tenth for each
    step further down.

    Args:
        model: with its head.
        count: of stages, at most.
        head: path of the head; the last layer that the model lists if None.
    """
    model = unwrapped(model)
    *below, last = layers_of(model, head)
    fast = {selection_of(path): 1.0 for path in last if any(True for _ in module_at(model, path).parameters())}
    top = [selection_of(path) for path in last]

    def body(train: str | list[str], share: float = 1.0) -> Stage:
        return Stage(train, share=share, rate=BODY, rates=fast, layer_decay=DECAY)

    whole, scratch = Candidate("full", [body("*")]), Candidate("scratch", [Stage("*")], start="scratch")
    stages = stages_of(below, count)
    if not stages:
        return [whole, scratch]
    found = [Candidate("head", [Stage(_one(top))])]
    found.append(Candidate("lp-ft", [Stage(_one(top), share=1 / 3), body("*", 2 / 3)]))
    total = len(stages)
    windows = [(start, total) for start in range(total - 1, 0, -1)]
    for start, end in [*windows, (0, 1)] if total > 1 else []:
        paths = [selection_of(path) for stage in stages[start:end] for path in stage]
        name = f"stage {end}" if end - start == 1 else f"stages {start + 1}-{end}"
        found.append(Candidate(name, [body([*paths, *top])]))
    return [*found, whole, scratch]


def layers_of(model: nn.Module, head: str | None = None) -> list[tuple[str, ...]]:
    """The network from its stem to its head, each step as the paths of its modules.

    These are the steps of `View`, where layers that are only listed one after another are steps of their own. Dropout
    that stands between two steps belongs to the latter. The step of `head`, if it is given, is the last.
    """
    view = View(model)
    steps: list[tuple[str, ...]] = []
    for step in view.steps:
        for path in step:
            for below in _listed(path, module_at(view.model, path)):
                if steps and isinstance(module_at(view.model, below), NORMS):
                    steps[-1] = (*steps[-1], below)
                else:
                    steps.append((below,))
    first = {step[0]: number for number, step in enumerate(steps)}
    inside = [path for step in steps for path in step]
    waiting: list[str] = []
    for path, module in named_modules(view.model):
        if path in first:
            steps[first[path]] = (*waiting, *steps[first[path]])
            waiting = []
        elif isinstance(module, DROPOUTS) and not any(is_under(path, one) for one in inside):
            waiting.append(path)
    if head is not None:
        steps.sort(key=lambda step: any(is_under(head, path) for path in step))
    return steps


def _listed(path: str, module: nn.Module) -> list[str]:
    if type(module) is not nn.Sequential:
        return [path]
    children = [(f"{path}.{key}" if path else key, child) for key, child in module.named_children()]
    return [key for key, child in children if any(True for _ in child.parameters())]


def stages_of(steps: Sequence[tuple[str, ...]], count: int) -> list[list[str]]:
    """Steps of a network in so many stages, each as paths; the first ones are longer where it does not come out."""
    count = min(count, len(steps))
    bounds = [-(-len(steps) * number // count) for number in range(count + 1)] if count else [0]
    return [[path for step in steps[a:b] for path in step] for a, b in pairwise(bounds)]


def cost_of(model: nn.Module, candidate: Candidate, head: str | None = None) -> tuple[float, int]:
    """What a candidate costs beside others, without a clock: how far gradients go, and how many parameters they train.

    The first figure is the share of the network's steps that have to be run and trained in each epoch, 0 to 1, a mean
    over the epochs: what is frozen below the first trained step is not.
    """
    view, steps, work, trained = View(model), layers_of(model, head), 0.0, 0
    total = sum(stage.share for stage in candidate.stages)
    for stage in candidate.stages:
        keys = view.chosen_parameters(stage.train)
        first = min(_step_of(view.parameter_names[key][0], steps) for key in keys)
        work += stage.share / total * (1 - first / len(steps))
        trained = max(trained, sum(numel(view.parameters[key]) for key in keys))
    return round(work, 9), trained


def _step_of(name: str, steps: Sequence[tuple[str, ...]]) -> int:
    """The number of the step that a parameter belongs to; 0 where nobody knows when it is used."""
    return next((number for number, step in enumerate(steps) if any(is_under(name, path) for path in step)), 0)


def _one(words: list[str]) -> str | list[str]:
    return words[0] if len(words) == 1 else words
