"""From signs to one verdict. The order of the questions is the order of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign

_NOTHING = 0.1  # of what there is to learn: with less than this nothing was learned
_SMALL = 50  # examples in a validation set: the loss of fewer may rise by one of them
_STEEP = 40.0  # generalisation loss in percent that says something even on a small validation set


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the signs come to.

    Attributes:
        name, cause: as in `Diagnosis`.
        why: codes of the signs that decided.
        sure: 0 to 1, how far the deciding figures are beyond their thresholds.
    """

    name: str
    cause: str = ""
    why: tuple[str, ...] = ()
    sure: float = 0.5


def verdict_of(signs: Sequence[Sign], curves: Curves, setting: Setting) -> Verdict:
    """Decide; the first question that the signs answer is the verdict."""
    found = {one.code: one for one in signs}
    if "not-a-number" in found or "diverged" in found:
        return Verdict("unstable", why=_among(found, "not-a-number", "diverged"), sure=0.97)
    if "too-few-points" in found:
        return Verdict("cannot-say", why=("too-few-points",))
    if curves.train_loss is None and curves.val_loss is None:
        return Verdict("cannot-say")
    if "low-signal" in found:
        return _underfit(found)
    if "rate-too-high" in found:
        return Verdict("unstable", why=("rate-too-high",), sure=0.7)
    if curves.val_loss is None:
        return Verdict("cannot-say")
    if "overfitting" in found:
        return _overfit(found["overfitting"], setting)
    if "over-confident" in found:
        return _over_confident(found["over-confident"], setting)
    if "gap" in found:
        return Verdict("generalisation-gap", why=("gap",), sure=_beyond(found["gap"].evidence["gap"], 0.1))
    if "still-falling" in found:
        return Verdict("underfit", "too-short", why=("still-falling",), sure=0.6)
    return Verdict("healthy", sure=0.8)


def _underfit(found: Mapping[str, Sign]) -> Verdict:
    signal = found["low-signal"].evidence["signal"]
    sure = _beyond(0.6 - signal, 0.1)
    if "rate-too-high" in found:
        return Verdict("underfit", "optimisation", ("low-signal", "rate-too-high"), sure)
    if "still-falling" in found:
        return Verdict("underfit", "too-short", ("low-signal", *_among(found, "rate-too-low", "still-falling")), sure)
    if signal < _NOTHING:
        return Verdict("underfit", "optimisation", ("low-signal",), sure)
    return Verdict("underfit", "capacity", ("low-signal", *_among(found, "plateau")), sure)


def _overfit(sign: Sign, setting: Setting) -> Verdict:
    if setting.n_val is not None and setting.n_val < _SMALL and sign.evidence["gl"] < _STEEP:
        return Verdict("cannot-say", why=("overfitting", "small-validation"))
    return Verdict("overfit", why=("overfitting",), sure=_beyond(sign.evidence["gl"], 5.0))


def _over_confident(sign: Sign, setting: Setting) -> Verdict:
    return Verdict("over-confident", why=("over-confident",), sure=_beyond(sign.evidence["gl"], 5.0))


def _among(found: Mapping[str, Sign], *codes: str) -> tuple[str, ...]:
    return tuple(code for code in codes if code in found)


def _beyond(value: float, threshold: float) -> float:
    """0.5 at the threshold, 0.75 at twice, nearing 1 far beyond."""
    return 1 - 0.5 * threshold / max(value, threshold)
