"""Making a plan: of a case of the textbook, or of the candidate that was measured to be the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core.live import module_at
from ..core.table import human_count
from ..core.transfer import Candidate, Examples, Recipe
from ..core.transfer_plan import SCENARIOS, Scenario, Step, TransferPlan
from ..errors import DataError, SurgeryError
from ..freezing import View
from ..freezing.view import numel
from ..surgery import adapt_input, resize_head, stem_of
from ..surgery.layers import CONVS
from ..trials.candidates import candidates_for
from .scenario import Size

_BY_NAME = {"feature-extractor": "head", "from-scratch": "scratch", "fine-tune-all": "full", "ambiguous": "lp-ft"}
_UNEVEN = 3  # times as many examples in the most frequent class as in the rarest


def candidate_for(scenario: Scenario, model: nn.Module, head: str | None = None) -> Candidate:
    """The way of training that a case of the textbook means.

    It leaves open how many blocks are frozen: half of what lies below the head is taken.
    """
    found = {one.name: one for one in candidates_for(model, count=2, head=head)}
    wanted = _BY_NAME.get(scenario, "stage 2")
    return found.get(wanted, found["full"])  # a model that is all head has no others


def fit_input(model: nn.Module, examples: Examples) -> list[Step]:
    """Let the stem of a model take the channels that the examples have, where it is a convolution; says how.

    Raises:
        DataError: it cannot.
    """
    inputs = examples.inputs
    try:
        name = stem_of(model)
    except SurgeryError:
        return []
    stem: Any = module_at(model, name)
    if not isinstance(stem, CONVS) or not isinstance(inputs, torch.Tensor) or inputs.dim() != stem.weight.dim():
        return []
    channels = int(inputs.shape[1])
    if channels == stem.in_channels:
        return []
    try:
        adapt_input(model, channels, name=name)
    except SurgeryError as error:
        raise DataError(
            f"the examples have {channels} channels and {name!r} takes {stem.in_channels}: {error.message}",
            hint="give inputs with the channels that the model was trained on",
        ) from error
    return [Step("adapt_input", name, channels=channels)]


def fit_head(model: nn.Module, classes: int, head: str) -> Step:
    """Give a model a head with an output for each class; says how, to get a fresh one.

    Raises:
        SurgeryError: it cannot be exchanged.
    """
    if resize_head(model, classes, name=head).changed:
        return Step("resize_head", head, classes=classes)
    return Step("reinitialise", head)


def plan_for(
    candidate: Candidate,
    scenario: Scenario,
    model: nn.Module,
    examples: Examples,
    recipe: Recipe,
    *,
    small: bool,
    surgery: Sequence[Step] = (),
    why: Sequence[str] = (),
    budget: Sequence[str] = (),
) -> TransferPlan:
    """One way of training as a plan.

    Args:
        candidate: the way.
        scenario: the case that model and data are.
        model: after its surgery.
        examples: all of the new data.
        recipe: epochs, batch and rates.
        small: whether the data are few.
        surgery: what was done to it.
        why, budget: more sentences.
    """
    return TransferPlan(
        scenario=scenario,
        name=candidate.name,
        freeze=candidate.freeze_spec(recipe.epochs),
        surgery=[step for step in surgery if step.verb != "reinitialise" or candidate.start == "pretrained"],
        start=candidate.start,
        recipe=recipe,
        augmentation=augmentation_for(examples, small),
        budget=[*budget_for(candidate, model, examples, recipe), *budget],
        why=list(why),
    )


def textbook(scenario: Scenario, size: Size, verdict: str) -> list[str]:
    """Why a case of the textbook was taken, in sentences."""
    lines = [f"the set is {size}", f"it is {verdict} to what the model was trained on"]
    if scenario == "ambiguous":
        return [*lines, "the textbook has no answer then: the head first and then all is where to measure from"]
    return [*lines, f"the textbook says: {SCENARIOS[scenario]}; a start, and often not the best: measure"]


def augmentation_for(examples: Examples, small: bool) -> list[str]:
    """What may be done to the examples."""
    hints = []
    if isinstance(examples.inputs, torch.Tensor) and examples.inputs.dim() == 4:
        how = "shift, scale and crop the images at random by about a tenth" if small else "crop the images at random"
        hints.append(f"{how}; mirror and turn them only where that leaves the class as it is")
        hints.append("normalise them as in the pretraining")
    counts = [count for count in examples.counts if count]
    if counts and max(counts) > _UNEVEN * min(counts):
        times = f"{max(counts) / min(counts):.0f} times"
        hints.append(f"weight the classes or draw the rare ones more often: the largest has {times} the smallest")
    return hints


def budget_for(candidate: Candidate, model: nn.Module, examples: Examples, recipe: Recipe) -> list[str]:
    """What training costs, without a clock, and what one measurement of it is worth."""
    view = View(model)
    total = sum(map(numel, view.parameters.values()))
    most = max(
        sum(numel(view.parameters[key]) for key in view.chosen_parameters(stage.train)) for stage in candidate.stages
    )
    steps = recipe.epochs * math.ceil(len(examples) / recipe.batch)
    held = max(1, round(0.3 * len(examples)))
    return [
        f"{steps:,} steps that train up to {human_count(most)} of {human_count(total)} parameters",
        f"with 30 % held out one accuracy is uncertain by {50 / math.sqrt(held):.1f} points: compare several seeds",
    ]
