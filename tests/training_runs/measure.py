"""What a run really did, measured on the large set, and what other settings would have reached."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cases import Case
from .data import SIZES, Split, split
from .train import Record, train

Floats = NDArray[np.float64]
Figures = dict[str, Any]
WIDEST = 192  # a wider rerun is eight times as wide up to here, and at least twice


def reruns(case: Case) -> dict[str, dict[str, Any]]:
    """By name: what each rerun changes. Those that cannot make a difference to a case are left out."""
    wider = tuple(max(2 * width, min(WIDEST, 8 * width)) for width in case.hidden) or (64,)
    spare = SIZES[case.data][0] - SIZES[case.data][2] - case.n_val
    changes: dict[str, dict[str, Any]] = {
        "again": {"init": 1},
        "longer": {"epochs": 4 * case.epochs},
        "faster": {"rate": 10 * case.rate},
        "slower": {"rate": case.rate / 10},
    }
    if case.trained == "all":
        changes["wider"] = {"hidden": wider}
    else:
        changes["unfrozen"] = {"trained": "all"}
    if case.dropout:
        changes["no-dropout"] = {"dropout": 0.0}
    if case.weight_decay:
        changes["no-decay"] = {"weight_decay": 0.0}
    if not case.dropout:
        changes["dropout"] = {"dropout": 0.4}
    if spare >= 2 * case.n_train:
        changes["more-data"] = {"n_train": min(3 * case.n_train, spare)}
    return changes


def _window(record: Record) -> int:
    return max(1, len(record.rows) // 10)


def _smooth(values: Floats, width: int) -> Floats:
    """Means over windows of epochs, per example: [epochs - width + 1, examples]."""
    return np.lib.stride_tricks.sliding_window_view(values, width, axis=0).mean(axis=-1)


def _step(better: Floats, worse: Floats) -> tuple[float, float]:
    """The mean of paired differences between examples, and how many standard errors that is."""
    with np.errstate(invalid="ignore", over="ignore"):  # a run that blew up: infinities apart are no number
        apart = better - worse
        error, mean = float(apart.std(ddof=1)) / math.sqrt(len(apart)), float(apart.mean())
    return mean, mean / error if error > 0 else 0.0


def roughness(losses: Floats) -> float:
    """How far a curve climbs on the way, per epoch, in its second half; infinite where it is no number."""
    if not np.isfinite(losses).all():
        return math.inf
    steps = np.diff(losses[len(losses) // 2 :])
    return float(np.clip(steps, 0, None).mean()) if len(steps) else 0.0


class _Seen:
    """A record in windows of epochs: where its loss and its metric are best on the large set."""

    def __init__(self, record: Record, classes: int, chance: float) -> None:
        self.record, self.classes, self.chance = record, classes, chance
        self.width = _window(record)
        self.losses = _smooth(record.losses, self.width)
        self.quality = _smooth(record.hits, self.width) if classes else -self.losses / chance
        self.loss_curve = self.losses.mean(axis=1)
        self.quality_curve = self.quality.mean(axis=1)
        kept = np.where(np.isfinite(self.loss_curve), self.loss_curve, np.inf)
        self.lowest = int(kept.argmin())
        self.peak = int(np.where(np.isfinite(self.quality_curve), self.quality_curve, -np.inf).argmax())

    def signal(self, place: int) -> float:
        """The share of the chance loss that training has removed, in evaluation mode, in a window."""
        return 1 - float(self.record.train_loss[place : place + self.width].mean()) / self.chance

    def rough(self) -> float:
        return roughness(np.array([row["train_loss"] for row in self.record.rows])) / self.chance


def _rerun(base: _Seen, other: _Seen, changed: dict[str, Any]) -> Figures:
    gain, z = _step(other.quality[other.peak], base.quality[base.peak])
    at_end, _ = _step(other.quality[-1], base.quality[-1])
    return {
        "changed": changed,
        "quality_best": float(other.quality_curve[other.peak]),
        "quality_end": float(other.quality_curve[-1]),
        "loss_best": float(other.loss_curve[other.lowest]),
        "gain": gain,
        "gain_z": z,
        "gain_end": at_end,
        "signal": other.signal(other.peak),
        "signal_gain": other.signal(other.peak) - base.signal(len(base.loss_curve) - 1),
        "roughness": other.rough(),
    }


def chance_of(case: Case, pieces: Split) -> float:
    """The loss of one who knows nothing: ln(classes), or the variance of the training targets."""
    return math.log(pieces.classes) if pieces.classes else float(pieces.train[1].var())


def measure(case: Case) -> tuple[Record, Figures]:
    """The run of a case and the figures of its truth."""
    pieces = split(case)
    classes, chance = pieces.classes, chance_of(case, pieces)
    record = train(case, pieces)
    base = _Seen(record, classes, chance)
    rise, rise_z = _step(base.losses[-1], base.losses[base.lowest])
    fall, fall_z = _step(base.quality[base.peak], base.quality[-1])
    end = slice(-base.width, None)
    test, fit = float(base.loss_curve[-1]), float(record.train_loss[end].mean())
    accuracy, found = float(base.quality_curve[-1]), float(record.train_accuracy[end].mean())
    figures: Figures = {
        "chance": chance,
        "n_test": len(pieces.test[0]),
        "n_val": case.n_val,
        "epochs": case.epochs,
        "classes": classes,
        "window": base.width,
        "finite": bool(np.isfinite(record.losses).all() and all(np.isfinite(row["train_loss"]) for row in record.rows)),
        "loss_best": float(base.loss_curve[base.lowest]),
        "loss_best_epoch": base.lowest + base.width,
        "loss_end": test,
        "loss_rise": rise,
        "loss_rise_z": rise_z,
        "quality_best": float(base.quality_curve[base.peak]),
        "quality_end": accuracy,
        "fall": fall,
        "fall_z": fall_z,
        "train_loss_end": fit,
        "signal": 1 - fit / chance,
        "gap_loss": (test - fit) / chance,
        "roughness": base.rough(),
    }
    if classes:
        shares = np.bincount(pieces.test[1].numpy(), minlength=classes) / len(pieces.test[1])
        figures |= {
            "train_accuracy_end": found,
            "gap_accuracy": found - accuracy,
            "gap_z": (found - accuracy)
            / max(1e-9, _binomial(found, case.n_train), _binomial(accuracy, len(pieces.test[0]))),
            "majority": float(shares.max()),
            "own_accuracy_end": float(record.own_hits[end].mean()),
        }
    figures["reruns"] = {
        name: _rerun(base, _Seen(train(case.but(**change)), classes, chance), change)
        for name, change in reruns(case).items()
    }
    return record, figures


def _binomial(share: float, count: int) -> float:
    return math.sqrt(max(share * (1 - share), 0.25 / count) / count)
