"""The runs that the doctor is measured on: they can be trained again, and their truth follows from their figures."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from torchkeep.core.curves import Setting
from training_runs.__main__ import COLUMNS
from training_runs.cases import CONFIRMING, FINAL, FRESH, HALVES, SCORING, SIXTH, TUNING, Case
from training_runs.data import SIZES, split
from training_runs.measure import reruns
from training_runs.settings import TOLD, tell
from training_runs.train import build, train
from training_runs.truth import ALL, FEW_EXAMPLES, OPTIMISATION, SHORT, gains, judge

KEPT = Path(__file__).parent / "data" / "curves"
CASES = {case.name: case for half in HALVES.values() for case in half}
HALF = {case.name: half for half, cases in HALVES.items() for case in cases}
RUNS = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*/*.json"))}
GRADES = ("right", "acceptable", "wrong", "confidently_wrong")


def rows(name: str) -> list[dict[str, float]]:
    with (KEPT / HALF[name] / f"{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def figures(**other: Any) -> dict[str, Any]:
    """The figures of a healthy run of ten classes, with others in their place."""
    rerun = {
        "gain": 0.0,
        "gain_z": 0.0,
        "gain_end": 0.0,
        "signal_gain": 0.0,
        "roughness": 0.0,
        "loss_best": 0.2,
        "quality_best": 0.95,
    }
    names = ("again", "longer", "faster", "slower", "wider")
    changed = {name: {**rerun, **other.pop(name, {})} for name in names}
    base = {
        "chance": math.log(10), "n_test": 1000, "n_val": 250, "epochs": 40, "classes": 10, "finite": True, "loss_best": 0.2,
        "loss_end": 0.2, "loss_rise": 0.0, "loss_rise_z": 0.0, "quality_best": 0.95, "quality_end": 0.95, "fall": 0.0, "fall_z": 0.0,
        "signal": 0.97, "train_loss_end": 0.07, "gap_loss": 0.05, "gap_accuracy": 0.03, "gap_z": 3.0, "roughness": 0.0,
        "majority": 0.12,
    }  # fmt: skip
    return {**base, **other, "reruns": changed}


def test_a_set_is_kept_whole_or_not_at_all() -> None:
    kept = {half: {path.stem for path in (KEPT / half).glob("*.json")} for half in HALVES}
    assert kept["tuning"] == {case.name for case in TUNING}
    assert kept["scoring"] == {case.name for case in SCORING}
    for half, cases in (("confirming", CONFIRMING), ("final", FINAL), ("fresh", FRESH), ("sixth", SIXTH)):
        assert kept[half] in (set(), {case.name for case in cases})
    assert len(TUNING) >= 24
    assert len(TUNING) + len(SCORING) >= 48
    assert len(CONFIRMING) >= 42
    assert len(FRESH) >= 60
    assert len(SIXTH) >= 60


def test_all_sets_ask_for_the_same_causes_with_other_settings() -> None:
    every = [case for half in HALVES.values() for case in half]
    assert all({case.cause for case in half} == {case.cause for case in TUNING} for half in HALVES.values())
    assert len({case.name for case in every}) == len(every)
    assert len({case.seed for case in every}) == len(every)
    settings = [
        tuple(value for key, value in vars(case).items() if key not in ("name", "cause", "seed")) for case in every
    ]
    assert len(set(settings)) == len(every)


EVERYWHERE = {"healthy", "regression-overfit"}  # had been on all data sets that they can be on
LATER = {
    "confirming": {"regression-overfit"},
    "final": EVERYWHERE,
    "fresh": EVERYWHERE | {"rate-too-high", "over-confident", "regression-underfit"},
    "sixth": EVERYWHERE
    | {"too-small", "too-short", "rate-too-high", "label-noise", "validation-of-20", "over-confident"}
    | {"schedule-drop", "gap", "regression-underfit"},
}


@pytest.mark.parametrize("half", LATER)
def test_a_later_set_asks_for_what_no_earlier_set_has_asked_for(half: str) -> None:
    cases, names = HALVES[half], list(HALVES)
    earlier = [case for name in names[: names.index(half)] for case in HALVES[name]]
    before = {(case.cause, case.data) for case in earlier}
    assert all(count >= 2 for count in Counter(case.cause for case in cases).values())
    unheard = {case.cause for case in cases if (case.cause, case.data) not in before}
    assert unheard == {case.cause for case in cases} - LATER[half]
    for case in cases:
        for old in earlier:
            if old.data == case.data:
                assert (old.n_train, old.n_val) != (case.n_train, case.n_val), (case.name, old.name)
            if (old.cause, old.data) == (case.cause, case.data):
                assert old.hidden != case.hidden, (case.name, old.name)
                assert old.rate != case.rate, (case.name, old.name)


@pytest.mark.parametrize("half", ["fresh", "sixth"])
def test_the_last_sets_have_every_cause_as_often_as_the_final_one(half: str) -> None:
    assert Counter(case.cause for case in HALVES[half]) == Counter(case.cause for case in FINAL)


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_every_setting_can_be_trained(case: Case) -> None:
    pool, classes, large = SIZES[case.data]
    assert case.n_train + case.n_val + large <= pool
    for change in reruns(case).values():
        assert case.but(**change).n_train + case.n_val + large <= pool
    inputs = {
        "digits": 64,
        "mnist": 196,
        "cancer": 30,
        "wine": 13,
        "iris": 4,
        "diabetes": 10,
        "autompg": 7,
        "lower-digits": 32,
        "lower-mnist": 98,
    }
    net = build(case, inputs[case.data], classes or 1)
    assert net(torch.zeros(2, inputs[case.data], dtype=torch.float64)).shape == (2, classes or 1)


@pytest.mark.parametrize("name", ["short-digits", "points-cancer", "nan-diabetes"])
def test_a_run_that_is_trained_again_is_the_same(name: str) -> None:
    case = CASES[name]
    again = train(case)
    kept = rows(name)
    assert len(kept) == len(again.rows) == case.epochs
    for old, new in zip(kept, again.rows, strict=True):
        for column, value in old.items():
            assert value == pytest.approx(new[column], rel=1e-4, abs=1e-4, nan_ok=True), (column, old["epoch"])


def test_the_pieces_of_the_data_do_not_meet() -> None:
    case = CASES["small-digits"]
    pieces = split(case)
    assert [len(piece[0]) for piece in (pieces.train, pieces.val, pieces.test)] == [
        case.n_train,
        case.n_val,
        SIZES["digits"][2],
    ]
    rows_of = [{tuple(row.tolist()) for row in piece[0]} for piece in (pieces.train, pieces.val, pieces.test)]
    assert not rows_of[0] & rows_of[1]
    assert not rows_of[0] & rows_of[2]
    assert not rows_of[1] & rows_of[2]
    more = split(case.but(n_train=800))
    assert torch.equal(more.test[0], pieces.test[0])
    assert torch.equal(more.train[0][: case.n_train], pieces.train[0])


def test_wrong_and_shuffled_labels_are_where_they_should_be() -> None:
    case = CASES["noise-digits"]
    clean = split(case.but(label_noise=0.0))
    noisy, both = split(case), split(case.but(noisy_validation=True))
    share = noisy.train[1].ne(clean.train[1]).double().mean()
    assert 0.3 < share < 0.42  # of 40 %, a tenth hit the right class by chance
    assert torch.equal(noisy.val[1], clean.val[1])
    assert torch.equal(noisy.test[1], clean.test[1])
    assert not torch.equal(both.test[1], clean.test[1])
    shuffled = split(case.but(label_noise=0.0, shuffled=True))
    assert torch.equal(shuffled.train[0], clean.train[0])
    assert shuffled.train[1].ne(clean.train[1]).double().mean() > 0.8


@pytest.mark.parametrize("name", RUNS)
def test_the_truth_of_a_run_follows_from_its_figures(name: str) -> None:
    noted = RUNS[name]
    assert noted["truth"] == judge(noted["measured"])
    assert sorted(verdict for grade in GRADES for verdict in noted["truth"][grade]) == sorted(ALL)
    assert noted["truth"]["right"]
    assert Setting(**noted["setting"]).n_val == noted["made"]["n_val"]
    assert {name: noted["setting"][name] for name in TOLD} == {name: noted["made"][name] for name in TOLD}
    case = CASES[name]
    assert noted["half"] == HALF[name]
    assert noted["built_for"] == case.cause
    assert noted["made"] == json.loads(
        json.dumps({key: value for key, value in vars(case).items() if key not in ("name", "cause")})
    )
    assert set(noted["measured"]["reruns"]) == set(reruns(case))
    kept = rows(name)
    assert set(kept[0]) <= set(COLUMNS)
    assert [row["epoch"] for row in kept] == list(range(1, noted["made"]["epochs"] + 1))


def test_what_is_told_of_an_optimizer_is_written_and_nothing_else(tmp_path: Path) -> None:
    noted = json.loads((KEPT / "tuning" / "short-digits.json").read_text())
    before = {key: value for key, value in noted["setting"].items() if key not in TOLD}
    (tmp_path / "a.json").write_text(json.dumps({**noted, "setting": before}))
    tell(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == noted


def test_the_tuning_half_has_every_verdict_as_the_right_one() -> None:
    seen = Counter(verdict for case in TUNING for verdict in RUNS[case.name]["truth"]["right"])
    assert set(seen) == set(ALL), seen


def test_a_run_without_signs_is_healthy() -> None:
    assert judge(figures())["right"] == ["healthy"]
    assert judge(figures(n_val=FEW_EXAMPLES))["right"] == ["cannot-say", "healthy"]


def test_a_loss_that_is_no_number_is_unstable() -> None:
    truth = judge(figures(finite=False))
    assert truth["right"] == ["unstable"]
    assert "overfit" in truth["confidently_wrong"]


@pytest.mark.parametrize("end", [10.1 * math.log(10), 1e21, None])
def test_a_training_loss_that_ends_far_above_chance_is_unstable(end: float | None) -> None:
    longer = {"gain": 1e20, "gain_z": 1e9, "signal_gain": 1e21}  # anything is better than that
    truth = judge(figures(train_loss_end=end, longer=longer))
    assert truth == judge(figures(finite=False))
    assert truth["cause"] == "diverged"
    assert judge(figures(train_loss_end=9.9 * math.log(10), longer=longer))["right"] == [SHORT]


def test_three_epochs_say_nothing() -> None:
    assert judge(figures(epochs=3))["right"] == ["cannot-say"]
    helped = judge(figures(epochs=3, longer={"gain": 0.1, "gain_z": 9.0, "signal_gain": 0.3}))
    assert helped["acceptable"] == [SHORT]


def test_a_rise_is_overfit_only_if_the_accuracy_falls() -> None:
    risen = {"loss_rise": 0.1, "loss_rise_z": 8.0}
    assert judge(figures(**risen))["right"] == ["over-confident"]
    fallen = judge(figures(**risen, fall=0.03, fall_z=6.0))
    assert fallen["right"] == ["overfit"]
    assert "healthy" in fallen["confidently_wrong"]
    unseen = judge(figures(**risen, fall=0.03, fall_z=3.0))  # 1.5 errors in the validation set
    assert unseen["right"] == ["overfit", "over-confident"]
    assert judge(figures(fall=0.02, fall_z=6.0))["right"] == ["overfit", "healthy"]
    far = judge(figures(fall=0.05, fall_z=6.0))
    assert far["right"] == ["overfit"]
    assert "healthy" in far["confidently_wrong"]
    regression = figures(classes=0, **risen)
    assert judge(regression)["right"] == ["overfit"]


def test_a_wide_gap_that_was_there_before_the_rise_may_be_named_instead() -> None:
    risen = {"loss_rise": 0.1, "loss_rise_z": 8.0, "gap_accuracy": 0.3, "gap_z": 9.0}
    assert judge(figures(**risen, gap_loss=0.4))["right"] == ["over-confident", "generalisation-gap"]
    assert judge(figures(**risen, gap_loss=0.06))["right"] == ["over-confident"]
    assert "generalisation-gap" in judge(figures(**risen, gap_loss=0.06))["acceptable"]


def test_a_rise_that_the_validation_set_cannot_show_may_be_missed() -> None:
    truth = judge(figures(loss_rise=0.1, loss_rise_z=8.0, n_val=20))  # 1.1 errors
    assert truth["right"] == ["cannot-say", "over-confident"]
    assert "healthy" in truth["acceptable"]


def test_a_rerun_must_gain_and_fit_better() -> None:
    helps = {"gain": 0.1, "gain_z": 9.0, "signal_gain": 0.2}
    assert judge(figures(wider=helps))["right"] == ["underfit/capacity"]
    assert "healthy" in judge(figures(wider=helps))["confidently_wrong"]
    assert "healthy" in judge(figures(wider={**helps, "gain": 0.03}))["wrong"]
    assert judge(figures(wider={**helps, "signal_gain": 0.0}))["right"] == ["healthy"]
    assert judge(figures(wider={**helps, "gain_z": 1.0}))["right"] == ["healthy"]
    lucky = judge(figures(wider=helps, again={"gain": 0.095}))
    assert lucky["right"] == ["healthy"]
    assert gains(figures(again=helps))[OPTIMISATION] == ("clear", 0.1)
    assert gains(figures(again=helps, longer=helps))[SHORT] == ("clear", 0.1)


def test_going_on_is_the_plainest_remedy() -> None:
    longer, faster = {"gain": 0.19, "gain_z": 9.0, "signal_gain": 0.3}, {"gain": 0.2, "gain_z": 9.0, "signal_gain": 0.3}
    truth = judge(figures(longer=longer, faster=faster))
    assert truth["right"] == [SHORT]
    assert truth["acceptable"] == [OPTIMISATION]
    assert judge(figures(longer={**longer, "gain": 0.15}, faster=faster))["right"] == [SHORT, OPTIMISATION]
    assert judge(figures(longer={**longer, "gain": 0.05}, faster=faster))["right"] == [OPTIMISATION]


def test_a_rough_run_is_unstable_only_if_a_lower_rate_is_calm_and_better() -> None:
    assert judge(figures(roughness=0.05, slower={"gain_end": 0.05}))["right"] == ["unstable"]
    assert judge(figures(roughness=0.05, slower={"gain_end": 0.0}))["right"] == ["healthy"]
    assert judge(figures(roughness=0.05, slower={"gain_end": 0.05, "roughness": 0.04}))["right"] == ["healthy"]


def test_what_cannot_be_learnt_is_told_by_every_rerun() -> None:
    lost = {"quality_best": 0.13}
    every = dict.fromkeys(("again", "longer", "faster", "slower", "wider"), lost)
    flat = judge(figures(**every, quality_best=0.12, quality_end=0.11, signal=0.01))
    assert flat["right"] == ["cannot-say", OPTIMISATION]
    learnt = judge(figures(**every, quality_best=0.12, quality_end=0.11, signal=0.9))
    assert learnt["right"] == ["overfit"]
    found = judge(
        figures(**{**every, "wider": {"quality_best": 0.6}}, quality_best=0.12, quality_end=0.11, signal=0.01)
    )
    assert found["cause"] != flat["cause"]
