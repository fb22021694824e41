"""One training: a model, a way of training it, and what it gave on examples held out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..core.transfer import Candidate, Examples, Outcome, Recipe
from ..errors import DataError
from ..freezing import enter_phase, freeze, param_groups

Row = Mapping[str, float]
Scored = Callable[[torch.Tensor], torch.Tensor]


def logits_of(model: nn.Module, inputs: Any) -> torch.Tensor:
    """What a model gives for a batch: a tensor, its `.logits`, or the first member of a tuple.

    Raises:
        DataError: it gives something else, or not one row of scores an example.
    """
    given = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    found = getattr(given, "logits", given)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.dim() != 2:
        shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise DataError(
            f"the model gives {shape}, not one row of class scores an example",
            hint="give a model whose forward returns [batch, classes], or an object with .logits",
        )
    return found


def fit(
    model: nn.Module,
    train: Examples,
    candidate: Candidate,
    recipe: Recipe,
    *,
    seed: int,
    log: Callable[[Row], None] | None = None,
    scores: Scored | None = None,
) -> list[Row]:
    """Train a model in place, one way; answers one record an epoch. It ends when the loss is no longer a number.

    The head fits the classes already. `candidate.start` is the caller's: the model has the weights to start from.
    The global generators are as they were afterwards.

    Args:
        model: on the device of the examples.
        train: what it learns from.
        seed: of the order of the examples and of dropout.
        log: is called with each record.
        scores: gives the scores of the model for examples by their place, if not by running it on their inputs.
    """
    scores = scores or (lambda places: logits_of(model, train.take(places).inputs))
    rows: list[Row] = []
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * max(1, math.ceil(len(train) / recipe.batch))
    freeze(model, candidate.freeze_spec(recipe.epochs))
    optimizer = torch.optim.AdamW(param_groups(model, lr=recipe.lr), lr=recipe.lr, weight_decay=recipe.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            enter_phase(model, epoch, optimizer, scheduler)
            model.train()
            total = 0.0
            for places in shuffled(len(train), recipe.batch, order):
                loss = functional.cross_entropy(scores(places), train.labels[places])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                total += float(loss.detach()) * len(places)
            rows.append({"epoch": epoch, "train_loss": total / len(train)})
            if log is not None:
                log(rows[-1])
            if not math.isfinite(total):
                break
    return rows


def shuffled(count: int, batch: int, order: torch.Generator) -> Iterator[torch.Tensor]:
    """Places of examples in batches, in a fresh order; no batch of one, which batch normalisation cannot take."""
    places = torch.randperm(count, generator=order)
    ends = list(range(batch, count, batch))
    if ends and count - ends[-1] == 1:
        ends.pop()
    yield from torch.tensor_split(places, ends)


@torch.no_grad()
def evaluate(
    model: nn.Module, examples: Examples, batch: int = 64, scores: Scored | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """In eval mode, for each example: whether the model is right, and its cross-entropy in nats. bool and float32.

    Where the model gives something else than numbers it is wrong, and the loss infinite. `scores` is that of `fit`.
    """
    scores = scores or (lambda places: logits_of(model, examples.take(places).inputs))
    training = {module: module.training for module in model.modules()}
    model.eval()
    hits, losses = [], []
    for places in torch.arange(len(examples)).split(batch):
        given, labels = scores(places).float(), examples.labels[places]
        hits.append(given.argmax(dim=1) == labels)
        losses.append(functional.cross_entropy(given, labels, reduction="none"))
    for module, mode in training.items():
        module.training = mode
    loss = torch.cat(losses).nan_to_num(nan=math.inf)
    return torch.cat(hits) & loss.isfinite(), loss


def split(examples: Examples, seed: int, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Places to train on and places held out, drawn from each class in its share.

    Every class that has two examples or more is on both sides; one with a single example is trained on. Seeds that
    follow one another from a multiple of how often the share goes into the whole (0, 1, 2 for 0.3) hold out different
    examples: together they see more of them than if each drew anew.
    """
    folds = max(1, int(1 / share + 1e-9))
    generator = torch.Generator().manual_seed(seed // folds)
    train, held = [], []
    for label in range(len(examples.classes)):
        places = (examples.labels == label).nonzero().flatten().cpu()
        places = places[torch.randperm(len(places), generator=generator)]
        count = min(max(1, round(share * len(places))), len(places) - 1) if len(places) > 1 else 0
        places = places.roll(-count * (seed % folds))
        held.append(places[:count])
        train.append(places[count:])
    return torch.cat(train).sort().values, torch.cat(held).sort().values


def try_out(
    model: nn.Module,
    examples: Examples,
    candidate: Candidate,
    recipe: Recipe,
    *,
    seed: int,
    log: Callable[[Row], None] | None = None,
    scores: Scored | None = None,
) -> Outcome:
    """Train a model in place on a part of the examples and see what it gets right of the others.

    Args:
        model: with the weights to start from and a head that fits.
        seed: of split and training; the same seed holds out the same examples for every candidate.
        log: is called with the record of each epoch.
        scores: as in `fit`, for places among all examples.
    """
    kept, places = split(examples, seed)
    began = time.perf_counter()
    train, held = examples.take(kept), examples.take(places)
    known = None if scores is None else lambda some: scores(kept[some])
    unknown = None if scores is None else lambda some: scores(places[some])
    rows = fit(model, train, candidate, recipe, seed=seed, log=log, scores=known)
    hits, losses = evaluate(model, held, recipe.batch, unknown)
    learned, lost = evaluate(model, train, recipe.batch, known)
    return Outcome(
        candidate.name,
        seed,
        places,
        hits,
        losses,
        train_loss=float(lost.double().mean()),
        train_accuracy=float(learned.double().mean()),
        seconds=time.perf_counter() - began,
        rows=tuple(rows),
    )
