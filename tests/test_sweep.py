"""Sweeps from end to end: a choice, the same one every time, through kills and with several processes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchkeep as tk
from architectures_surgery import ViT
from models import TinyNet, state_bits
from torchkeep.core.transfer import Examples
from torchkeep.errors import DataError, SaveError, SelectorError, SurgeryError
from torchkeep.surgery import resize_head

RECIPE = tk.Recipe(epochs=6, batch=8, lr=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stripes(count: int = 40, classes: int = 4) -> Examples:
    """Images whose class is the row that is bright."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % classes
    images = torch.randn(count, 1, 5, 5, generator=generator) * 0.3
    images[torch.arange(count), 0, labels] += 1.5
    return Examples(images, labels, tuple(f"row {label}" for label in range(classes)), "stripes")


def net() -> nn.Module:
    torch.manual_seed(0)
    return TinyNet()


def facts(report: tk.SweepReport) -> list[Any]:
    """What is the same with the same seeds: all but the seconds."""
    rows = [{key: value for key, value in one.items() if key != "seconds"} for one in tk.to_json(report)["candidates"]]
    losses = {pair: outcome.losses.tolist() for pair, outcome in report.outcomes.items()}
    return [rows, losses, report.chosen, report.best, report.why]


def test_a_sweep_chooses_and_says_why() -> None:
    model = net()
    before = state_bits(model)
    report = tk.sweep(model, stripes(), recipe=RECIPE, seeds=6)
    assert state_bits(model) == before and all(one.requires_grad for one in model.parameters())
    names = [one.name for one in report.candidates]
    assert names == ["head", "lp-ft", "stage 3", "stages 2-3", "stage 1", "full", "scratch"]
    assert report.chosen in names and report.plan.name == report.chosen and report.snapshot is None
    assert report.full == 42 and len(report.outcomes) == sum(one.trials for one in report.candidates) <= 14
    assert report.zones["scratch"] == "not compared"
    shown = str(report)
    assert shown.startswith(f"go on with {report.chosen!r}") and all(name in shown for name in names)
    told = tk.to_json(report)
    assert told["chosen"] == report.chosen and {"name", "score", "stderr", "seconds"} <= told["candidates"][0].keys()
    json.dumps(told, allow_nan=False)


def test_the_same_seeds_give_the_same_table(tmp_path: Path) -> None:
    first = tk.sweep(net(), stripes(), recipe=RECIPE)
    torch.manual_seed(9)
    assert facts(tk.sweep(net, stripes(), recipe=RECIPE, cache=False)) == facts(first)
    kept = tk.sweep(nn.DataParallel(net()), stripes(), recipe=RECIPE, folder=tmp_path)
    assert facts(kept) == facts(first)
    other = tk.sweep(net(), stripes(), recipe=RECIPE, seed=6)
    assert facts(other) != facts(first)


def test_the_weights_of_the_winner_are_ready_to_use(tmp_path: Path) -> None:
    report = tk.sweep(net(), stripes(), recipe=RECIPE, folder=tmp_path / "sweep")
    assert report.snapshot is not None and tk.is_run(report.snapshot)
    model = net()
    resize_head(model, 4, name=report.head)
    tk.load_into(model, tk.Run(report.snapshot).open())
    mine = [outcome for (name, _), outcome in report.outcomes.items() if name == report.chosen]
    outcome = min(mine, key=lambda one: (-one.score, one.loss))
    held = stripes().take(outcome.places)
    with torch.no_grad():
        right = model.eval()(held.inputs).argmax(1) == held.labels
    assert right.equal(outcome.hits)
    rows = list(tk.read_history(report.snapshot).records)
    assert len(rows) == RECIPE.epochs + 1 and "val_accuracy" in rows[-1]


def test_what_has_no_fresh_values_of_its_own_is_named() -> None:
    generator = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(12, 3, 32, 32, generator=generator), torch.arange(12) % 2, ("a", "b"))
    candidates = [tk.Candidate("fresh", [tk.Stage("*")], start="scratch")]
    report = tk.sweep(ViT(), examples, recipe=tk.Recipe(epochs=1), seeds=1, candidates=candidates)
    assert len(report.notes) == 1 and "cls_token, pos_embed" in report.notes[0]
    assert report.notes[0] in str(report)


def test_a_grid_holds_every_trial() -> None:
    candidates = [tk.Candidate("all", [tk.Stage("*")]), tk.Candidate("fresh", [tk.Stage("*")], start="scratch")]
    report = tk.sweep(net(), stripes(), recipe=RECIPE, seeds=3, exhaustive=True, candidates=candidates)
    assert sorted(report.outcomes) == [(name, seed) for name in ("all", "fresh") for seed in range(3)]
    assert report.zones.keys() == {"all", "fresh"}
    every = [outcome.score for (name, _), outcome in report.outcomes.items() if name == "all"]
    assert report["all"].score == pytest.approx(sum(every) / 3)


# -- interrupted, and by several --------------------------------------------------------------------------------

SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import torchkeep as tk
import torchkeep.trials.trying as trying
from test_sweep import RECIPE, net, stripes

