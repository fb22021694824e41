"""From signs to one verdict. The order of the questions is the order of the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..core.curves import Curves, Setting
from ..core.diagnosis import Sign

_NOTHING = 0.05  # of what there is to learn: with less than this nothing was learned
_BARELY, _MANY = 0.12, 30  # so little in so many points is no matter of time
_CLEAR = 0.3  # a gap in losses of chance that makes a rise weightier than a poor fit
_FALL = 0.03  # of a metric, that does so too
_MOSTLY_FROZEN, _STRONG_DROPOUT = 0.5, 0.6
_FEW, _SMALL = 30, 60  # examples in a validation set
_WELL = 0.83  # of what there is to learn: below that the fit is poor
_RIGHT = 0.95  # of the validation examples: a better fit would hardly show
_SGD_DECAY, _OTHER_DECAY = 0.05, 1.0  # weight decay in the loss, and beside it as AdamW has it
_CAUSE = 0.75  # of confidence: that it underfits may be plain, and its cause is not
_WIDE = 0.25  # a gap in losses of chance
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
        if "diverged" in found and found["diverged"].evidence["lost"]:
            return Verdict("underfit", "optimisation", why=("diverged",), sure=0.7)
        return Verdict("unstable", why=_among(found, "not-a-number", "diverged"), sure=0.95)
    if "too-few-points" in found or (curves.train_loss is None and curves.val_loss is None):
        return Verdict("cannot-say", why=_among(found, "too-few-points"))
    worse = _worse(found, setting)
    weighty = worse is not None and _is_weightier(found)
    if _is_far_too_fast(found, setting) and not weighty:
        return Verdict("underfit", "optimisation", ("unusual-rate", *_among(found, "rate-too-high")), 0.75)
    if "rate-too-high" in found and not (weighty and not setting.classes):
        sure = _beyond(found["rate-too-high"].evidence["climb"], 0.012)
        return Verdict("unstable", why=("rate-too-high",), sure=min(sure, 0.75))
    if worse is not None and worse.name == "overfit" and not weighty and _is_dropped_out(found, setting):
        worse = None  # what dropout leaves jumps about
    if "low-signal" in found and not weighty:
        return _underfit(found, setting)
    if _is_dropped_out(found, setting) and found["validation-below-training"].evidence.get("learned", 1.0) < _WELL:
        return Verdict("underfit", "capacity", ("validation-below-training",), 0.65)
    few = setting.n_val is not None and setting.n_val <= _FEW
    poor = "still-falling" in found and found["still-falling"].evidence["left"] > 1 - _WELL
    if few and not poor and not (worse is not None and weighty) and not ("gap" in found and _is_wide(found, setting)):
        return Verdict("cannot-say", why=_among(found, "small-validation"))
    if worse is not None:
        return worse
    if curves.val_loss is None:
        return Verdict("cannot-say")
    if "few-parameters" in found and "short-way" not in found:
        return Verdict("underfit", "capacity", why=("few-parameters",), sure=0.7)
    if "gap" in found and not _too_few_mistakes(found, setting):
        return Verdict("generalisation-gap", why=("gap",), sure=_gap_sure(found["gap"]))
    if "still-falling" in found:
        return Verdict("underfit", _cause(found, setting, "too-short"), why=("still-falling",), sure=0.65)
    if "poor-fit" in found:
        return Verdict("underfit", "capacity", why=("poor-fit",), sure=0.6)
    if "room-left" in found:
        cause = _cause(found, setting, "capacity" if "plateau" in found else "too-short")
        return Verdict("underfit", cause, why=("room-left",), sure=0.55)
    return Verdict("healthy", sure=0.75)  # that nothing was seen is weaker evidence than any sign


def _is_far_too_fast(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether the learning rate is far above what is usual, and the fit poor: for targets with noise, jumpy too."""
    if "unusual-rate" not in found or found["unusual-rate"].evidence["times"] < 1:
        return False
    seen = found["unusual-rate"].evidence
    poor = seen.get("learned", 1.0) < _WELL and seen.get("right", 0.0) < _RIGHT
    return poor and (bool(setting.classes) or "rate-too-high" in found)


def _is_wide(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether a gap is too wide to be made by so few examples."""
    return not _too_few_mistakes(found, setting) and found["gap"].evidence["loss_gap"] >= _WIDE


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
    sure = min(_CAUSE, _beyond(1 - signal, 0.4))
    falling = _among(found, "rate-too-low")
    if signal < _BARELY and not setting.classes and (falling or "short-way" in found):
        cause = "optimisation"  # four times a tenth of the way is not half of it
    else:
        slow = found["rate-too-low"].evidence["points"] >= _MANY if falling else True
        creeps = signal < (_BARELY if falling else _NOTHING) and slow
        cause = _cause(found, setting, "optimisation" if creeps else "too-short" if falling else "capacity")
    return Verdict("underfit", cause, ("low-signal", *falling, *_among(found, "short-way", "plateau")), sure)


def _pulled(setting: Setting) -> bool:
    """Whether the weight decay is so strong that it, and not the loss, says where weights end."""
    if setting.weight_decay is None or setting.optimizer is None:
        return False
    return setting.weight_decay >= (_SGD_DECAY if "sgd" in setting.optimizer.lower() else _OTHER_DECAY)


def _cause(found: Mapping[str, Sign], setting: Setting, curves_say: str) -> str:
    """What hinders a fit: by how far training went at which rate, where that is known; else as the curves say."""
    if _pulled(setting):
        return "capacity"
    if "short-way" in found:
        slow = found["unusual-rate"].evidence["times"] < 1 if "unusual-rate" in found else False
        return "optimisation" if slow else "too-short"
    if _is_held(found, setting):
        return "capacity"
    return curves_say


def _is_held(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether most of the model is frozen, or dropout so strong that it is worse while training than after it."""
    if setting.trainable is not None and setting.trainable < _MOSTLY_FROZEN:
        return True
    return _is_dropped_out(found, setting)


def _is_dropped_out(found: Mapping[str, Sign], setting: Setting) -> bool:
    """Whether dropout is so strong that it is worse while training than after it; jumps tell where nobody does."""
    if "validation-below-training" not in found:
        return False
    if setting.dropout is None:
        return bool(found["validation-below-training"].evidence["jumps"])
    return setting.dropout >= _STRONG_DROPOUT


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
