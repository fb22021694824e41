"""Tuning dropout: judged first, then up and down by outcome; what was trained is never trained again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from dropout_tasks import TASKS, proved
from torchkeep.core.dropout_report import DropoutTrial, paired
from torchkeep.core.transfer import Examples, Recipe
from torchkeep.errors import DataError, MissingDependencyError, SelectorError
from torchkeep.tuning import climb

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = 30


def make_model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))


def overfits(best: float, noise: float = 0.01) -> Callable[..., float]:
    """A training whose validation loss rises, the less the nearer the dropout is to the best."""

    def train(model: nn.Module, p: float, seed: int, log: Callable[..., None]) -> float:
        assert model[2].p == p
        end = 0.5 + 2 * (p - best) ** 2 + noise * math.sin(7 * seed + 40 * p)
        for epoch in range(EPOCHS):
            down = math.exp(-epoch / 5)
            log(epoch=epoch, train_loss=0.01 + down, val_loss=0.4 + down + (end - 0.4) * epoch / (EPOCHS - 1))
        return end

    return train


def curves(train: Callable[[float], float], val: Callable[[float], float]) -> Any:
    def train_fn(model: nn.Module, p: float, seed: int, log: Callable[..., None]) -> list[dict[str, float]]:
        share = [epoch / (EPOCHS - 1) for epoch in range(EPOCHS)]
        return [{"epoch": e, "train_loss": train(at), "val_loss": val(at)} for e, at in enumerate(share)]

    return train_fn


SETTING = tk.Setting(classes=3, n_val=300)
ONE = make_model()


# The way


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.7, [0, 0.5, 0.7, 0.8]),
        (0.65, [0, 0.5, 0.7, 0.8]),
        (0.8, [0, 0.5, 0.7, 0.8]),
        (0.1, [0, 0.5, 0.3, 0.1]),
        (0.2, [0, 0.5, 0.3, 0.2]),
    ],
)
def test_it_goes_by_outcome_from_the_start(best: float, tried: list[float]) -> None:
    def measure(p: float) -> DropoutTrial:
        return DropoutTrial(p, tuple((p - best) ** 2 + 0.001 * seed * (1 + p) for seed in range(3)), verdict="overfit")

    found, steps = climb(measure, measure(0.0))
    assert [one.p for one in found] == tried
    assert abs(min(found, key=lambda one: one.loss).p - best) <= 0.1 + 1e-9
    assert len(steps) >= 2


def test_steps_halve_at_each_change_of_direction_until_there_is_nothing_to_step() -> None:
    def measure(p: float) -> DropoutTrial:
        return DropoutTrial(p, ((p - 0.44) ** 2,) * 3, verdict="healthy")

    found, steps = climb(measure, measure(0.0), trials=20)
    assert [one.p for one in found] == [0, 0.5, 0.3, 0.6, 0.45, 0.4]
    assert steps[-1] == "less than 0.05 is left to step"
    shorter, steps = climb(measure, measure(0.0), trials=3)
    assert [one.p for one in shorter] == [0, 0.5, 0.3]
    assert "3 probabilities were tried" in steps[-1]
    found, _ = climb(measure, measure(0.0), start=0.8, most=0.8, trials=20)
    assert max(one.p for one in found) == 0.8


@pytest.mark.parametrize("seed", range(20))
def test_it_ends_and_stays_within_bounds_whatever_the_losses(seed: int) -> None:
    generator = random.Random(seed)

    def measure(p: float) -> DropoutTrial:
        losses = tuple(generator.choice([math.inf, generator.random(), 1.0]) for _ in range(2))
        return DropoutTrial(p, losses, verdict=generator.choice(["overfit", "healthy", ""]))

    found, steps = climb(measure, measure(0.0), trials=generator.randint(2, 30))
    assert len(steps) < 40
    assert all(0 <= one.p <= 0.8 for one in found)
    assert len({one.p for one in found}) == len(found)


def test_pairs() -> None:
    assert paired((1.0, 2.0, 3.0), (0.5, 1.5, 2.5)) == (0.5, 0.0)
    assert paired((math.inf, 1.0), (1.0, 1.0)) == (math.inf, 0.0)
    assert paired((1.0, 1.0), (1.0, math.inf)) == (-math.inf, 0.0)
    assert paired((math.inf,), (math.inf,)) == (0.0, 0.0)


# The whole


def test_a_model_that_overfits_gets_dropout() -> None:
    report = tk.tune_dropout(make_model, overfits(0.4), setting=SETTING)
    assert (report.verdict, report.p, report.tuned, report.trained) == ("overfit", 0.4, True, 12)
    assert [one.p for one in report.trials] == [0, 0.5, 0.7, 0.4]  # up, as the doctor still sees it at 0.5
    text = str(report)
    assert "take p = 0.4" in text
    assert "lower than without" in text
    plain = json.loads(json.dumps(tk.to_json(report)))
    assert (plain["p"], plain["trials"][0]["verdict"]) == (0.4, "overfit")
    assert tk.tune_dropout(make_model, overfits(0.4), setting=SETTING) == report


@pytest.mark.parametrize(
    ("train_fn", "verdict", "said"),
    [
        (curves(lambda at: 1.05 - 0.1 * at, lambda at: 1.06 - 0.1 * at), "underfit", "underfits without dropout"),
        (curves(lambda at: math.exp(-9 * at), lambda at: math.exp(-8 * at) + 0.01), "healthy", "nothing to cure"),
        (curves(lambda at: 1 + 50 * at, lambda at: 1 + 50 * at), "unstable", "lower the learning rate"),
    ],
)
def test_a_model_that_does_not_overfit_is_left_alone(train_fn: Any, verdict: str, said: str) -> None:
    report = tk.tune_dropout(make_model, train_fn, setting=SETTING)
    assert (report.p, report.verdict, report.tuned, report.trained) == (0.0, verdict, False, 3)
    assert said in report.why
    assert said in str(report)


def test_a_healthy_model_with_a_gap_is_tried() -> None:
    train_fn = curves(lambda at: math.exp(-9 * at), lambda at: math.exp(-9 * at) + 0.15)
    report = tk.tune_dropout(make_model, train_fn, setting=SETTING)
    assert (report.verdict, report.tuned) == ("healthy", True)
    assert "yet much better" in report.steps[0]


def test_without_curves_it_goes_by_outcome() -> None:
    report = tk.tune_dropout(make_model, lambda model, p, seed, log: torch.tensor((p - 0.5) ** 2 + seed))
    assert (report.verdict, report.p, report.trials[0].verdict) == ("", 0.5, "")
    assert "no curves" in str(report)
    report = tk.tune_dropout(make_model, lambda model, p, seed, log: np.float64(p))
    assert report.p == 0.0
    assert "made the validation loss worse" in report.why


def test_a_training_that_comes_apart_is_worse_than_any_other() -> None:
    def train(model: nn.Module, p: float, seed: int, log: Any) -> float:
        return math.nan if p > 0.6 or (p == 0.5 and seed == 1) else 1 - p

    assert tk.tune_dropout(make_model, train).p == 0.3
    with pytest.raises(DataError, match=r"gave no validation loss\n.*log\(epoch="):
        tk.tune_dropout(make_model, lambda model, p, seed, log: log(epoch=0, train_loss=1.0))


@pytest.mark.parametrize("given", [np.float32(0.5), np.array(0.5), torch.tensor([0.5]), 1])
def test_a_loss_may_be_any_single_number(given: Any) -> None:
    assert tk.tune_dropout(make_model, lambda model, p, seed, log: given).trials[0].losses == (float(given),) * 3


@pytest.mark.parametrize("given", [{"val_loss": 0.5}, [0.5, 0.4], "0.5", torch.zeros(2), object(), [{"val_loss": "x"}]])
def test_what_is_no_loss_is_said(given: Any) -> None:
    with pytest.raises(DataError, match="train_fn gave"):
        tk.tune_dropout(make_model, lambda model, p, seed, log: given)


def test_a_folder_remembers_what_is_no_number_and_what_json_cannot_say(tmp_path: Path) -> None:
    def train(model: nn.Module, p: float, seed: int, log: Any) -> float:
        log(epoch=0, val_loss=p, where=tmp_path, all=torch.zeros(2))
        return math.nan if p > 0.4 else 1 - p

    first, again = (tk.tune_dropout(make_model, train, folder=tmp_path) for _ in range(2))
    assert first.trained and not again.trained
    assert first.trials == again.trials and first.trials[1].losses == (math.inf,) * 3


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (DataError, {"train_fn": None}),
        (DataError, {"examples": Examples(torch.zeros(4, 4), torch.zeros(4, dtype=torch.int64), ("a", "b"))}),
        (DataError, {"train_fn": None, "examples": Examples(torch.zeros(2, 4), torch.arange(2), ("a", "b"))}),
        (DataError, {"train_fn": None, "examples": Examples(torch.zeros(0, 4), torch.arange(0), ("a", "b"))}),
        (DataError, {"train_fn": None, "examples": Examples(torch.zeros(8, 4), torch.arange(8) % 4, tuple("abcd"))}),
        *((ValueError, {"seeds": seeds}) for seeds in (1, 0, [3], [3, 3])),
        *((ValueError, {key: value}) for key, value in (("start", 0.0), ("start", 0.9), ("step", 0.0), ("trials", 1))),
        *((ValueError, {key: value}) for key, value in (("most", 1.0), ("step", math.inf), ("step", math.nan))),
        (DataError, {"make_model": make_model()}),
        (DataError, {"make_model": lambda: ONE}),
        (SelectorError, {"selector": "3"}),
        (SelectorError, {"make_model": lambda: nn.Linear(4, 3)}),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_training(error: type[Exception], arguments: dict[str, Any]) -> None:
    def train(model: nn.Module, p: float, seed: int, log: Any) -> float:
        raise AssertionError("it was trained")

    with pytest.raises(error):
        tk.tune_dropout(**({"make_model": make_model, "train_fn": train} | arguments))


# Memory


def test_what_was_finished_is_not_done_again(tmp_path: Path) -> None:
    whole = tk.tune_dropout(make_model, overfits(0.3), setting=SETTING)
    done: list[tuple[float, int]] = []
    left = [0]

    def train(model: nn.Module, p: float, seed: int, log: Any) -> float:
        if len(done) == left[0]:
            raise KeyboardInterrupt
        done.append((p, seed))
        return overfits(0.3)(model, p, seed, log)

    for stops in (1, 2, 5, 4):
        left[0] = stops
        done.clear()
        if stops != 4:
            with pytest.raises(KeyboardInterrupt):
                tk.tune_dropout(make_model, train, setting=SETTING, folder=tmp_path)
            with (tmp_path / "trials.journal").open("ab") as file:
                file.write(b'{"op_code": 4, "wor')  # as a process that is killed leaves it
        else:
            report = tk.tune_dropout(make_model, train, setting=SETTING, folder=tmp_path)
            assert report.trained == len(done) == 4
            assert replace(report, trained=12) == whole
    again = tk.tune_dropout(make_model, train, setting=SETTING, folder=tmp_path)
    assert replace(again, trained=12) == whole
    assert again.trained == 0


def test_another_training_in_the_same_folder_is_another(tmp_path: Path) -> None:
    def wider() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Dropout(0.1), nn.Linear(9, 3))

    for make, selector in ((make_model, "*"), (wider, "*"), (make_model, "2")):
        report = tk.tune_dropout(make, overfits(0.3), selector=selector, setting=SETTING, folder=tmp_path)
        assert report.trained == 12
    assert tk.tune_dropout(wider, overfits(0.3), setting=SETTING, folder=tmp_path).trained == 0
    more = tk.tune_dropout(wider, overfits(0.3), seeds=4, setting=SETTING, folder=tmp_path)
    assert more.trained == len(more.trials)

    assert tk.tune_dropout(wider, overfits(0.5), setting=SETTING, folder=tmp_path).trained > 0

    def other(model: nn.Module, p: float, seed: int, log: Any, slope: float = 3) -> float:
        return p * slope

    for train, trained in ((other, True), (other, False), (partial(other, slope=2), True)):
        report = tk.tune_dropout(wider, train, setting=SETTING, folder=tmp_path)
        assert (report.p, report.trained > 0) == (0, trained)


def test_a_folder_takes_optuna_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"torchkeep\[trials\]"):
        tk.tune_dropout(make_model, overfits(0.3), folder=tmp_path)
    assert tk.tune_dropout(make_model, overfits(0.3), setting=SETTING).tuned


# On examples


def some(count: int = 60) -> Examples:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 4, generator=generator)
    return Examples(inputs, torch.randint(3, (count,), generator=generator), ("a", "b", "c"))


def test_frozen_parts_stay_frozen_and_keep_their_dropout_and_nothing_else_is_touched() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        model = nn.Sequential(
            *(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2)),
            nn.Linear(64, 3),
        )
        tk.freeze(model, "0, 1, 2")
        made.append(model)
        return model

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[2]
    recipe = Recipe(epochs=30, lr=1e-2, weight_decay=0.0)
    report = tk.tune_dropout(make, examples=some(), recipe=recipe, seeds=2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[2])
    assert report.verdict == "overfit"  # the labels are chance
    assert len(report.trials) > 1
    assert {model[2].p for model in made} == {0.1}
    assert {trial.p for trial in report.trials} <= {model[5].p for model in made}
    assert not any(model[0].weight.requires_grad for model in made)
    for model in made[1:3]:
        torch.manual_seed(made[1:3].index(model))
        assert torch.equal(model[0].weight, nn.Linear(4, 64).weight)


def test_on_real_data_it_finds_what_a_grid_finds() -> None:
    task = TASKS[0]
    short = replace(task, recipe=Recipe(epochs=30, lr=5e-3, weight_decay=0.0))
    proof = proved(short, 3, 0, grid=(0.0, 0.3, 0.5, 0.7))
    proof.check()
    assert proof.report.p >= 0.3
    assert len(proof.row.split("|")) == 12


def test_no_number_without_dropout_is_said() -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))  # noqa: E731
    with pytest.raises(DataError, match="no number"):
        tk.tune_dropout(make, lambda model, p, seed, log: math.nan, seeds=2)
