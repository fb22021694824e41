"""prove_resume: a loop that resumes exactly passes, and each way to get it wrong is found and named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import loops
import torchkeep as tk
from torchkeep.errors import SaveError


@pytest.mark.parametrize("loop", [loops.right, loops.workers, loops.own_generator_restored])
def test_a_loop_that_is_right_passes(tmp_path: Path, loop: Callable[[str], None]) -> None:
    kills = 1 if loop is loops.workers else 2
    report = tk.prove_resume(loop, kills=kills, folder=tmp_path)
    assert report.ok, report
    assert len(report.kills) == kills and report.snapshots >= 4 and report.records == 4 and report.batches >= 16
    assert report.ignored == ("seconds",) and "the same run" in str(report)
    assert len(tk.Run(tmp_path / "killed" / "run").snapshots) >= 4, "what it made can be looked at"


@pytest.mark.parametrize(
    ("loop", "where", "cause"),
    [
        (loops.own_generator_forgotten, "batch", "a generator that is not restored"),
        (loops.unseeded, "the snapshot of step 0", "differs from itself when nothing is killed"),
        (loops.without_batches, "the snapshot", "position in the data is not kept"),
        (loops.optimizer_forgotten, "the snapshot", "the optimizer is not tracked"),
        (loops.scheduler_forgotten, "the snapshot", "a scheduler, a scaler"),
        (loops.starts_again, "batch", "the position in the data is lost"),
        (loops.draws_after_resuming, "batch", "not where it should be"),
        (loops.fails_when_resumed, "the resumed process", "does not survive being resumed"),
    ],
)
def test_what_is_wrong_is_found_and_named(loop: Callable[[str], None], where: str, cause: str) -> None:
    report = tk.prove_resume(loop, kills=1, seed=1)
    assert not report.ok and report.divergence is not None
    assert report.divergence.where.startswith(where) and cause in report.divergence.cause
    assert "another run" in str(report) and tk.to_json(report)["divergence"]["cause"]
    if loop is loops.fails_when_resumed:
        assert "no such config" in report.divergence.what


def test_generators_that_a_loop_never_draws_from_need_no_seed() -> None:
    report = tk.prove_resume(loops.right_and_seeds_only_what_it_uses, kills=2)
    assert report.ok and report.snapshots == 12, report


def test_a_loop_that_cannot_be_tried_is_refused() -> None:
    with pytest.raises(SaveError, match=r"(?s)fails when nothing is killed.*not even once"):
        tk.prove_resume(loops.fails)
    with pytest.raises(SaveError, match="ended without a run"):
        tk.prove_resume(loops.no_run)
    with pytest.raises(SaveError, match="within 5 seconds"):
        tk.prove_resume(loops.sleeps, timeout=5)
    with pytest.raises(SaveError, match="top of a module"):
        tk.prove_resume(lambda folder: None)
    with pytest.raises(SaveError, match="cannot be run"):
        tk.prove_resume(["no-such-command"])


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import loops
loops.{loop}("runs/flowers")
"""


def test_a_script_is_proved_from_the_command_line_and_its_own_runs_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent), loop="right_in_the_middle"))
    command = [sys.executable, "-m", "torchkeep", "prove-resume", "--kills", "1", "--", sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "the same run, bit for bit" in done.stdout, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    (tmp_path / "train.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent), loop="draws_after_resuming"))
    done = subprocess.run(
        [*command[:4], "--json", *command[4:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 76 and '"divergence"' in done.stdout, done.stdout + done.stderr
