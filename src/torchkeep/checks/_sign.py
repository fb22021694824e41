"""Making a sign out of a check and the figures it saw."""

from __future__ import annotations

from typing import Any

from ..core.diagnosis import Sign


def sign(check: Any, severity: str, *, since: float | None = None, **evidence: Any) -> Sign:
    """The sign of a check: the first paragraph of its docstring with figures and words put in; figures are evidence."""
    text = " ".join((check.__doc__ or "").partition("\n\n")[0].split())
    plain = {name: _rounded(value) for name, value in evidence.items()}
    figures = {name: value for name, value in plain.items() if not isinstance(value, str)}
    return Sign(check.code, severity, text.format(**plain), evidence=figures, since=since)


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
