"""What to try about a verdict, in order, with its reason: aware of what is frozen and of what regularises already."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..core.curves import Curves, Setting
from ..core.diagnosis import Remedy, Sign
from ..core.trend import power_law
from .verdict import Verdict

_MOSTLY_FROZEN = 0.5
_STRONG_DROPOUT, _STRONG_DECAY = 0.4, 1e-2

Found = Mapping[str, Sign]


def remedies_for(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> tuple[Remedy, ...]:
    """What to try, the most promising first."""
    give = _BY_VERDICT[verdict.name]
    known: dict[str, Remedy] = {}
    for remedy in give(verdict, found, curves, setting):
        known.setdefault(remedy.code, remedy)
    return tuple(known.values())


def _underfit(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    if verdict.cause == "too-short":
        return [_longer(found, curves), *_raise_rate(found), *_less_regularised(setting)]
    if verdict.cause == "optimisation":
        longer = [_longer(found, curves)] if found.keys() & {"short-way", "rate-too-low", "still-falling"} else []
        return [*_rate(found), *longer, _sanity(), *_less_frozen(setting), *_less_regularised(setting)]
    return [
        *_less_frozen(setting),
        *_less_regularised(setting),
        Remedy(
            "more-capacity",
            "make the network wider or deeper; `print(tk.capacity(model))` lists what each layer would cost",
            "the training loss has come to rest far above zero, so this network cannot fit even what it is shown",
        ),
        *_rate(found),
        _sanity(),
    ]


def _overfit(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    return [*_stop_earlier(found, curves), *_more_data(setting), *_regularise(setting), *_freeze_more(setting)]


def _over_confident(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    return [
        Remedy(
            "label-smoothing",
            "train with nn.CrossEntropyLoss(label_smoothing=0.1), or divide the logits by a temperature that is fitted "
            "on the validation set",
            "the predictions are as right as before and too sure: this changes how sure, and not what is predicted",
        ),
        Remedy(
            "choose-by-metric",
            f"keep the snapshot that is best by {_metric_name(curves)}: tk.Run(..., monitor={_metric_name(curves)!r})",
            "the loss would choose an earlier one, which predicts no better",
        ),
        *_regularise(setting),
    ]


def _gap(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    early = _stop_earlier(found, curves) if found["gap"].evidence["grows"] else []
    return [*_more_data(setting), *_regularise(setting), *_freeze_more(setting), *early]


def _unstable(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    return [
        *_rate(found),
        Remedy(
            "clip-gradients",
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before each step",
            "a single batch can throw a network far off, and a limit on the gradient bounds how far",
        ),
        Remedy(
            "check-inputs",
            "look for not-a-number, infinities and values out of range in the inputs, and for log or division by zero",
            "a loss that stops being a number often began with an input that was none",
        ),
    ]


def _cannot_say(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    out = []
    if "too-few-points" in found:
        out.append(
            Remedy("log-more", "log both losses each epoch, and train for at least ten", "fewer points say nothing")
        )
    if "small-validation" in found or (setting.n_val is not None and setting.n_val < 100):
        out.append(
            Remedy(
                "larger-validation",
                "validate on more examples, or by cross-validation",
                f"differences between epochs on {setting.n_val} examples are within chance",
            )
        )
    if curves.val_loss is None:
        out.append(
            Remedy(
                "log-validation",
                "log the loss on held-out examples as val_loss",
                "without it nothing shows overfitting",
            )
        )
    return out


def _healthy(verdict: Verdict, found: Found, curves: Curves, setting: Setting) -> list[Remedy]:
    if "still-falling" in found:
        return [_longer(found, curves)]
    return _stop_earlier(found, curves) if _after(found) > 0.3 else []


_BY_VERDICT: Mapping[str, Callable[[Verdict, Found, Curves, Setting], list[Remedy]]] = {
    "underfit": _underfit,
    "overfit": _overfit,
    "over-confident": _over_confident,
    "generalisation-gap": _gap,
    "unstable": _unstable,
    "cannot-say": _cannot_say,
    "healthy": _healthy,
}


# Single remedies


def _longer(found: Found, curves: Curves) -> Remedy:
    series = curves.train_loss or curves.val_loss
    thin = None if series is None else series.finite.thinned()
    law = None if thin is None else power_law(thin.x, thin.y, floor=0.0)
    reason, goal = "the loss is still falling", ""
    if series is not None and thin is not None and len(thin):
        goal = f", to about {2 * thin.x[-1] - thin.x[0] + 1:.0f} {curves.unit}s"
    if series is not None and thin is not None and law is not None:
        then, low, high = (max(value, 0.0) for value in law.at(2 * len(thin)))
        reason = f"by a power law, twice as long brings {series.name} to about {then:.3g} ({low:.3g} to {high:.3g})"
    return Remedy("train-longer", f"train on{goal}", reason)


def _raise_rate(found: Found) -> list[Remedy]:
    code = next((code for code in ("unusual-rate", "rate-too-low", "short-way") if code in found), None)
    if code is None or (code == "unusual-rate" and found[code].evidence["times"] > 1):
        return []
    return [Remedy("raise-rate", "raise the learning rate three- to tenfold", found[code].message)]


def _rate(found: Found) -> list[Remedy]:
    if "unusual-rate" in found and found["unusual-rate"].evidence["times"] > 1:
        return [Remedy("lower-rate", "lower the learning rate tenfold", found["unusual-rate"].message)]
    if found.keys() & {"rate-too-high", "diverged", "not-a-number"}:
        sign = next(found[code] for code in ("rate-too-high", "diverged", "not-a-number") if code in found)
        return [Remedy("lower-rate", "lower the learning rate three- to tenfold, or warm it up", sign.message)]
    return _raise_rate(found) or [
        Remedy("other-rate", "try learning rates a tenth and ten times as large", "the rate decides whether it learns")
    ]


def _sanity() -> Remedy:
    return Remedy(
        "overfit-a-batch",
        "tk.can_overfit(model, batch, loss) on 32 examples, without dropout and decay",
        "a network that cannot learn 32 examples by heart has a fault, or too little capacity, or a wrong rate",
    )


def _less_frozen(setting: Setting) -> list[Remedy]:
    if setting.trainable is None or setting.trainable > _MOSTLY_FROZEN:
        return []
    return [
        Remedy(
            "unfreeze",
            'let more of it train: tk.freeze(model, tk.freeze_spec(model, "lp-ft"))',
            f"only {setting.trainable:.1%} of the model's elements are trained",
        )
    ]


def _less_regularised(setting: Setting) -> list[Remedy]:
    out = []
    if setting.dropout is not None and setting.dropout >= _STRONG_DROPOUT:
        out.append(
            Remedy(
                "less-dropout",
                "lower dropout to 0.2 or 0",
                f"dropout of {setting.dropout:g} hinders a model that does not fit",
            )
        )
    if setting.weight_decay is not None and setting.weight_decay >= _STRONG_DECAY:
        out.append(
            Remedy(
                "less-decay",
                "lower the weight decay tenfold",
                f"a weight decay of {setting.weight_decay:g} pulls against the loss",
            )
        )
    return out


def _regularise(setting: Setting) -> list[Remedy]:
    out = []
    if setting.dropout is None or setting.dropout < _STRONG_DROPOUT:
        now = "" if setting.dropout is None else f", from {setting.dropout:g}"
        out.append(Remedy("dropout", f"raise dropout{now} to 0.3 or 0.5", "it keeps units from relying on each other"))
    if setting.weight_decay is None or setting.weight_decay < _STRONG_DECAY:
        now = "" if setting.weight_decay is None else f", from {setting.weight_decay:g}"
        out.append(Remedy("weight-decay", f"raise the weight decay (L2){now} to 0.01 or 0.1", "it keeps weights small"))
    return out


def _more_data(setting: Setting) -> list[Remedy]:
    known = "" if setting.n_train is None else f": there are {setting.n_train:,} to learn from"
    return [
        Remedy("augment", "augment the training examples: shifts, crops, flips, noise, as the task allows", "it makes "
               f"learning by heart harder{known}"),
        Remedy("more-data", "collect or generate more training examples", f"nothing closes a gap as surely{known}"),
    ]  # fmt: skip


def _freeze_more(setting: Setting) -> list[Remedy]:
    if setting.trainable is None or setting.trainable < _MOSTLY_FROZEN or not setting.phases:
        return []
    return [
        Remedy(
            "freeze-more",
            'train less of a pretrained model: tk.freeze(model, "* but last 2")',
            f"{setting.trainable:.0%} of its elements are trained",
        )
    ]


def _stop_earlier(found: Found, curves: Curves) -> list[Remedy]:
    sign = found.get("overfitting") or found.get("best-epoch")
    if sign is None or sign.evidence.get("at") is None:
        return []
    at = sign.evidence["at"]
    return [
        Remedy(
            "stop-early",
            f"keep the snapshot of {curves.unit} {at:g}, and stop by patience",
            f"what came after {curves.unit} {at:g} made it no better ({_after(found):.0%} of the training)",
        )
    ]


def _after(found: Found) -> float:
    return float(found["best-epoch"].evidence["after"]) if "best-epoch" in found else 0.0


def _metric_name(curves: Curves) -> str:
    return curves.val_metric.name if curves.val_metric is not None else "val_accuracy"
