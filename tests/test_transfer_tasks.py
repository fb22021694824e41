"""Short forms of the proof of transfer: the nets are what they should be, and the same seeds give the same table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from torchkeep.core.transfer import Examples, Recipe
from torchkeep.trials.training import evaluate
from transfer_tasks import data, grid, proof
from transfer_tasks.tasks import TASKS, Task, named

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Recipe(epochs=4, batch=16, lr=3e-3)


@pytest.fixture
def task() -> Task:
    """A network of USPS on few digits."""
    (found,) = named(["usps-digits-500"])
    return replace(found, count=60, test=300, recipe=SMALL)


@pytest.fixture(autouse=True)
def no_advice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The textbook's plan is stood in for: it has tests of its own."""
    said = {"verdict": "similar", "signals": [], "scenario": "feature-extractor", "textbook": "head"}
    monkeypatch.setattr(proof, "told", lambda task: said)
    yield


def test_the_same_seeds_give_the_same_table(task: Task, tmp_path: Path) -> None:
    rows = [proof.prove(task, tmp_path / name, seeds=2) for name in ("one", "other")]
    one, other = (replace(row, compute=0.0, seconds=1.0) for row in rows)
    assert one == other
    assert proof.page([one]) == proof.page([other])
    assert {"head", "lp-ft", "full", "scratch"} <= one.scores.keys()
    assert one.scores[one.best] == max(one.scores.values()) > 0.5
    assert one.regret.mean == pytest.approx(one.scores[one.best] - one.scores[one.chosen])
    assert one.trials[0] < one.trials[1] == 2 * len(one.scores)
    assert all(0 < row.compute < 1 for row in rows)


def test_a_grid_that_was_stopped_goes_on(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = replace(task, recipe=Recipe(epochs=1, batch=16))
    whole = grid.run(task, tmp_path, range(1))
    path = tmp_path / f"{task.name}.json"
    grid.write(path, whole | {"trials": whole["trials"][:2]})
    done: list[str] = []
    trial = grid.trial

    def counted(*given: Any) -> dict[str, Any]:
        done.append(given[2].name)
        return trial(*given)

    monkeypatch.setattr(grid, "trial", counted)
    again = grid.run(task, tmp_path, range(1))
    assert done == whole["candidates"][2:]
    assert [one["hits"] for one in again["trials"]] == [one["hits"] for one in whole["trials"]]
    assert json.loads(path.read_text()) == again
    done.clear()
    grid.run(replace(task, recipe=Recipe(epochs=2, batch=32)), tmp_path, range(1))
    assert done == whole["candidates"]


def test_the_pool_and_the_test_set_share_nothing(task: Task) -> None:
    pool, held = task.pool, task.held
    both = torch.cat([pool.inputs, held.inputs]).flatten(1)
    assert len(both.unique(dim=0)) == len(both) == 360
    assert max(pool.counts) - min(pool.counts) <= 1


def test_pools_take_from_each_class_in_its_share() -> None:
    labels = torch.tensor([0] * 80 + [1] * 20)
    whole = Examples(torch.arange(100.0)[:, None], labels, ("a", "b"))
    pool, held = data.halves(whole, 50, 40)
    assert pool.counts == (40, 10)
    assert held.counts == (32, 8)
    assert not set(pool.inputs.flatten().tolist()) & set(held.inputs.flatten().tolist())


KNOWN = [("usps-digits-500", 0.7), ("mnist-digits-500", 0.65), ("svhn-digits-50", 0.65)]


@pytest.mark.parametrize(("name", "least"), KNOWN)
def test_the_networks_know_digits_that_they_were_not_trained_on(name: str, least: float) -> None:
    (found,) = named([name])
    hits, _ = evaluate(found.make(), replace(found, count=500, test=200).held)
    assert float(hits.double().mean()) > least


def test_tasks_have_names_of_their_own() -> None:
    assert len({found.name for found in TASKS}) == len(TASKS) >= 14
    assert all(found.count <= 500 for found in TASKS)
    with pytest.raises(SystemExit, match="there is no task nonsense; tasks are mnist-digits-50"):
        named(["nonsense"])


def test_differences_are_paired() -> None:
    gap = proof.Paired.of([0.9, 0.8, 0.7], [0.88, 0.78, 0.68])
    assert gap.mean == pytest.approx(0.02)
    assert gap.stderr == pytest.approx(0, abs=1e-9)
    assert not gap.small
    assert proof.Paired.of([0.9, 0.7], [0.7, 0.8]).small
    assert str(gap) == "2.0 ± 0.0"


def test_a_row_says_what_the_grid_measured() -> None:
    accuracies = {"head": [0.70, 0.72], "full": [0.90, 0.91], "scratch": [0.60, 0.62]}
    trials = [
        {"candidate": name, "seed": seed, "seconds": 5.0, "test": value}
        for name, values in accuracies.items()
        for seed, value in reversed(list(enumerate(values)))
    ]
    told = {"task": "one", "pool": 10, "test": 100, "size": "small", "built": "similar", "scratch": "scratch"}
    chose = {"chosen": "head", "textbook": "scratch", "verdict": "similar", "trials": 3, "full": 6, "seconds": 15.0}
    row = proof.row_of({**told, "trials": trials}, chose)
    assert (row.best, row.compute, row.seconds) == ("full", 0.5, 30.0)
    assert (str(row.regret), str(row.textbook_regret), str(row.full_regret)) == (
        "19.5 ± 0.5",
        "29.5 ± 0.5",
        "0.0 ± 0.0",
    )
    assert not row.regret.small
    assert (row.benefit, row.agrees) == ("helps", True)
    other = replace(row, verdict="ambiguous", gain=proof.Paired(-0.1, 0.01))
    assert (other.benefit, other.agrees) == ("hurts", None)
    assert (replace(other, verdict="similar").agrees, replace(other, verdict="different").agrees) == (False, True)
    said = proof.summary([row, replace(other, verdict="similar"), replace(other, gain=proof.Paired(0.01, 0.02))])
    assert said[2].endswith("| 0 of 3 tasks |")
    assert said[7].endswith("| 1 of 2 |")
    assert said[8].endswith("| 1: transfer does not matter in 1 |")
    assert "**19.5 ± 0.5**" in proof.page([row])
