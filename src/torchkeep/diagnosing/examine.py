"""Reading curves: every check looks, one verdict is drawn, and remedies follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from ..checks import CHECKS
from ..core.checkpoint import SEVERITIES
from ..core.curves import Curves, Setting
from ..core.diagnosis import Check, Diagnosis
from ..core.registry import make_part
from .remedies import remedies_for
from .verdict import verdict_of


def examine(curves: Curves, setting: Setting, checks: Iterable[str | Check] | None = None) -> Diagnosis:
    """The diagnosis of some curves.

    Args:
        curves: what was measured.
        setting: what is known beside.
        checks: names of checks, or checks; all that there are if None.
    """
    if curves.val_metric is not None and not curves.val_metric.mode:  # nobody says which way is better
        curves = replace(curves, train_metric=None, val_metric=None)
    parts: list[Check] = [make_part(CHECKS, one, "check") for one in (CHECKS if checks is None else checks)]
    looked = [check.look(curves, setting) for check in parts]
    signs = sorted((one for one in looked if one is not None), key=lambda one: -SEVERITIES.index(one.severity))
    found = {one.code: one for one in signs}
    verdict = verdict_of(signs, curves, setting)
    decided = [found[code].since for code in verdict.why if code in found and found[code].since is not None]
    return Diagnosis(
        curves.title,
        verdict.name,
        cause=verdict.cause,
        confidence=verdict.sure,
        since=decided[0] if decided else None,
        unit=curves.unit,
        findings=tuple(signs),
        remedies=remedies_for(verdict, found, curves, setting),
        notes=curves.notes,
    )
