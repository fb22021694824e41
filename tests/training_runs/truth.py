"""From measured figures to the verdicts that are right. The rule is written out in docs/design/curves-truth.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Figures = Mapping[str, Any]

SHORT, CAPACITY, OPTIMISATION = "underfit/too-short", "underfit/capacity", "underfit/optimisation"
UNDERFIT = (SHORT, CAPACITY, OPTIMISATION)
LATE = ("overfit", "over-confident", "generalisation-gap")
ALL = ("cannot-say", *UNDERFIT, *LATE, "unstable", "healthy")
CHANGES = {
    SHORT: ("longer",),
    CAPACITY: ("wider", "unfrozen", "no-dropout", "no-decay"),
    OPTIMISATION: ("faster", "slower", "again"),
}
FEW_EPOCHS, FEW_EXAMPLES = 3, 30
BLOWN_UP = 10  # times chance: a training loss that ends above that has diverged
MUCH = {True: 0.05, False: 0.1}  # what is missed with an underfit taken for healthy: classes or not


def _worse_than_none(value: float | None) -> float:
    """A figure that was no number, as the worst there is."""
    return -math.inf if value is None else value


def diverged(figures: Figures) -> bool:
    """Whether a loss was no number on the way, or the training loss ends far above chance."""
    end = figures["train_loss_end"]
    return not figures["finite"] or end is None or end > BLOWN_UP * figures["chance"]


def gains(figures: Figures) -> dict[str, tuple[str, float]]:
    """By cause of an underfit: how clear it is that removing it helps, and how much it does."""
    reruns = figures["reruns"]
    luck = max(0.0, _worse_than_none(reruns["again"]["gain"]))
    least, some = (0.02, 0.01) if figures["classes"] else (0.05, 0.02)
    found = {}
    for cause, names in CHANGES.items():
        best = ("none", -math.inf)
        for name in names:
            if name not in reruns:
                continue
            rerun = reruns[name]
            gain = _worse_than_none(rerun["gain"]) - (0 if name in ("again", "longer") else luck)
            fitted = _worse_than_none(rerun["signal_gain"])
            sure = _worse_than_none(rerun["gain_z"]) >= 2
            clear = sure and gain >= least and fitted >= 0.05
            slight = sure and gain >= some and fitted >= 0.02
            best = max(best, ("clear" if clear else "slight" if slight else "none", gain), key=_order)
        found[cause] = best
    return found


def _order(one: tuple[str, float]) -> tuple[int, float]:
    return ("none", "slight", "clear").index(one[0]), one[1]


def unstable(figures: Figures) -> str:
    """Whether the training loss jumps because the learning rate is too high."""
    rough, slower = figures["roughness"], figures["reruns"]["slower"]
    if slower["roughness"] is None or slower["roughness"] > rough / 3 or slower["loss_best"] is None:
        return "none"
    if slower["loss_best"] >= figures["loss_best"] and (slower["gain_end"] or 0) < 0.01:
        return "none"
    return "clear" if rough >= 0.02 else "slight" if rough >= 0.007 else "none"


def rise(figures: Figures) -> str:
    """Whether the loss on the large set ends above its lowest."""
    up, z = figures["loss_rise"], figures["loss_rise_z"]
    share, part = up / max(figures["loss_best"], 1e-12), up / figures["chance"]
    if z >= 2.5 and share >= 0.1 and part >= 0.01:
        return "clear"
    small, unsettled = z >= 2 and share >= 0.03 and part >= 0.003, z >= 1 and share >= 0.1 and part >= 0.01
    return "slight" if small or unsettled else "none"


def fall(figures: Figures) -> str:
    """Whether the metric on the large set ends below its best."""
    if figures["classes"] and figures["fall"] >= 0.03 and figures["fall_z"] >= 3:
        return "far"
    if figures["fall"] >= 0.01 and figures["fall_z"] >= 2:
        return "clear"
    return "slight" if figures["fall"] >= 0.005 and figures["fall_z"] >= 1 else "none"


def gap(figures: Figures) -> str:
    """How much better the training set is served than the large set."""
    if figures["classes"]:
        apart = figures["gap_accuracy"]
        if apart >= 0.1 and figures["gap_z"] >= 3:
            return "clear"
        return "slight" if (apart >= 0.05 and figures["gap_z"] >= 2) or figures["gap_loss"] >= 0.1 else "none"
    return "clear" if figures["gap_loss"] >= 0.2 else "slight" if figures["gap_loss"] >= 0.1 else "none"


def nothing(figures: Figures) -> bool:
    """Whether neither the run nor any rerun found more than the commonest class."""
    if not figures["classes"]:
        return False
    most = figures["majority"]
    limit = most + 2 * math.sqrt(most * (1 - most) / figures["n_test"]) + 0.02
    tried = [figures["quality_best"], *(_worse_than_none(one["quality_best"]) for one in figures["reruns"].values())]
    return max(tried) <= limit


def visible(figures: Figures, z: float) -> float:
    """How many standard errors an effect is expected to be on a validation set of this run's size."""
    return z * math.sqrt(figures["n_val"] / figures["n_test"])


