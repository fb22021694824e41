"""What is trained when: a freeze spec as data, readable and writable as YAML.

# torchkeep freeze spec
phases:
- train: head
  epochs: 3
- train: last 2
  epochs: 5
  rates: {last 2 but head: lr/2.6}
- train: '*'
  layer_decay: 0.8
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..errors import CorruptCheckpointError
from .names import Selector
from .table import Table
from .written import from_yaml, to_yaml

Policy = Literal["frozen", "live"]
_FACTOR = re.compile(r"\s*(?:(?:lr\s*)?(?P<sign>[*/])\s*)?(?P<first>[0-9.eE+-]+)(?:\s*/\s*(?P<second>[0-9.eE+-]+))?\s*")


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One stretch of training.

    Attributes:
        train: selector of what is trained, as `tk.Selector` reads it, or a list of them; everything else is frozen.
        epochs: how many epochs it lasts; None, for the last phase only, means until the end.
        rates: selector -> learning rate relative to the base rate, as a number or as `lr/2.6`, `lr*0.1`, `1/3`. The
            first selector that chooses a parameter counts; others have 1.
        layer_decay: factor on the rate for each block further away from the head, 1 for none.
    """

    train: str | list[str]
    epochs: int | None = None
    rates: dict[str, float | str] = {}
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs is not None and (type(self.epochs) is not int or self.epochs < 1):
            raise ValueError(f"epochs is {self.epochs!r}; a phase lasts at least one, and whole ones")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        listed = self.train if isinstance(self.train, list) else [self.train]
        odd = [one for one in listed if not isinstance(one, str)]
        if odd or not listed:
            raise ValueError(f"train is {self.train!r}; write selectors as text, a regular expression as 're:...'")
        for selection in (self.train, *self.rates):
            _ = Selector(selection)._terms  # refuses what cannot be read
        for rate in self.rates.values():
            factor(rate)

    @property
    def selector(self) -> Selector:
        """What is trained."""
        return Selector(self.train)


class FreezeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is frozen, and when it no longer is.

    Attributes:
        phases: one after another; the last one goes on until the end.
        norm: what running statistics of normalisation layers do in frozen parts: stand still (`frozen`) or go on
            (`live`).
        dropout: what dropout does in frozen parts: nothing (`frozen`) or what it does elsewhere (`live`).
        decay_norms_and_biases: whether weight decay applies to parameters of normalisation layers and to biases.
    """

    phases: list[Phase]
    norm: Policy = "frozen"
    dropout: Policy = "frozen"
    decay_norms_and_biases: bool = True

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases is empty; a spec has at least one")
        open_ended = [number for number, phase in enumerate(self.phases[:-1], start=1) if phase.epochs is None]
        if open_ended:
            raise ValueError(f"phase {open_ended[0]} of {len(self.phases)} has no epochs; only the last may go without")

    def phase_at(self, epoch: int) -> int:
        """The number of the phase, from 0, that is in force in an epoch, from 0."""
        for number, phase in enumerate(self.phases[:-1]):
            epoch -= phase.epochs or 0
            if epoch < 0:
                return number
        return len(self.phases) - 1

    def to_yaml(self) -> str:
        """The spec as text that a person can review and `read` takes back."""
        return to_yaml(self)

    @classmethod
    def from_yaml(cls, text: str | bytes, *, file: str = "") -> FreezeSpec:
        """A spec from its text.

        Raises:
            SelectorError: it is no YAML, has an unknown member, or says something impossible; the message says where.
        """
        members = "phases (train, epochs, rates, layer_decay), norm, dropout and decay_norms_and_biases"
        return from_yaml(text, cls, what="freeze spec", members=members, file=file)

    def table(self) -> Table:
        """One row a phase."""
        rows, begin = [], 0
        for number, phase in enumerate(self.phases, start=1):
            end = "" if phase.epochs is None or number == len(self.phases) else str(begin + phase.epochs - 1)
            rates = ", ".join(f"{selection}: {rate}" for selection, rate in phase.rates.items())
            decay = "" if phase.layer_decay == 1 else f"{phase.layer_decay:g} a block"
            rows.append((str(number), f"{begin} to {end}".strip(), str(phase.selector), rates, decay))
            begin += phase.epochs or 0
        decays = "on all parameters" if self.decay_norms_and_biases else "not on norms and biases"
        return Table(
            title=f"freeze spec: {len(self.phases)} phases",
            facts=(("norm", self.norm), ("dropout", self.dropout), ("weight decay", decays)),
            columns=("phase", "epochs", "trains", "rates", "layer decay"),
            rows=tuple(rows),
        )

    def __str__(self) -> str:
        return str(self.table())


class FreezeState(msgspec.Struct, frozen=True):
    """Where a model stands in its spec.

    Attributes:
        spec: what was asked for.
        phase: the number of the phase in force, from 0.
    """

    spec: FreezeSpec
    phase: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.phase < len(self.spec.phases):
            raise ValueError(f"there is no phase {self.phase}")


@dataclass(frozen=True)
class Frozen:
    """How a model was frozen when it was saved.

    Attributes:
        held: paths of the modules that were held in eval mode.
        still: names of the parameters that did not require gradients.
        state: the spec it was frozen by, if there was one.
    """

    held: tuple[str, ...] = ()
    still: frozenset[str] = frozenset()
    state: FreezeState | None = None

    def __bool__(self) -> bool:
        return bool(self.held or self.still or self.state)


def state_from(value: Any) -> FreezeState:
    """A freeze state from plain values, as a manifest has it.

    Raises:
        CorruptCheckpointError: it is none.
    """
    try:
        return msgspec.convert(value, FreezeState)
    except msgspec.ValidationError as error:
        raise CorruptCheckpointError(f"the freeze spec cannot be read: {error}") from error


def factor(rate: float | str) -> float:
    """What a rate multiplies the base rate with.

    >>> factor("lr/2"), factor("lr*0.1"), factor("1/4"), factor(3)
    (0.5, 0.1, 0.25, 3.0)

    Raises:
        ValueError: it cannot be read, or is not above 0.
    """
    if isinstance(rate, str):
        found = _FACTOR.fullmatch(rate)
        if found is None or (found["sign"] and found["second"]):
            raise ValueError(f"the rate {rate!r} cannot be read; write a number, 'lr/2.6' or 'lr*0.1'")
        try:
            value = float(found["first"])
            if found["second"]:
                value /= float(found["second"])
            elif found["sign"] == "/":
                value = 1 / value
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"the rate {rate!r} cannot be read; write a number, 'lr/2.6' or 'lr*0.1'") from None
    else:
        value = float(rate)
    if not 0 < value < float("inf"):
        raise ValueError(f"the rate {rate!r} is not above 0; to keep something from training, leave it out of `train`")
    return value
