"""Transfer as data: examples, ways of training, what a model and a data set have in common, plans, what trials gave."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec
import torch

from .freezespec import FreezeSpec, Phase
from .table import Table, shorten
from .tensors import TensorSpec

Start = Literal["pretrained", "scratch"]
SIMILAR, DIFFERENT, AMBIGUOUS = "similar", "different", "ambiguous"


@dataclass(frozen=True, eq=False)
class Examples:
    """A labelled data set in memory.

    Attributes:
        inputs: what the model takes, one row an example: a tensor [examples, ...], or such tensors by the names of the
            arguments of its forward.
        labels: int64 [examples], from 0 to the number of classes less 1.
        classes: their names, in the order of the labels.
        title: what was read.
        notes: what was changed or left out while it was read, in sentences.
    """

    inputs: torch.Tensor | Mapping[str, torch.Tensor]
    labels: torch.Tensor
    classes: tuple[str, ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: torch.Tensor) -> Examples:
        """Some of the examples, in that order."""
        return self._each(lambda tensor: tensor[places])

    def to(self, device: torch.device) -> Examples:
        """All of them on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Examples:
        if isinstance(self.inputs, torch.Tensor):
            inputs: Any = change(self.inputs)
        else:
            inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        return Examples(inputs, change(self.labels), self.classes, self.title, self.notes)

    def batches(self, size: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """(inputs, labels) of so many examples at a time, in order."""
        for start in range(0, len(self), size):
            part = self.take(torch.arange(start, min(start + size, len(self))))
            yield part.inputs, part.labels

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """How many examples each class has."""
        return tuple(torch.bincount(self.labels, minlength=len(self.classes)).tolist())

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """The inputs by name; of a single one the name is empty."""
        return {"": self.inputs} if isinstance(self.inputs, torch.Tensor) else self.inputs

    @property
    def shape(self) -> str:
        """The inputs of one example: `float32[1, 8, 8]`, or several by name."""
        specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape[1:])) for name, tensor in self.tensors.items()}
        return ", ".join(f"{name} {spec}".strip() for name, spec in specs.items())

    def table(self) -> Table:
        """What there is of it."""
        facts = (
            ("examples", f"{len(self):,}"),
            ("classes", f"{len(self.classes):,}: {shorten(self.classes)}"),
            ("inputs", f"{self.shape} each"),
        )
        return Table(self.title or "examples", facts, notes=self.notes)

    def __str__(self) -> str:
        return str(self.table())


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One stretch of a way of training.

    Attributes:
        train: selector of what is trained, as in `Phase`.
        share: of the epochs.
        rate: learning rate relative to the base rate of the recipe.
        rates: selector -> another relative rate for what it chooses; the first one counts.
        layer_decay: as in `Phase`.
    """

    train: str | list[str]
    share: float = 1.0
    rate: float = 1.0
    rates: dict[str, float] = {}
    layer_decay: float = 1.0


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way of training a model on new data.

    Attributes:
        name: unique among the candidates, e.g. `head`, `lp-ft`, `blocks 2-4`, `full`, `scratch`.
        stages: one after another.
        start: from the pretrained weights, or from fresh ones.
    """

    name: str
    stages: list[Stage]
    start: Start = "pretrained"

    def __post_init__(self) -> None:
        wrong = [stage.share for stage in self.stages if not 0 < stage.share < math.inf]
        if not self.stages or wrong:
            what = f"a stage with the share {wrong[0]}" if wrong else "no stages"
            raise ValueError(f"the candidate {self.name!r} has {what}; it needs one at least, and shares above 0")

    def freeze_spec(self, epochs: int) -> FreezeSpec:
        """What is frozen when, in so many epochs; each stage but the last has at least one, and so has the last."""
        total, phases, left = sum(stage.share for stage in self.stages), [], epochs
        for number, stage in enumerate(self.stages):
            after = len(self.stages) - number - 1
            count = left if not after else max(1, min(left - after, round(epochs * stage.share / total)))
            if count < 1:
                continue  # fewer epochs than stages: the first ones go without
            left -= count
            rates: dict[str, float | str] = {**stage.rates, **({} if stage.rate == 1 else {"*": stage.rate})}
            phases.append(
                Phase(stage.train, epochs=count if after else None, rates=rates, layer_decay=stage.layer_decay)
            )
        return FreezeSpec(phases)


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How training goes, whatever is trained: the same for every candidate.

    Attributes:
        epochs: how many times all examples are seen.
        batch: examples in a step.
        lr: the base learning rate of AdamW; it falls to 0 along half a cosine.
        weight_decay: of AdamW.
    """

    epochs: int = 20
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for key, value in (("epochs", self.epochs), ("batch", self.batch)):
            if type(value) is not int or value < 1:
                raise ValueError(f"recipe.{key} is {value!r}; it is a whole number above 0")
        for key, rate, low in (("lr", self.lr, "above 0"), ("weight_decay", self.weight_decay, "0 or more")):
            if not math.isfinite(rate) or rate < 0 or (rate == 0 and low == "above 0"):
                raise ValueError(f"recipe.{key} is {rate!r}; it is {low}")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one training gave.

    Attributes:
        candidate: its name.
        seed: of the split, the fresh weights and the order of the examples.
        places: int64, the examples held out, by their place in the data set.
        hits: bool, whether the model gets each of these right at the end.
        losses: its cross-entropy for each of these, in nats.
        train_loss: cross-entropy on the training examples at the end, in eval mode.
        train_accuracy: likewise, 0 to 1.
        seconds: of training, with the evaluation at the end.
        rows: one record an epoch, as a history has them.
    """

    candidate: str
    seed: int
    places: torch.Tensor
    hits: torch.Tensor
    losses: torch.Tensor
    train_loss: float
    train_accuracy: float
    seconds: float
    rows: tuple[Mapping[str, float], ...] = ()

    @property
    def score(self) -> float:
        """Accuracy on the examples held out."""
        return float(self.hits.double().mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy on the examples held out."""
        return float(self.losses.double().mean())


@dataclass(frozen=True, slots=True)
class Signal:
    """One piece of evidence on how much a pretrained model and a data set have in common.

    Attributes:
        code: which, e.g. `linear-probe`.
        value: the figure.
        low, high: ends of its interval, about 95 %; equal to the value where there is none.
        says: `similar`, `different`, or `ambiguous` where the interval leaves it open or it is a hint only.
        weight: what it counts in the verdict; 0 for a hint.
        message: what it means, in a sentence.
        details: figures by block, and the like, as JSON could say them.
    """

    code: str
    value: float
    low: float
    high: float
    says: str
    weight: float
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)
