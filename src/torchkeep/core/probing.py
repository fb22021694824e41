"""A probe: how well a linear classifier does on features, by ridge regression in closed form."""

from __future__ import annotations

import torch

from .threads import one_at_a_time

_PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)  # times the mean squared singular value


def probe_accuracy(features: torch.Tensor, labels: torch.Tensor, *, folds: int = 5, seed: int = 0) -> torch.Tensor:
    """Whether a linear probe that has not seen an example gets it right: bool [examples].

    Each fold in turn is predicted by a ridge regression on the others, as `ridge_scores` does it. The mean is the
    accuracy by cross-validation. The same arguments give the same answer.

    Args:
        features: [examples, features], finite.
        labels: int64 [examples], from 0.
        folds: at most one an example.
        seed: of the division into folds, which has each class in its share.

    Raises:
        ValueError: there are fewer than two examples, or the lengths differ.
    """
    number = fold_numbers(labels, folds=folds, seed=seed)
    classes = int(labels.max()) + 1
    hits = torch.zeros(len(labels), dtype=torch.bool)
    for fold in range(int(number.max()) + 1):
        held = number == fold
        scores = ridge_scores(features[~held], labels[~held], features[held], classes)
        hits[held] = scores.argmax(dim=1) == labels[held].cpu()
    return hits


def fold_numbers(labels: torch.Tensor, *, folds: int = 5, seed: int = 0) -> torch.Tensor:
    """The fold of each example, int64 [examples]: each class is dealt out in turn, in an order drawn by the seed.

    Raises:
        ValueError: there are fewer than two examples or two folds.
    """
    count = min(folds, len(labels))
    if count < 2:
        raise ValueError(f"{len(labels)} examples cannot be divided into {folds} folds: both must be two or more")
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = drawn[labels.cpu()[drawn].argsort(stable=True)]
    number = torch.empty(len(labels), dtype=torch.int64)
    number[by_class] = torch.arange(len(labels)) % count
    return number


@one_at_a_time()
def ridge_scores(features: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor, classes: int) -> torch.Tensor:
    """Scores of a ridge regression to one-hot labels for the examples asked about: float64 [asked, classes].

    Features are brought to mean 0 and variance 1 by the examples learned from. The penalty is the one of 19 whose
    squared error with each example left out in turn is least, which has a closed form: the residual of an example over
    1 less its leverage.

    Args:
        features: [examples, features], finite.
        labels: int64 [examples], below `classes`.
        asked: [asked, features].
    """
    wide, wanted = features.detach().cpu().double(), torch.eye(classes, dtype=torch.float64)[labels.cpu()]
    centre, mean = wide.mean(dim=0), wanted.mean(dim=0)
    spread = (wide - centre).square().mean(dim=0).sqrt()
    scale = torch.where(spread > 1e-6 * wide.abs().amax(dim=0), 1 / spread, 0.0)  # below that, float32 only rounds
    inputs = (wide - centre) * scale
    left, values, right = _decomposed(inputs)
    across = left.T @ (wanted - mean)
    best, error = torch.zeros_like(values), torch.inf
    for penalty in _PENALTIES * (values.square().mean() if len(values) else 0.0):
        kept = values.square() / (values.square() + penalty)
        leverage = 1 / len(inputs) + left.square() @ kept
        residual = wanted - mean - left @ (kept[:, None] * across)
        left_out = residual / (1 - leverage).clamp_min(1e-9)[:, None]
        if float(left_out.square().sum()) < error:
            error, best = float(left_out.square().sum()), values / (values.square() + penalty)
    standard = (asked.detach().cpu().double() - centre) * scale
    return mean + standard @ (right @ (best[:, None] * across))


def _decomposed(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left vectors, singular values and right vectors, by the smaller of the two Gram matrices; none that is 0."""
    tall = len(inputs) > inputs.shape[1]
    squares, vectors = torch.linalg.eigh(inputs.T @ inputs if tall else inputs @ inputs.T)
    there = squares > 1e-10 * squares.max() if len(squares) else squares > 0
    values, vectors = squares[there].sqrt(), vectors[:, there]
    other = (inputs if tall else inputs.T) @ (vectors / values)
    return (other, values, vectors) if tall else (vectors, values, other)
