"""From a pretrained model and a data set to a plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from torch import nn

from ..core.advice import Advice
from ..core.survey import Growth
from ..core.sweep_report import SweepReport
from ..core.table import shorten
from ..core.transfer import Candidate, Examples, Recipe
from ..gathering import check_examples, check_head, copied, few, model_from, on_device_of, read_examples, tried
from ..loading import load_into
from ..pointing import checkpoint_of
from ..sensing import similarity
from ..surgery import head_of
from ..surgery.trial import kept_generators
from ..surveying import survey
from ..sweeping import recipe_for
from ..sweeping import sweep as measure
from .planning import candidate_for, fit_head, fit_input, plan_for, textbook
from .scenario import Size, scenario_of

_SHORT = 0.1  # of accuracy
Maker = nn.Module | Callable[[], nn.Module]


def advise(
    model: Maker,
    examples: Any,
    *,
    weights: Any = None,
    sweep: bool = False,
    folder: str | os.PathLike[str] | None = None,
    old_labels: Sequence[str] | Mapping[int, str] | None = None,
    seeds: int = 5,
    recipe: Recipe | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    candidates: Sequence[Candidate] | None = None,
    size: int | tuple[int, int] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Advice:
    """Say how to bring a pretrained model to new data: what to replace, freeze and train, from which weights.

    >>> advice = tk.advise(make_model, "flowers/", weights="resnet50.pth", sweep=True)   # doctest: +SKIP
    >>> print(advice)                                                                    # doctest: +SKIP
    >>> tk.apply(advice.plan, model)                                                     # doctest: +SKIP

    Without a sweep nothing is trained: the plan is that of the textbook, by the size of the data and how similar they
    are to what the model was trained on. It is a start, and often not the best. With a sweep several ways of training
    are tried out, and the plan is the cheapest of those that are as good as the best.

    Args:
        model: with its old head, or a function that makes it. It is not changed.
        examples: what `tk.read_examples` takes: a folder of images, `x.npz`, `sklearn:digits`, a data set ...
        weights: what `tk.load_into` loads into the model first, all of them; None where it has them.
        sweep: measure.
        folder: where trials are kept, so that a sweep that broke off goes on; None for nowhere.
        old_labels: names of the classes of the old head, in order or by number; those that the weights name, if None.
        seeds: how many trainings of a candidate there are at most.
        recipe: epochs, batch and rates of a training; by the number of examples if None.
        epochs, lr: instead of those of the recipe.
        candidates: the ways of training to try out; those that are made for the model, if None.
        size: of images, in pixels, as `tk.read_examples` takes it.
        seed: of splits and fresh weights.
        progress: is called with a line about each trial of a sweep.

    Raises:
        DataError: the examples cannot be used, or not with this model. Nothing was trained.
        LoadError: the weights do not fit.
        MissingDependencyError: a sweep needs Optuna, and it is not installed.
    """
    if not sweep and (folder is not None or candidates is not None):
        raise ValueError("folder= and candidates= are for a sweep: pass sweep=True")
    data = examples if isinstance(examples, Examples) else read_examples(examples, size=size)
    check_examples(data)
    net, known = _made(model, weights, old_labels)
    steps = fit_input(net, data)
    tried(net, data)
    head = head_of(net, on_device_of(net, few(data).inputs))
    facts = survey(net, data, old_labels=known)
    alike = similarity(net, data, old_labels=known, seed=seed)
    extent = Size.of(facts.counts, facts.parameters)
    scenario = scenario_of(extent, alike.verdict)
    why = textbook(scenario, extent, alike.verdict)
    if weights is None:
        why.append("no weights were given: the values that the model has are taken as pretrained")
    recipe = recipe or recipe_for(data)
    given = {name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
    recipe = msgspec.structs.replace(recipe, **given)
    report, chosen, budget = None, candidate_for(scenario, net, head), list[str]()
    if sweep:
        report = measure(
            net, data, candidates=candidates, recipe=recipe, seeds=seeds, folder=folder, seed=seed, progress=progress
        )
        report = _doubted(report, facts.growth)
        chosen, winner = report.plan, report[report.chosen]
        why.append(f"measured: {report.why}")
        budget.append(f"{winner.seconds / winner.trials:.1f} s here for a training on 70 % of the examples")
    with kept_generators(net):
        steps.append(fit_head(net, len(data.classes), head))
    check_head(net, data, head)
    plan = plan_for(chosen, scenario, net, data, recipe, small=extent.small, surgery=steps, why=why, budget=budget)
    return Advice(data.title or "examples", facts, alike, scenario, plan, report, _named(weights))


def _doubted(report: SweepReport, growth: Growth | None) -> SweepReport:
    """The report, with candidates marked that have not even learned what a probe finds in the frozen features."""
    if growth is None:
        return report
    probe = growth.points[-1].accuracy
    short = {
        one.name for one in report.candidates if one.gain is not None and one.score < probe - _SHORT - 2 * one.stderr
    }
    if not short:
        return report
    marked = tuple(replace(one, zone="undertrained") if one.name in short else one for one in report.candidates)
    note = (
        f"{shorten(sorted(short))}: fewer right than a probe in closed form finds in the frozen features "
        f"({probe:.0%}), so {report.recipe.epochs} epochs at a rate of {report.recipe.lr:g} are too few or too slow "
        "for them: raise epochs or lr before believing this"
    )
    return replace(report, candidates=marked, notes=(*report.notes, note))


def _made(
    model: Maker, weights: Any, labels: Sequence[str] | Mapping[int, str] | None
) -> tuple[nn.Module, tuple[str, ...] | None]:
    """A model of our own with its weights, and the names of its classes."""
    net = copied(model_from(model))
    if weights is not None:
        ckpt = checkpoint_of(weights)
        load_into(net, ckpt)
        labels = _labels(ckpt.about.classes) if labels is None else labels
    return net, None if labels is None else _labels(labels)


def _labels(classes: Sequence[str] | Mapping[int, str]) -> tuple[str, ...] | None:
    """Names by index, where a file names all of them."""
    if isinstance(classes, Mapping):
        classes = [classes[place] for place in range(len(classes))] if set(classes) == set(range(len(classes))) else []
    return tuple(classes) or None


def _named(weights: Any) -> str:
    if weights is None:
        return ""
    return os.fspath(weights) if isinstance(weights, (str, os.PathLike)) else str(getattr(weights, "file", "weights"))
