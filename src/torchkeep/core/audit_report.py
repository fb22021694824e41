"""What an audit found, and what a comparison with earlier bits found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .names import fold
from .table import Table, shorten


@dataclass(frozen=True)
class Observation:
    """Something about a model and its optimizer that is probably not meant.

    Attributes:
        code: stable and short, e.g. `frozen-in-optimizer`.
        severity: `info`, `warning`, or `danger` where values will change that should not, or the reverse.
        message: one sentence.
        names: of the parameters, buffers, modules or groups it is about.
        hint: what to do.
    """

    code: str
    severity: str
    message: str
    names: tuple[str, ...] = ()
    hint: str = ""

    def __str__(self) -> str:
        about = f": {shorten((name for name, _ in fold(self.names)), 4)}" if self.names else ""
        return f"{self.severity}: {self.message}{about} [{self.code}]"


@dataclass(frozen=True)
class AuditReport:
    """What is odd about a model and its optimizer.

    Attributes:
        findings: the worst first.
        trainable, total: elements that require gradients, and all.
    """

    findings: tuple[Observation, ...] = ()
    trainable: int = 0
    total: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is nothing but information."""
        return all(one.severity == "info" for one in self.findings)

    @property
    def codes(self) -> frozenset[str]:
        """The codes of all findings."""
        return frozenset(one.code for one in self.findings)

    def table(self) -> Table:
        """One row a finding."""
        rows = tuple(
            (one.severity, one.code, one.message, shorten((name for name, _ in fold(one.names)), 4), one.hint)
            for one in self.findings
        )
        return Table(
            title="audit: " + (f"{len(rows)} findings" if rows else "nothing found"),
            facts=(("trainable", f"{self.trainable:,} of {self.total:,} elements"),),
            columns=("severity", "code", "what", "where", "try"),
            rows=rows,
        )

    def __str__(self) -> str:
        return str(self.table())


@dataclass(frozen=True)
class Fingerprint:
    """The bits of a model at one moment.

    Attributes:
        digests: BLAKE3 of every parameter and buffer by name, those that are not saved too.
    """

    digests: Mapping[str, str]


@dataclass(frozen=True)
class FrozenReport:
    """A frozen part that is bit for bit what it was.

    Attributes:
        parameters, buffers: names that were compared and are the same.
        unchecked: names of frozen buffers that what it was compared with does not have.
    """

    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = (
            f"{len(self.parameters)} frozen parameters and {len(self.buffers)} buffers are bit for bit what they were"
        )
        return text + (
            f"; {len(self.unchecked)} could not be compared: {shorten(self.unchecked)}" if self.unchecked else ""
        )
