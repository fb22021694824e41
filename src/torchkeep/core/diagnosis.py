"""What the curves of a run say: findings with their evidence, one verdict, and what to do, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from .checkpoint import Finding
from .curves import Curves, Setting
from .table import Table

VERDICTS = (
    "cannot-say",
    "underfit",
    "overfit",
    "over-confident",
    "generalisation-gap",
    "unstable",
    "healthy",
)
CAUSES = ("too-short", "capacity", "optimisation")


@dataclass(frozen=True, slots=True)
class Sign(Finding):
    """A finding in curves.

    Attributes:
        evidence: the figures that it rests on, by name.
        since: the epoch or step from which on it holds; None for the whole run.
    """

    evidence: Mapping[str, Any] = field(default_factory=dict)
    since: float | None = None


class Check(Protocol):
    """Looks for one thing in curves.

    Attributes:
        code: of the sign it gives, e.g. `still-falling`.
    """

    code: str

    def look(self, curves: Curves, setting: Setting) -> Sign | None:
        """The sign, or None where the curves do not show it or cannot tell."""
        ...


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to try.

    Attributes:
        code: stable and short, e.g. `train-longer`.
        action: what to do, in one sentence, with the call or the value where there is one.
        reason: why, with the figures.
    """

    code: str
    action: str
    reason: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is the matter with a run: `print(tk.diagnose(history))`.

    Attributes:
        title: what was read.
        verdict: one of `cannot-say`, `underfit`, `overfit`, `over-confident`, `generalisation-gap`, `unstable` and
            `healthy`.
        cause: of an underfit: `too-short`, `capacity` or `optimisation`; else empty.
        confidence: the probability, 0 to 1, that verdicts on such evidence turned out right.
        since: the epoch or step from which on it holds; None for the whole run.
        unit: of `since`: `epoch` or `step`.
        findings: the signs that were found, the gravest first.
        remedies: what to try, the most promising first.
        notes: what the history lacked or had too much of.
    """

    title: str
    verdict: str
    cause: str = ""
    confidence: float = 0.0
    since: float | None = None
    unit: str = "epoch"
    findings: tuple[Sign, ...] = ()
    remedies: tuple[Remedy, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """The verdict in words that are as strong as the evidence."""
        if self.verdict == "cannot-say":
            return "cannot say"
        words = next(word for least, word in _WORDS if self.confidence >= least)
        cause = f", {self.cause.replace('-', ' ')}" if self.cause else ""
        return f"{words} {self.verdict}{cause}"

    def table(self) -> Table:
        """Findings and what to do."""
        since = "" if self.since is None else f"since {self.unit} {self.since:g}"
        tries = enumerate(self.remedies, start=1)
        return Table(
            title=self.title,
            facts=(("verdict", self.said), ("since", since)),
            columns=("", "what", "why"),
            rows=(
                *((one.severity, one.code, one.message) for one in self.findings),
                *((f"try {place}", one.code, f"{one.action}: {one.reason}") for place, one in tries),
            ),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())


_WORDS = ((0.95, "almost certainly"), (0.8, "very likely"), (0.6, "likely"), (0.0, "perhaps"))
