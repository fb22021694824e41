"""How a pretrained model is brought to new data: a plan as data, readable and writable as YAML.

# torchkeep transfer plan
scenario: feature-extractor
name: head
start: pretrained
surgery:
- {verb: resize_head, name: classifier, classes: 10}
freeze:
  phases:
  - {train: classifier}
recipe: {epochs: 20, batch: 32, lr: 0.001, weight_decay: 0.01}
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..errors import CorruptCheckpointError
from .freezespec import FreezeSpec
from .operations import Operation
from .table import Table, shorten
from .transfer import Recipe, Start
from .written import from_yaml, to_yaml

Scenario = Literal["feature-extractor", "freeze-first", "from-scratch", "fine-tune-all", "ambiguous"]
SCENARIOS: dict[str, str] = {
    "feature-extractor": "replace the head and use the rest as feature extractor",
    "freeze-first": "freeze the first blocks and retrain the rest",
    "from-scratch": "train the architecture from fresh weights",
    "fine-tune-all": "start from the pretrained weights and train all",
    "ambiguous": "ambiguous: measure",
}
"""The four cases of the textbook by their names, and the one for which it has no answer."""

APPLIED = "plan"
"""The verb under which the record of surgery keeps a plan that was applied."""

_NEEDS = {"resize_head": "classes", "adapt_input": "channels", "reinitialise": ""}


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One change of the structure or of values, as `tk.surgery` makes it.

    Attributes:
        verb: `resize_head`, `adapt_input` or `reinitialise`.
        name: dotted path of the layer; empty for the one that the verb finds, or, to reinitialise, the whole model.
        classes: of the new head.
        channels: of the new stem.
    """

    verb: Literal["resize_head", "adapt_input", "reinitialise"]
    name: str = ""
    classes: int | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.verb not in _NEEDS:
            raise ValueError(f"there is no step {self.verb!r}; there are {', '.join(_NEEDS)}")
        for key, value in (("classes", self.classes), ("channels", self.channels)):
            wanted = key == _NEEDS[self.verb]
            if wanted and (type(value) is not int or value < 1):
                raise ValueError(f"{self.verb} needs {key}, a whole number above 0, and has {value!r}")
            if not wanted and value is not None:
                raise ValueError(f"{self.verb} takes no {key}")

    def __str__(self) -> str:
        said = f"{_NEEDS[self.verb]}={self.classes or self.channels}" if _NEEDS[self.verb] else ""
        where = self.name or ("(the model)" if not said else "")
        return " ".join(part for part in (self.verb, where, said) if part)


class TransferPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to change, what to start from, what to train when, at which rates: `tk.apply(plan, model)` does it.

    Attributes:
        scenario: the case that model and data are, as in `SCENARIOS`.
        name: what this way of training is called among the candidates, e.g. `lp-ft`.
        start: from the pretrained weights, or from fresh ones.
        surgery: what is changed first, in order.
        freeze: what is trained in which epochs, with the rates of parameter groups relative to that of the recipe.
        recipe: epochs, batch, base learning rate and weight decay.
        augmentation: what to do to the examples, in sentences.
        budget: what training costs, in sentences.
        why: what led to this plan, in sentences.
    """

    scenario: Scenario
    name: str = ""
    start: Start = "pretrained"
    surgery: list[Step] = []
    freeze: FreezeSpec
    recipe: Recipe = Recipe()
    augmentation: list[str] = []
    budget: list[str] = []
    why: list[str] = []

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ValueError(f"there is no scenario {self.scenario!r}; there are {', '.join(SCENARIOS)}")
        if self.start not in {"pretrained", "scratch"}:
            raise ValueError(f"start is {self.start!r}; it is 'pretrained' or 'scratch'")
        begins = sum(phase.epochs or 0 for phase in self.freeze.phases[:-1])
        if begins >= self.recipe.epochs:
            raise ValueError(
                f"the last phase begins in epoch {begins}, from 0, and there are {self.recipe.epochs} epochs"
            )
        if self.start == "scratch" and not any(phase.train in ("*", ["*"]) for phase in self.freeze.phases):
            raise ValueError("start is 'scratch' and no phase trains '*': fresh weights would never be trained")

    def to_yaml(self) -> str:
        """The plan as text that a person can review and `from_yaml` takes back."""
        return to_yaml(self)

    @classmethod
    def from_yaml(cls, text: str | bytes, *, file: str = "") -> TransferPlan:
        """A plan from its text.

        Raises:
            SelectorError: it is no YAML, has an unknown member, or says something impossible; the message says where.
        """
        return from_yaml(text, cls, what="transfer plan", members=", ".join(cls.__struct_fields__), file=file)

    @property
    def said(self) -> str:
        """The plan in a line."""
        start = "the pretrained weights" if self.start == "pretrained" else "fresh weights"
        return ": ".join(part for part in (self.name, f"train {trained(self.freeze)}, from {start}") if part)

    def table(self) -> Table:
        """The plan for people: one row a phase."""
        phases, recipe = self.freeze.table(), self.recipe
        training = f"{recipe.epochs} epochs, batches of {recipe.batch}, AdamW at {recipe.lr:g}"
        return Table(
            title=f"transfer plan: {self.said}",
            facts=(
                ("textbook", SCENARIOS[self.scenario]),
                *_column("surgery", map(str, self.surgery)),
                ("training", f"{training}, weight decay {recipe.weight_decay:g}"),
                *phases.facts,
                *_column("augmentation", self.augmentation),
                *_column("budget", self.budget),
            ),
            columns=phases.columns,
            rows=phases.rows,
            notes=tuple(self.why),
        )

    def __str__(self) -> str:
        return str(self.table())


def trained(spec: FreezeSpec) -> str:
    """What a spec trains, phase after phase, in words."""
    words = (
        "everything" if str(one.selector) == "*" else shorten(map(repr, one.selector.texts), 3) for one in spec.phases
    )
    return ", then ".join(words)


def plan_in(operations: tuple[Operation, ...]) -> TransferPlan | None:
    """The plan that was applied last to a whole model, out of the record of surgery; None if none was.

    Raises:
        CorruptCheckpointError: what stands there is none.
    """
    for operation in reversed(operations):
        if operation.verb == APPLIED and not operation.name:
            try:
                return msgspec.convert(operation.arguments, TransferPlan)
            except (msgspec.ValidationError, ValueError) as error:
                raise CorruptCheckpointError(f"the transfer plan cannot be read: {error}") from error
    return None


def as_operation(plan: TransferPlan) -> Operation:
    """A plan as the record of surgery keeps it."""
    return Operation(APPLIED, "", msgspec.to_builtins(plan))


def _column(label: str, lines: Any) -> list[tuple[str, str]]:
    """Lines as facts of which only the first has the label."""
    return [("" if place else label, line) for place, line in enumerate(lines)]
