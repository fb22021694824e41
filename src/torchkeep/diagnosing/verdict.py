"""From signs to one verdict. The order of the questions is the order of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign

_NOTHING = 0.05  # of what there is to learn: with less than this nothing was learned
_BARELY, _MANY = 0.1, 30  # so little in so many points is no matter of time
_CLEAR = 0.3  # a gap in losses of chance that makes a rise weightier than a poor fit
_FALL = 0.03  # of a metric, that does so too
_MOSTLY_FROZEN, _STRONG_DROPOUT = 0.5, 0.6
_FEW, _SMALL = 30, 60  # examples in a validation set
_MISTAKES = 20  # of them, below which a rise of the loss may be theirs alone


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
        return Verdict("unstable", why=_among(found, "not-a-number", "diverged"), sure=0.95)
    if "too-few-points" in found or (curves.train_loss is None and curves.val_loss is None):
        return Verdict("cannot-say", why=_among(found, "too-few-points"))
    if "rate-too-high" in found:
        return Verdict(
            "unstable", why=("rate-too-high",), sure=_beyond(found["rate-too-high"].evidence["climb"], 0.012)
        )
    worse = _worse(found, setting)
    if "low-signal" in found and not (worse is not None and _is_weightier(found)):
        return _underfit(found, setting)
    if worse is not None:
        return worse
    if curves.val_loss is None:
        return Verdict("cannot-say")
    if "gap" in found and not _too_few_mistakes(found, setting):
        return Verdict("generalisation-gap", why=("gap",), sure=_gap_sure(found["gap"]))
    if "still-falling" in found:
        cause = "capacity" if _is_held(found, setting) else "too-short"
        return Verdict("underfit", cause, why=("still-falling",), sure=0.65)
    if "poor-fit" in found:
        return Verdict("underfit", "capacity", why=("poor-fit",), sure=0.6)
    few = setting.n_val is not None and setting.n_val <= _FEW
    return Verdict("healthy", sure=0.6 if few else 0.75)  # that nothing was seen is weaker evidence than any sign


def _worse(found: Mapping[str, Sign], setting: Setting) -> Verdict | None:
    """Whether it has got worse on what it has not seen."""
    if "overfitting" in found:
        sign = found["overfitting"]
        return Verdict("overfit", why=("overfitting",), sure=_capped(_beyond(sign.evidence["gl"], 5.0), setting))
    if "over-confident" in found:
        sign = found["over-confident"]
        sure = _capped(_beyond(sign.evidence["gl"], 10.0), setting)
        few = sign.evidence.get("mistakes", _MISTAKES) < _MISTAKES
        return Verdict("over-confident", why=("over-confident",), sure=min(sure, 0.7) if few else sure)
    return None


def _underfit(found: Mapping[str, Sign], setting: Setting) -> Verdict:
    signal = found["low-signal"].evidence["signal"]
    sure = min(0.9, _beyond(1 - signal, 0.4))
    if _is_held(found, setting):
        return Verdict("underfit", "capacity", ("low-signal",), sure)
    if "rate-too-low" in found:
        creeps = signal < _BARELY and found["rate-too-low"].evidence["points"] >= _MANY
        cause = "optimisation" if creeps else "too-short"
        return Verdict("underfit", cause, ("low-signal", "rate-too-low"), sure)
    if signal < _NOTHING:
        return Verdict("underfit", "optimisation", ("low-signal",), sure)
    return Verdict("underfit", "capacity", ("low-signal", *_among(found, "plateau")), sure)


def _is_held(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether most of the model is frozen, or dropout so strong that it is worse while training than after it."""
    if setting.trainable is not None and setting.trainable < _MOSTLY_FROZEN:
        return True
    strong = setting.dropout is not None and setting.dropout >= _STRONG_DROPOUT
    return strong and "validation-below-training" in found


def _is_weightier(found: Mapping[str, Sign]) -> bool:
    """Whether getting worse on what it has not seen matters more than a poor fit: the gap is clear, or the fall is."""
    fall = found["overfitting"].evidence.get("fall", 0.0) if "overfitting" in found else 0.0
    return fall >= _FALL or ("gap" in found and found["gap"].evidence["loss_gap"] >= _CLEAR)


def _gap_sure(sign: Sign) -> float:
    metric = sign.evidence.get("metric_gap")
    return _beyond(sign.evidence["loss_gap"], 0.2) if metric is None else _beyond(metric, 0.1)


def _too_few_mistakes(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether a gap of so many examples may well be none."""
    metric = found["gap"].evidence.get("metric_gap")
    return metric is not None and setting.n_val is not None and metric * setting.n_val < 4


def _capped(sure: float, setting: Setting) -> float:
    """Not beyond what the examples allow; where nobody says how many there are, they may be few."""
    if setting.n_val is None:
        return min(sure, 0.75)
    return min(sure, 0.6) if setting.n_val <= _SMALL else sure


def _among(found: Mapping[str, Sign], *codes: str) -> tuple[str, ...]:
    return tuple(code for code in codes if code in found)


def _beyond(value: float, threshold: float) -> float:
    """0.5 at the threshold, 0.75 at twice, nearing 1 far beyond."""
    return 1 - 0.5 * threshold / max(value, threshold)