def holding(figures: Figures) -> dict[str, str]:
    """Every verdict that the figures support, the one that comes first in front: `clear` or `slight`."""
    found: dict[str, str] = {"unstable": unstable(figures)}
    causes = gains(figures)
    most = max((gain for strength, gain in causes.values() if strength == "clear"), default=math.inf)
    for cause, (strength, gain) in sorted(causes.items(), key=lambda one: -one[1][1]):
        enough = causes[SHORT][0] == "clear" and causes[SHORT][1] >= 0.9 * most and cause != SHORT
        lesser = strength == "clear" and (gain < 0.7 * most or enough)
        found[cause] = "lesser" if lesser else strength
    risen, fallen = rise(figures), fall(figures)
    if not figures["classes"]:
        found["overfit"] = risen
    elif fallen == "far":
        found["overfit"] = "clear"
    elif fallen == "clear":
        found["overfit"] = "slight" if risen == "none" else risen
    else:
        found["over-confident"] = risen
    found["generalisation-gap"] = gap(figures)
    return {verdict: strength for verdict, strength in found.items() if strength != "none"}


def judge(figures: Figures) -> dict[str, Any]:
    """The truth of a run: its measured cause, and every verdict in one of four grades."""
    if diverged(figures):
        return _graded("diverged", {"unstable"}, {"cannot-say", OPTIMISATION}, set(ALL))
    held = holding(figures)
    clear = [verdict for verdict, strength in held.items() if strength == "clear"]
    slight = [verdict for verdict, strength in held.items() if strength != "clear"]
    if figures["epochs"] <= FEW_EPOCHS:
        wanted = {verdict for verdict in clear if verdict in UNDERFIT}
        return _graded("too-few-points", {"cannot-say"}, wanted, set(ALL) - {"healthy"})
    if nothing(figures):
        return _nothing(figures)
    if not clear:
        return _healthy(figures, slight)
    first = clear[0]
    harmful = _harmful(figures)
    if first == "unstable":
        return _graded("unstable", {first}, {*clear, *slight, OPTIMISATION}, harmful)
    if first in UNDERFIT:
        right = {verdict for verdict in clear if verdict in UNDERFIT}
        if OPTIMISATION in right and "unstable" in slight:
            right.add("unstable")
        harmful -= {*UNDERFIT, "unstable"}
        if (
            max(gain for strength, gain in gains(figures).values() if strength == "clear")
            < MUCH[bool(figures["classes"])]
        ):
            harmful.discard("healthy")
        return _graded("underfit", right, {*clear, *slight} - set(LATE) | set(clear), harmful)
    return _late(figures, first, set(clear) | set(slight))


def _harmful(figures: Figures) -> set[str]:
    """What sends a reader the wrong way unless it is graded better: not the two names of a rise, where there is one."""
    late = rise(figures) != "none" or fall(figures) in ("clear", "far")
    return set(ALL) - {"overfit", "over-confident"} if late else set(ALL)


def _nothing(figures: Figures) -> dict[str, Any]:
    if figures["signal"] >= 0.1:
        return _graded(
            "nothing-learnt-by-heart",
            {"overfit"},
            {"over-confident", "generalisation-gap", "cannot-say"},
            {"healthy", *UNDERFIT},
        )
    return _graded("nothing-at-chance", {"cannot-say", OPTIMISATION}, {CAPACITY}, {*LATE, "healthy"})


def _healthy(figures: Figures, slight: list[str]) -> dict[str, Any]:
    right, acceptable = {"healthy", *slight}, set()
    if figures["n_val"] <= FEW_EXAMPLES:
        right.add("cannot-say")
    elif figures["n_val"] <= 2 * FEW_EXAMPLES:
        acceptable.add("cannot-say")
    return _graded("healthy" if not slight else "nearly-healthy", right, acceptable, _harmful(figures))


def _late(figures: Figures, first: str, held: set[str]) -> dict[str, Any]:
    """The loss rises late, or the training set is served much better."""
    right, acceptable, harmful = {first}, set(held), {*UNDERFIT, "unstable"}
    wide = gap(figures) == "clear"
    if first == "overfit":
        harmful.add("healthy")
        if figures["classes"] and visible(figures, figures["fall_z"]) < 2:
            right.add("over-confident")
        elif figures["classes"] and figures["fall"] < 0.02:
            acceptable.add("over-confident")
    elif first == "over-confident":
        if wide or fall(figures) == "slight":
            acceptable.add("overfit")
        if wide and figures["loss_rise"] < 0.5 * figures["chance"] * figures["gap_loss"]:
            right.add("generalisation-gap")
        if figures["loss_rise"] >= 0.25 * figures["loss_best"]:
            harmful.add("healthy")
    z = figures["loss_rise_z"]
    if figures["classes"]:
        z = {"generalisation-gap": figures["gap_z"], "overfit": max(z, figures["fall_z"])}.get(first, z)
    if first != "generalisation-gap" or figures["classes"]:
        if visible(figures, z) < 2:
            right.add("cannot-say")
            acceptable.add("healthy")
        elif figures["n_val"] <= FEW_EXAMPLES:
            acceptable.add("cannot-say")
    return _graded(first, right, acceptable, harmful)


def _graded(cause: str, right: set[str], acceptable: set[str], harmful: set[str]) -> dict[str, Any]:
    """Every verdict in one grade, the better one where two would fit. `cannot-say` never does harm."""
    acceptable = acceptable - right
    harmful = harmful - right - acceptable - {"cannot-say"}
    wrong = set(ALL) - right - acceptable - harmful
    grades = {"right": right, "acceptable": acceptable, "wrong": wrong, "confidently_wrong": harmful}
    return {
        "cause": cause,
        **{grade: [verdict for verdict in ALL if verdict in verdicts] for grade, verdicts in grades.items()},
    }