real = trying.try_out

def slow(*args, **given):
    outcome = real(*args, **given)
    with open(sys.argv[2], "a") as file:
        file.write(f"{{outcome.candidate}} {{outcome.seed}}\\n")
    time.sleep(float(sys.argv[3]))
    return outcome

trying.try_out = slow
if __name__ == "__main__":
    print(tk.sweep(net(), stripes(), recipe=RECIPE, folder=sys.argv[1]).chosen)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent)))
    return path


def worker(script: Path, folder: Path, log: Path, nap: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(folder), str(log), str(nap)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ.copy())


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_a_killed_sweep_goes_on_without_repeating_a_trial(script: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "log"
    first = worker(script, folder, log, 0.4)
    until = time.monotonic() + 90
    while len(lines(log)) < 4 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)  # the fourth trial is done and was not told
    first.communicate()
    begun = lines(log)
    report = tk.sweep(net(), stripes(), recipe=RECIPE, folder=folder)
    assert facts(report) == facts(tk.sweep(net(), stripes(), recipe=RECIPE))
    started = {f"{name} {seed}" for name, seed in report.outcomes}
    assert set(begun) <= started and len(begun) == len(set(begun)) >= 4
    states = states_of(folder)
    assert states.count("COMPLETE") == len(report.outcomes) and states.count("FAIL") == 1
    assert "RUNNING" not in states


def states_of(folder: Path) -> list[str]:
    import optuna

    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    study = optuna.load_study(study_name="sweep", storage=optuna.storages.JournalStorage(backend))
    return [trial.state.name for trial in study.trials]


