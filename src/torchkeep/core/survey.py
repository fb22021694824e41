"""What a data set is, beside the model that is to learn it: facts, and whether more of it would help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .table import Table, human_count, shorten

HELPS, LITTLE, OPEN = "helps", "adds little", "open"
_POINT = 0.01


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a probe comes with so many examples.

    Attributes:
        examples: it learned from.
        accuracy: on others, 0 to 1.
        stderr: its standard error.
    """

    examples: int
    accuracy: float
    stderr: float


@dataclass(frozen=True, slots=True)
class Growth:
    """Whether more data still helps, by a linear probe on the model's features as they are.

    Attributes:
        points: with a quarter of the examples, a half, and all that are not tested on.
        gain: of accuracy from the half to all, on the same tests: what doubling the data brought last.
        stderr: its standard error.
        runs: trainings with other examples held out, whose mean and scatter these are.
        says: `helps`, `adds little` where doubling brings less than a point, or `open` where the error leaves it so.
    """

    points: tuple[Reached, ...]
    gain: float
    stderr: float
    runs: int
    says: str

    @property
    def message(self) -> str:
        """In a sentence."""
        told = f"doubling them brought {100 * self.gain:+.1f} points last, give or take {200 * self.stderr:.1f}"
        return f"{told}: {_SAYS[self.says]}"


_SAYS = {
    HELPS: "more data helps",
    LITTLE: "more data adds little to what these features tell",
    OPEN: "open whether more data helps",
}


def judged(gain: float, stderr: float) -> str:
    """What a gain and its standard error say, at two standard errors."""
    if gain + 2 * stderr < _POINT:
        return LITTLE
    return HELPS if gain - 2 * stderr > 0 else OPEN


@dataclass(frozen=True, slots=True)
class Stem:
    """The first layer of a model, and what it takes.

    Attributes:
        name: of the layer.
        kind: its class.
        what: `channels`, `features`, `tokens`, or empty where its class does not say.
        count: of these; 0 where its class does not say.
    """

    name: str
    kind: str
    what: str = ""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    """A data set beside a model: `print(tk.survey(model, "photos"))`.

    Attributes:
        title: of the data set.
        model: class of the model.
        examples: how many.
        classes: their names.
        counts: examples of each class.
        balance: the smallest count over the largest.
        commonest: share of the largest class, which is the accuracy of always naming it.
        input: dtype and shape of one example; several by name.
        channels: of images [n, channels, height, width] or volumes; None for other inputs.
        stem: the first layer of the model; None where the model has no parameters.
        misfit: why the model cannot take the examples as they are; empty where it can.
        head: name of the layer that gives the scores, empty if that is the model itself; None where none was found.
        outputs: scores that the model gives; None where nothing says.
        overlap: class -> output of the old head, for classes that are among the old labels; None if these are unknown.
        parameters: elements, tied ones counted once.
        parameters_per_example: of all parameters.
        duplicates: examples whose inputs are, bit for bit, those of an earlier one.
        contradictions: groups of equal inputs with different labels.
        same: places of equal inputs, contradictions first, at most 20 groups.
        growth: whether more data still helps; None where it cannot be estimated, which the notes explain.
        notes: what else there is to know, in sentences.
    """

    title: str
    model: str
    examples: int
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    balance: float
    commonest: float
    input: str
    channels: int | None
    stem: Stem | None
    misfit: str
    head: str | None
    outputs: int | None
    overlap: Mapping[str, int] | None
    parameters: int
    parameters_per_example: float
    duplicates: int
    contradictions: int
    same: tuple[tuple[int, ...], ...] = ()
    growth: Growth | None = None
    notes: tuple[str, ...] = field(default=())

    def table(self) -> Table:
        """The facts, and a row for each number of examples that the probe learned from."""
        per = self.examples / max(len(self.classes), 1)
        stem = self.stem
        facts = (
            ("examples", f"{self.examples:,} in {len(self.classes):,} classes, {per:,.0f} a class on average"),
            ("balance", f"{min(self.counts):,} to {max(self.counts):,} a class; the commonest is {self.commonest:.1%}"),
            ("duplicates", self._duplicates()),
            ("inputs", f"{self.input} each"),
            ("stem", f"{stem.name or '(itself)'}, {stem.kind}{_amount(stem)}" if stem else ""),
            ("misfit", self.misfit),
            ("head", self._head()),
            ("old labels", self._overlap()),
            (
                "parameters",
                f"{human_count(self.parameters)}, {_ratio(self.parameters_per_example)} for each example",
            ),
            ("more data", self.growth.message if self.growth else ""),
        )
        return Table(
            title=f"{self.title or 'examples'} for {self.model}",
            facts=facts,
            columns=("learned from", "probe's accuracy", "standard error") if self.growth else (),
            rows=tuple(
                (f"{point.examples:,}", f"{point.accuracy:.1%}", f"{point.stderr:.1%}") for point in self._points()
            ),
            notes=self.notes,
        )

    def _points(self) -> tuple[Reached, ...]:
        return self.growth.points if self.growth else ()

    def _head(self) -> str:
        name = "not found" if self.head is None else self.head or "(itself)"
        return name if self.outputs is None else f"{name}, {self.outputs:,} outputs"

    def _duplicates(self) -> str:
        if not self.duplicates:
            return "none"
        told = f"{self.duplicates:,} examples are equal to earlier ones"
        return f"{told}; {self.contradictions:,} groups of equals differ in label" if self.contradictions else told

    def _overlap(self) -> str:
        if self.overlap is None:
            return ""
        names = f": {shorten(self.overlap, 5)}" if self.overlap else ""
        return f"{len(self.overlap):,} of {len(self.classes):,} classes are among them{names}"

    def __str__(self) -> str:
        return str(self.table())


def _amount(stem: Stem) -> str:
    return f" of {stem.count:,} {stem.what.removesuffix('s') if stem.count == 1 else stem.what}" if stem.what else ""


def _ratio(value: float) -> str:
    return human_count(value) if value >= 10 else f"{value:.2g}"
