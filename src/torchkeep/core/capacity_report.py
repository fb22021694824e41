"""How much a model can hold, layer by layer, and what more would cost."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table, human_count


@dataclass(frozen=True, slots=True)
class LayerShare:
    """One layer that owns parameters itself.

    Attributes:
        path: of the module.
        class_name: its class, without the package.
        parameters, trainable: elements that it owns; tied ones stand at their first layer.
        width: what it gives to the next layer: features or channels; None where its class does not say.
    """

    path: str
    class_name: str
    parameters: int
    trainable: int
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Lever:
    """One way to have more, or less.

    Attributes:
        name: `wider` or `deeper`.
        what: what would be changed.
        factor: parameters of the model after it, as a multiple of those now.
    """

    name: str
    what: str
    factor: float


@dataclass(frozen=True, slots=True)
class CapacityReport:
    """A model's capacity: `print(tk.capacity(model))`.

    Attributes:
        title: class of the model.
        layers: those that own parameters, in the order of the model.
        levers: what more width or depth would cost.
    """

    title: str
    layers: tuple[LayerShare, ...]
    levers: tuple[Lever, ...] = ()

    @property
    def parameters(self) -> int:
        """Elements of all parameters, tied ones counted once."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Elements that are trained."""
        return sum(layer.trainable for layer in self.layers)

    def table(self) -> Table:
        """One row a layer."""
        total = max(self.parameters, 1)
        return Table(
            title=self.title,
            facts=(
                ("parameters", human_count(self.parameters)),
                ("trainable", f"{human_count(self.trainable)} ({self.trainable / total:.1%})"),
                *((lever.name, f"{lever.what}: {lever.factor:.2f} x the parameters") for lever in self.levers),
            ),
            columns=("layer", "class", "parameters", "share", "trained", "width"),
            rows=tuple(
                (
                    layer.path or "(the model itself)",
                    layer.class_name,
                    human_count(layer.parameters),
                    f"{layer.parameters / total:.1%}",
                    human_count(layer.trainable),
                    "" if layer.width is None else str(layer.width),
                )
                for layer in self.layers
            ),
        )

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True, slots=True)
class OverfitReport:
    """Whether a model can learn a few examples by heart.

    Attributes:
        examples: in the batch.
        steps: that were taken.
        start, end: loss before the first step and after the last.
        signal: 1 - end / start.
        fits: whether the loss came below the goal.
        goal: of the loss.
    """

    examples: int
    steps: int
    start: float
    end: float
    goal: float

    @property
    def signal(self) -> float:
        """The share of the first loss that was learned away."""
        return 1 - self.end / self.start if self.start else 0.0

    @property
    def fits(self) -> bool:
        """Whether the loss came to the goal; a loss that is no number did not."""
        return self.end <= self.goal

    def table(self) -> Table:
        """What happened."""
        verdict = "learned by heart" if self.fits else "not learned: a fault, too little capacity, or a wrong rate"
        return Table(
            title=f"{self.examples} examples",
            facts=(
                ("verdict", verdict),
                ("loss", f"{self.start:.4g} before, {self.end:.4g} after {self.steps} steps (goal {self.goal:.4g})"),
            ),
        )

    def __str__(self) -> str:
        return str(self.table())
