"""What a scan found: each file with its format and its findings, and the worst of them all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .checkpoint import SEVERITIES, Finding
from .table import Table

NONE = "none"
_SHOWN = 20  # findings of one file in a table; all of them are in the report


def severity_of(findings: tuple[Finding, ...]) -> str:
    """The highest severity among findings, `none` without any."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default=NONE)


@dataclass(frozen=True)
class ScannedFile:
    """One file of a scan.

    Attributes:
        path: the file.
        format: its format; empty where it could not be opened.
        what: what it is where it could not be opened: damaged, too costly, not a checkpoint and what instead.
        findings: what is to be said about it, the worst first.
    """

    path: str
    format: str = ""
    what: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def severity(self) -> str:
        """The highest severity among the findings, `none` without any."""
        return severity_of(self.findings)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """File, severity, what it is and a finding: all dangers and warnings, else one of what is worth knowing."""
        kind = self.format or self.what
        if not self.findings:
            return [(self.path, NONE, kind, "")]
        serious = [finding for finding in self.findings if finding.severity != "info"]
        shown = serious[:_SHOWN] or self.findings[:1]
        rows = [("", one.severity, "", f"{one.message} ({one.place})" if one.place else one.message) for one in shown]
        rows[0] = (self.path, rows[0][1], kind, rows[0][3])
        more = len(serious or self.findings) - len(shown)
        return [*rows, ("", "", "", f"and {more:,} more")] if more else rows


@dataclass(frozen=True)
class ScanReport:
    """What a scan of files and folders found.

    Attributes:
        files: each file, in the order in which they were met.
        notes: what was not looked at, and why.
    """

    files: tuple[ScannedFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        """The highest severity of all files, `none` where nothing was found."""
        return severity_of(tuple(finding for file in self.files for finding in file.findings))

    @property
    def summary(self) -> str:
        """How many files there are of each severity, in one line."""
        counts = Counter(file.severity for file in self.files)
        parts = [f"{counts[level]:,} {level}" for level in reversed(SEVERITIES) if counts[level]]
        other = sum(not file.format for file in self.files if file.severity == NONE)
        if counts[NONE] or not parts:
            parts.append(f"{counts[NONE]:,} quiet" + (f" ({other:,} of them no checkpoints)" if other else ""))
        files = "file" if len(self.files) == 1 else "files"
        return f"{len(self.files):,} {files}: {', '.join(parts)}"

    def reaches(self, threshold: str) -> bool:
        """Whether something is at least as severe as `info`, `warning` or `danger`."""
        return self.severity != NONE and SEVERITIES.index(self.severity) >= SEVERITIES.index(threshold)

    def table(self, *, everything: bool = False) -> Table:
        """The files with findings, the worst first; with `everything` the quiet ones too."""
        levels = (NONE, *SEVERITIES)
        shown = [file for file in self.files if everything or file.findings]
        shown.sort(key=lambda file: -levels.index(file.severity))
        rows = tuple(row for file in shown for row in file.rows())
        columns = ("file", "severity", "what", "finding") if rows else ()
        return Table(title=self.summary, columns=columns, rows=rows, notes=self.notes)

    def __str__(self) -> str:
        return str(self.table())
