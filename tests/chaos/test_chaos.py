"""A crash tester that others wrote, ckpt-chaos, tries to break an ordinary training script.

It asks little of a script: a command with `{out}` where the folder goes, which goes on by itself when it is run again,
prints the step it resumes from, writes a result that is the same byte for byte in every run, and gives each checkpoint a
name with its step in it. A run has that: `snapshots/3.json` appears in one step when the third snapshot is complete. The
sizes of those files are left out of the comparison, because they hold times. It counts the file events of a run without a
fault, then for each of some events (opening for writing, mkdir, rename, remove) kills a fresh run there, resumes it, and
compares the result: `before` the event; `torn`, after half of a file that Python's open() wrote; `unsynced`, with
everything lost that such a file was given since its last fsync. Its note PLAN DRIFT only says that temporary files have
other names in every run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("train.py")
POINTS = 4


@pytest.mark.parametrize("how", [[], ["--engine=direct", "--beside"]], ids=["as it comes", "direct and beside"])
def test_an_ordinary_script_survives_ckpt_chaos(tmp_path: Path, how: list[str]) -> None:
    command = [sys.executable, "-m", "ckpt_chaos", "run", "--work", tmp_path / "work", "--jobs", 2]
    command += ["--modes", "before,torn,unsynced", "--max-points", POINTS, "--timeout", 120]
    command += ["--fail-on", "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"]
    command += ["--step-regex", r"resumed: (\d+) epochs", "--result-file", "{out}/weights.safetensors"]
    command += ["--checkpoint-glob", "{out}/run/snapshots/*.json", "--ckpt-ignore-size"]
    command += ["--", sys.executable, SCRIPT, "--out", "{out}", "--epochs", 2, *how]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said

    verdicts = re.findall(r"^(?:[A-Z_]+: \d+ *)+$", done.stdout, re.M)
    assert verdicts == [f"PASS: {POINTS + 1}"], said  # the points, and a run without a fault
    faults = [json.loads(path.read_text()) for path in (tmp_path / "work").glob("pt_[0-9]*/result.json")]
    assert len(faults) == POINTS and all(fault["crashed"] for fault in faults), said
    modes = {mode for _, mode in (fault["point"] for fault in faults)}
    assert modes == {"before", "torn", "unsynced"}, said
    steps = {fault["outcome"]["resumed_from_step"] for fault in faults}
    assert 0 in steps and len(steps) > 1, said  # before there was a snapshot, and after
