"""Surveying: what a data set is beside a model, in one pass, and whether more of it would help."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .core.digests import digest_tensor
from .core.drawing import in_shares
from .core.live import module_at, unwrapped
from .core.probing import fold_numbers, ridge_scores
from .core.survey import Growth, Reached, Survey, judged
from .core.table import shorten
from .core.transfer import Examples
from .errors import DataError, SurgeryError
from .freezing.view import numel
from .gathering import check_examples, few, first_layer, on_device_of, read_examples, tried
from .surgery import head_of
from .surgery.layers import CONVS, site_of
from .surgery.trial import undisturbed
from .trials.training import logits_of

_PROBED = 2_000  # examples at most, so that it takes seconds
_FEWEST = 20
_FOLDS = 5
_BATCH = 64
_GROUPS = 20

OldLabels = Sequence[str] | Mapping[int, str]


def survey(model: nn.Module, examples: Any, *, head: str | None = None, old_labels: OldLabels | None = None) -> Survey:
    """What a data set is beside the model that is to learn it, and whether more of it would help.

    >>> print(survey(model, "sklearn:digits"))                                           # doctest: +SKIP

    The model runs once over the examples, in eval mode; neither it nor any generator is changed. It may be one that
    cannot take the examples yet: then `misfit` says why, and what needs the model to run is left out.

    Whether more data helps is estimated on what goes into the head, by a linear probe that learns from a quarter, a
    half and all of the examples outside a fifth that it is tested on, each part within the next, for several divisions.
    Its standard errors are those of resampling, corrected for the overlap of the divisions (Nadeau and Bengio, 2003).
    It tells about a new head on the features as they are; training the rest can gain more.

    Args:
        model: gives one row of scores an example.
        examples: Examples, or what `read_examples` takes.
        head: name of the layer that gives the scores; found by running the model if None.
        old_labels: what the model's outputs stand for: names by place, or by number.

    Raises:
        DataError: the examples cannot be used with any model; `check_examples` has the list. Or `old_labels` are not as
            many as the outputs.
        SurgeryError: there is no layer of the name `head`.
    """
    examples = read_examples(examples)
    check_examples(examples)
    model = unwrapped(model)
    example, misfit = None, ""
    outputs: int | None = None
    try:
        outputs = tried(model, examples).shape[1]
        example = few(examples).inputs
    except DataError as error:
        misfit = error.message
    name = _head(model, head, example)
    outputs = _size(model, name) if outputs is None else outputs
    groups = _equal(examples)
    notes = list(examples.notes)
    overlap = None if old_labels is None else _overlap(examples.classes, old_labels, outputs, notes)
    growth = None if example is None else _growth(model, name, examples, groups, notes)
    parameters = sum(map(numel, model.parameters()))
    return Survey(
        title=examples.title,
        model=type(model).__name__,
        examples=len(examples),
        classes=examples.classes,
        counts=examples.counts,
        balance=min(examples.counts) / max(examples.counts),
        commonest=max(examples.counts) / len(examples),
        input=examples.shape,
        channels=next((one.shape[1] for one in examples.tensors.values() if one.dim() in {4, 5}), None),
        stem=first_layer(model, example),
        misfit=misfit,
        head=name,
        outputs=outputs,
        overlap=overlap,
        parameters=parameters,
        parameters_per_example=parameters / len(examples),
        duplicates=sum(len(places) - 1 for places in groups),
        contradictions=sum(_differ(examples, places) for places in groups),
        same=tuple(sorted(groups, key=lambda places: not _differ(examples, places))[:_GROUPS]),
        growth=growth,
        notes=tuple(notes),
    )


def _head(model: nn.Module, name: str | None, example: Any) -> str | None:
    """The name of the head; None where there is none that could be found."""
    if name is not None:
        return site_of(model, name).name
    try:
        return head_of(model, example)
    except SurgeryError:
        return None


def _size(model: nn.Module, head: str | None) -> int | None:
    """Outputs of a head by its class."""
    layer = None if head is None else module_at(model, head)
    if isinstance(layer, CONVS):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else None


def _equal(examples: Examples) -> list[tuple[int, ...]]:
    """Places of examples whose inputs are bit for bit the same, where there are two or more."""
    tensors = [tensor.cpu() for tensor in examples.tensors.values()]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place in range(len(examples)):
        places[tuple(digest_tensor(tensor[place]) for tensor in tensors)].append(place)
    return [tuple(group) for group in places.values() if len(group) > 1]


def _differ(examples: Examples, places: tuple[int, ...]) -> bool:
    return len(examples.labels[list(places)].unique()) > 1


def _overlap(classes: Sequence[str], old_labels: OldLabels, outputs: int | None, notes: list[str]) -> dict[str, int]:
    """Classes that an output of the old head stands for."""
    by_number = dict(old_labels) if isinstance(old_labels, Mapping) else dict(enumerate(old_labels))
    beyond = [number for number in by_number if outputs is not None and not 0 <= int(number) < outputs]
    if beyond or (outputs is not None and not isinstance(old_labels, Mapping) and len(by_number) != outputs):
        raise DataError(
            f"old_labels are {len(by_number):,}, and the model has {outputs:,} outputs",
            hint="give one name for each output, or a dict of names by the number of the output",
        )
    by_name: dict[str, set[int]] = defaultdict(set)
    for number, label in by_number.items():
        for name in {_plain(label), *map(_plain, str(label).split(","))}:
            by_name[name].add(int(number))
    found = {name: by_name.get(_plain(name), set()) for name in classes}
    several = [name for name, numbers in found.items() if len(numbers) > 1]
    if several:
        notes.append(f"several old labels are called {shorten(several, 5)}, so they count as none")
    return {name: numbers.copy().pop() for name, numbers in found.items() if len(numbers) == 1}


def _plain(label: str) -> str:
    """A label as it is compared: without case, and with one space for what divides words."""
    return re.sub(r"[\s_\-]+", " ", str(label)).strip().casefold()


def _growth(
    model: nn.Module, head: str | None, examples: Examples, groups: list[tuple[int, ...]], notes: list[str]
) -> Growth | None:
    """Accuracy of a probe on a quarter, a half and all of the examples that it is not tested on."""
    single = torch.ones(len(examples), dtype=torch.bool)
    single[[place for group in groups for place in group[1:]]] = False
    places = single.nonzero().flatten()
    if len(places) < _FEWEST:
        notes.append(f"{len(places)} different examples are too few to tell whether more data helps")
        return None
    if len(places) > _PROBED:
        notes.append(f"whether more data helps was estimated at {_PROBED:,} of the {len(places):,} different examples")
        places = places[in_shares(examples.labels.cpu()[places], 0, least=2)[:_PROBED].sort().values]
    part = examples.take(places)
    features = _features(model, head, part)
    if features is None or not bool(torch.isfinite(features).all()):
        notes.append(
            "whether more data helps cannot be estimated: no finite features, one row an example, go into a head"
        )
        return None
    labels, classes = part.labels.cpu(), len(part.classes)
    rounds = max(1, min(4, _PROBED // len(part)))
    accuracies = torch.tensor(
        [
            run
            for seed in range(rounds)
            for run in _runs(features, labels, classes, fold_numbers(labels, folds=_FOLDS, seed=seed))
        ],
        dtype=torch.float64,
    )
    tested = len(part) // _FOLDS
    learned = len(part) - tested
    overlap = 1 / len(accuracies) + tested / learned

    def error(values: torch.Tensor) -> float:
        return max(float((overlap * values.var()).sqrt()), 1 / len(part))  # nobody sees less than one example

    sizes = (learned // 4, learned // 2, learned)
    points = tuple(
        Reached(size, float(values.mean()), error(values)) for size, values in zip(sizes, accuracies.T, strict=True)
    )
    gains = accuracies[:, 2] - accuracies[:, 1]
    gain, stderr = float(gains.mean()), error(gains)
    return Growth(points, gain, stderr, len(accuracies), judged(gain, stderr))


def _runs(
    features: torch.Tensor, labels: torch.Tensor, classes: int, folds: torch.Tensor
) -> Iterator[tuple[float, ...]]:
    """Accuracy on each fold of a probe that learned from a quarter, a half and all of the others."""
    for fold in range(_FOLDS):
        held = folds == fold
        others = (~held).nonzero().flatten()
        order = others[in_shares(labels[others], fold)]
        scores = (
            ridge_scores(features[some], labels[some], features[held], classes)
            for some in (order[: len(order) // 4], order[: len(order) // 2], order)
        )
        yield tuple(float((one.argmax(dim=1) == labels[held]).double().mean()) for one in scores)


def _features(model: nn.Module, head: str | None, examples: Examples) -> torch.Tensor | None:
    """What goes into the head, pooled: [examples, features] on the CPU; None where it is no row an example."""
    if head is None:
        return None
    layer = module_at(model, head)
    seen: list[torch.Tensor] = []
    rows = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[:] = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)][:1]

    hook = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with undisturbed(model):
            for inputs, labels in examples.batches(_BATCH):
                seen.clear()
                logits_of(model, on_device_of(model, inputs))
                if not seen or seen[0].dim() < 2 or len(seen[0]) != len(labels) or seen[0].is_meta:
                    return None
                rows.append(_pooled(seen[0], isinstance(layer, CONVS)).cpu())
    finally:
        hook.remove()
    return torch.cat(rows)


def _pooled(value: torch.Tensor, channels_first: bool) -> torch.Tensor:
    """[examples, features]: the mean over all places."""
    value = value.double()
    if value.dim() == 2:
        return value
    return value.flatten(2).mean(dim=2) if channels_first else value.flatten(1, -2).mean(dim=1)