def test_processes_share_the_work(script: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "log"
    both = [worker(script, folder, log, 0.1) for _ in range(2)]
    told = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    report = tk.sweep(net(), stripes(), recipe=RECIPE, folder=folder)
    assert [out.strip() for out, _ in told] == [report.chosen] * 2
    assert sorted(lines(log)) == sorted(f"{name} {seed}" for name, seed in report.outcomes)
    assert states_of(folder) == ["COMPLETE"] * len(report.outcomes)


def test_a_trial_that_was_saved_and_not_told_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchkeep.trials import study, trying

    class Killed(BaseException):
        pass

    def dies(*_: Any) -> None:
        raise Killed

    candidates = [tk.Candidate("all", [tk.Stage("*")])]
    given: dict[str, Any] = {"recipe": RECIPE, "candidates": candidates, "seeds": 1, "folder": tmp_path}
    with monkeypatch.context() as patched:
        patched.setattr(study.Study, "finish", dies)
        with pytest.raises(Killed):
            tk.sweep(net(), stripes(), **given)
    monkeypatch.setattr(trying, "try_out", dies)
    report = tk.sweep(net(), stripes(), **given)
    assert list(report.outcomes) == [("all", 0)] and len(report["all"].name) == 3


def test_a_folder_has_one_sweep(tmp_path: Path) -> None:
    candidates = [tk.Candidate("all", [tk.Stage("*")])]
    given: dict[str, Any] = {"candidates": candidates, "seeds": 1, "folder": tmp_path}
    tk.sweep(net(), stripes(), recipe=RECIPE, **given)
    with pytest.raises(DataError, match="other recipe"):
        tk.sweep(net(), stripes(), recipe=tk.Recipe(epochs=1), **given)
    with pytest.raises(DataError, match="other examples"):
        tk.sweep(net(), stripes(44), recipe=RECIPE, **given)
    torch.manual_seed(1)
    with pytest.raises(DataError, match="other weights"):
        tk.sweep(TinyNet(), stripes(), recipe=RECIPE, **given)
    more = tk.sweep(net(), stripes(), recipe=RECIPE, seed=1, **given)
    assert list(more.outcomes) == [("all", 1)]


# -- what goes wrong --------------------------------------------------------------------------------------------


class Explosive(TinyNet):
    """Gives what is no number, or fails, when everything is trained."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def forward(self, images: Tensor) -> Tensor:
        scores = super().forward(images)
        if self.training and self.conv.weight.requires_grad:
            if self.fails:
                raise ZeroDivisionError("too much")
            return scores * torch.nan
        return scores


def test_a_trial_that_diverges_is_the_worst() -> None:
    torch.manual_seed(0)
    report = tk.sweep(Explosive(), stripes(), recipe=RECIPE, seeds=2)
    assert report["full"].score == 0.0 and report["full"].trials == 1
    assert report.chosen in {"head", "stage 3", "stages 2-3"}
    json.dumps(tk.to_json(report), allow_nan=False)


def test_a_trial_that_fails_names_the_candidate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError) as caught:
        tk.sweep(Explosive(fails=True), stripes(), recipe=RECIPE, seeds=1, folder=tmp_path)
    assert caught.value.__notes__ == ["in the trial of 'lp-ft' with seed 0"]
    assert states_of(tmp_path) == ["COMPLETE", "FAIL"]


def spoilt(**changes: Any) -> Examples:
    good = stripes()
    return Examples(**{"inputs": good.inputs, "labels": good.labels, "classes": good.classes, **changes})


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (spoilt(labels=torch.zeros(40, dtype=torch.int64)), "classes"),
        (spoilt(labels=torch.arange(40) % 5), "from 0 to 3"),
        (spoilt(labels=torch.arange(40) % 4 - 1), "from 0 to 3"),
        (spoilt(inputs=torch.zeros(0, 1, 5, 5), labels=torch.zeros(0, dtype=torch.int64)), "there are no examples"),
        (spoilt(inputs=torch.full((40, 1, 5, 5), torch.nan)), "NaN"),
        (spoilt(inputs=torch.zeros(40, 3, 5, 5)), "cannot take"),
    ],
)
def test_bad_examples_are_refused_before_any_training(examples: Examples, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        tk.sweep(net(), examples, recipe=RECIPE, folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"lr": math.nan}, {"weight_decay": -1.0}])
def test_wrong_recipes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"recipe.{next(iter(wrong))}"):
        tk.Recipe(**wrong)


def test_wrong_candidates_are_refused() -> None:
    with pytest.raises(SelectorError, match="hed"):
        tk.sweep(net(), stripes(), candidates=[tk.Candidate("head", [tk.Stage("hed")])])
    for stages in ([], [tk.Stage("*", share=0)], [tk.Stage("*"), tk.Stage("*", share=-1.0)]):
        with pytest.raises(ValueError, match="'a' has"):
            tk.Candidate("a", stages)
    twice = [tk.Candidate("a", [tk.Stage("*")])] * 2
    with pytest.raises(ValueError, match="name of its own"):
        tk.sweep(net(), stripes(), candidates=twice)
    with pytest.raises(ValueError, match="seeds"):
        tk.sweep(net(), stripes(), seeds=0)
    for empty in (nn.Identity(), nn.LazyLinear(3), nn.Linear(2, 3, device="meta")):
        with pytest.raises(DataError, match="no weights"):
            tk.sweep(empty, stripes())
    with pytest.raises(DataError, match="not a model"):
        tk.sweep(lambda: 3, stripes())  # type: ignore[arg-type,return-value]


def test_the_same_weights_in_other_layers_are_another_sweep(tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipe": tk.Recipe(epochs=1), "seeds": 1, "folder": tmp_path}
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 6), nn.ReLU(), nn.Linear(6, 4))
    tk.sweep(model, stripes(), **given)
    model[2] = nn.Tanh()
    with pytest.raises(DataError, match="other layers"):
        tk.sweep(model, stripes(), **given)


def test_weights_that_were_taken_away_are_not_offered(tmp_path: Path) -> None:
    given: dict[str, Any] = {"recipe": tk.Recipe(epochs=1), "seeds": 1, "folder": tmp_path}
    assert Path(tk.sweep(net(), stripes(), **given).snapshot or "").is_dir()
    shutil.rmtree(tmp_path / "trials")
    again = tk.sweep(net(), stripes(), **given)
    assert again.snapshot is None and "no longer there" in again.notes[-1]


@pytest.mark.parametrize("name", ["x" * 300, "ü" * 200, "../../up", "a/b\\c", ".", "", "\ud800", "con\0\n[red]$"])
def test_any_name_of_a_candidate_makes_a_folder_in_its_place(name: str, tmp_path: Path) -> None:
    candidates = [tk.Candidate(name, [tk.Stage("*")])]
    report = tk.sweep(net(), stripes(), candidates=candidates, recipe=tk.Recipe(epochs=1), seeds=1, folder=tmp_path)
    assert report.chosen == name and Path(report.snapshot or "").parent == tmp_path / "trials"


def test_arguments_and_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match="seed is"):
            tk.sweep(net(), stripes(), seeds=1, seed=seed)
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="cannot be a folder"):
        tk.sweep(net(), stripes(), seeds=1, folder=tmp_path / "file")
    with pytest.raises(DataError, match="a str, not a model"):
        tk.sweep("net", stripes())  # type: ignore[arg-type]


def test_a_model_that_cannot_be_copied_is_said() -> None:
    model = net()
    model.held = torch.ones(1, requires_grad=True) * 2
    for verb in (tk.sweep, tk.similarity, tk.advise):
        with pytest.raises(SurgeryError, match="cannot be copied"):
            verb(model, stripes())  # type: ignore[operator]


def test_a_head_that_does_not_give_the_scores_is_said() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.first, self.last = nn.Linear(25, 6), nn.Linear(6, 7), nn.Linear(6, 9)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.body(x.flatten(1))
            return self.first(x), self.last(x)

    for verb in (tk.sweep, tk.advise):
        with pytest.raises(SurgeryError, match="'last' was made to give 4 scores, and the model gives 7"):
            verb(Two(), stripes())  # type: ignore[operator]


def test_a_run_is_no_place_for_a_sweep(tmp_path: Path) -> None:
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=net())
    with pytest.raises(DataError, match="is a run"):
        tk.sweep(net(), stripes(), recipe=RECIPE, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "trials").exists()
