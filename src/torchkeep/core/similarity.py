"""What a pretrained model sees in new examples, the evidence that this gives, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeVar

import torch

from .probing import probe_accuracy
from .table import Table
from .transfer import AMBIGUOUS, DIFFERENT, SIMILAR, Signal

T = TypeVar("T")

SURE = 1.96  # standard errors on each side of an interval of about 95 %
_LEAST, _TIMES = 1.0, 2.0  # what a verdict needs: so much weight for it, and so many times the weight against it


@dataclass(frozen=True, eq=False)
class Norm:
    """What a batch normalisation layer expects of its input, and what it got.

    Attributes:
        name: dotted path of the layer.
        mean, var: float64 [channels], its running statistics: those of the data that it was trained on.
        halves: float64 [2, 2, channels]: of two halves of the examples, the mean and the variance.
    """

    name: str
    mean: torch.Tensor
    var: torch.Tensor
    halves: torch.Tensor


@dataclass(frozen=True, eq=False)
class Glimpse:
    """What one network gave in one pass.

    Attributes:
        features: of each block, what comes out of it, [examples, channels], averaged over all other axes.
        answers: what the head gives, [examples, old classes]; None where that is no such tensor.
    """

    features: tuple[torch.Tensor, ...]
    answers: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class Seen:
    """What some examples gave in a pretrained model, and in copies of it with fresh weights.

    Attributes:
        labels: int64 [examples].
        classes: their names.
        blocks: names of what the features come from, in the order of the forward; the last is what the head reads.
        model: what the model gave.
        copies: what each copy gave.
        old_labels: names of the old classes by index; empty if they are unknown.
        norms: batch normalisation layers with running statistics, in the order of the forward.
        seed: of the folds of probes.
    """

    labels: torch.Tensor
    classes: tuple[str, ...]
    blocks: tuple[str, ...]
    model: Glimpse
    copies: tuple[Glimpse, ...]
    old_labels: tuple[str, ...] = ()
    norms: tuple[Norm, ...] = ()
    seed: int = 0

    def probed(self, features: torch.Tensor) -> torch.Tensor:
        """Whether a linear probe on some features gets each example right: float64 [examples]."""
        return probe_accuracy(features, self.labels, seed=self.seed).double()

    @cached_property
    def probes(self) -> torch.Tensor:
        """Hits of a linear probe on each block: float64 [1 + copies, blocks, examples]; the model comes first."""
        return torch.stack([torch.stack([self.probed(one) for one in net.features]) for net in self.nets])

    @property
    def nets(self) -> tuple[Glimpse, ...]:
        """The model, then its copies."""
        return (self.model, *self.copies)


class Sense(Protocol):
    """Measures one kind of likeness.

    Attributes:
        code: of the signal it gives, e.g. `linear-probe`.
    """

    code: str

    def measure(self, seen: Seen) -> Signal | None:
        """The signal, or None where it does not apply."""
        ...


@dataclass(frozen=True, slots=True)
class Similarity:
    """Whether the pretrained weights of a model will help on new data: `print(tk.similarity(model, examples))`.

    Attributes:
        verdict: `similar`: training from them will do better than from fresh weights; `different`: it will not;
            `ambiguous`: the signals leave it open, and a sweep has to measure it.
        signals: the evidence.
        notes: what was left out or changed on the way.
    """

    verdict: str
    signals: tuple[Signal, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """The verdict, and a row a signal."""
        return Table(
            title="what the pretrained weights are worth here",
            facts=(("verdict", f"{self.verdict}: {_MEANINGS[self.verdict]}"),),
            columns=("signal", "value", "95 %", "says", "weight", "what it means"),
            rows=tuple(
                (one.code, f"{one.value:.3g}", _interval(one), one.says, f"{one.weight:g}", one.message)
                for one in self.signals
            ),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


_MEANINGS = {
    SIMILAR: "start from them",
    DIFFERENT: "fresh weights do as well or better",
    AMBIGUOUS: "it cannot be told without training; measure it",
}


def _interval(signal: Signal) -> str:
    return "" if signal.low == signal.high else f"{signal.low:.3g} to {signal.high:.3g}"


def verdict_of(signals: Iterable[Signal]) -> str:
    """What signals say together: one side has a weight of 1 at least, and twice that of the other."""
    weights = {SIMILAR: 0.0, DIFFERENT: 0.0, AMBIGUOUS: 0.0}
    for one in signals:
        weights[one.says] += one.weight
    for side, other in ((SIMILAR, DIFFERENT), (DIFFERENT, SIMILAR)):
        if weights[side] >= max(_LEAST, _TIMES * weights[other]):
            return side
    return AMBIGUOUS


def gain(hits: torch.Tensor) -> tuple[float, float]:
    """What the pretrained weights add to an accuracy, and its standard error, paired example by example.

    The error is that of the examples, and that of the copies: by how much one draw of fresh weights differs from the
    mean of a few others.

    Args:
        hits: float64 [1 + copies, examples], 0 or 1; the model comes first.
    """
    copies = hits[1:]
    paired = hits[0] - copies.mean(dim=0)
    variance = float(paired.var(correction=0)) / max(1, hits.shape[1] - 1)
    if len(copies) > 1:
        variance += float(copies.mean(dim=1).var()) * (1 + 1 / len(copies))
    return float(paired.mean()), math.sqrt(variance)


def signal_of_gain(
    code: str, hits: torch.Tensor, what: str, weight: float, details: Mapping[str, Any] | None = None
) -> Signal:
    """A signal whose value is what the pretrained weights add to an accuracy.

    Args:
        hits: as for `gain`.
        what: whose accuracy, for the message.
    """
    value, error = gain(hits)
    low, high = value - SURE * error, value + SURE * error
    says = SIMILAR if low > 0 else DIFFERENT if high < 0 else AMBIGUOUS
    accuracy, fresh = float(hits[0].mean()), float(hits[1:].mean())
    message = f"{what} is right for {accuracy:.0%} of the examples, and for {fresh:.0%} with fresh weights"
    return Signal(code, value, low, high, says, weight, message, details or {})


def compact(features: torch.Tensor) -> torch.Tensor:
    """Other coordinates of the same points: float64 [examples, at most examples], centred, at the same distances.

    They are turned at random, so that all of them vary about equally and none stands for a channel that hardly does:
    a probe that scales each to variance 1 then leaves the distances as they are. What is not finite counts as 0.
    """
    rows = torch.nan_to_num(features.detach().to("cpu", torch.float64), 0.0, 0.0, 0.0)
    rows = rows - rows.mean(dim=0)
    if rows.shape[1] > rows.shape[0]:
        strong, vectors = torch.linalg.eigh(rows @ rows.T)
        rows = vectors * strong.clamp_min(0).sqrt()
    turned: torch.Tensor = rows @ _turn(rows.shape[1])
    return turned


@lru_cache(maxsize=8)
def _turn(width: int) -> torch.Tensor:
    """A random rotation, the same at every call."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turn: torch.Tensor = torch.linalg.qr(drawn).Q
    return turn


def even(things: Sequence[T], most: int) -> list[T]:
    """At most so many of some things, evenly taken, the first and the last among them."""
    if len(things) <= most:
        return list(things)
    return [things[round(number * (len(things) - 1) / (most - 1))] for number in range(most)]
