"""What doctors of learning curves say about real training runs whose truth was measured.

    python -m benchmarks.doctors FOLDER ... [--python .venv-doctors/bin/python] [--write FILE]

A FOLDER has runs of tests/training_runs: a CSV each, and a JSON with the grade of every verdict; what these mean is in
docs/design/curves-truth.md. `--python` is an interpreter that has the tools of benchmarks/requirements-doctors.txt; without
it only torchkeep answers. MEANS maps what the tools say to torchkeep's words, in their favour:
a finding that may mean several things counts as the one that is graded best; of several findings the gravest counts, and
among equally grave ones the best; no finding is `healthy`, said without confidence; an underfit needs no cause. What none of torchkeep's words fits is passed over.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchkeep as tk

INTRODUCTION = """# Doctors of learning curves, on runs whose truth was measured

Written by `make bench` (`python -m benchmarks.doctors`). The runs are real trainings of small nets, made by
`python -m tests.training_runs`; what is the matter with each was measured on a large held-out set and by reruns that change one
thing; which verdicts are right, acceptable or confidently wrong (said with a confidence of 0.8 or more) is on
[a page](design/curves-truth.md) that was there before the rules. torchkeep's rules were tuned on the first set and scored once on the second (36 of 45
right, 42 right or acceptable, none confidently wrong), amended and scored once on the third (41 of 58, 46, 2), amended again and
scored once on the fourth, `final` (47 of 60, 51, none), amended with all four in view and scored
once on the fifth, `fresh` (53 of 60, 58, none), and, after one mend, once on the sixth, `sixth` (50 of 60, 56, none). **Its rows under the first
four are of runs that its rules were made with**: they show how the rules fit, not how good they are. The other doctors had seen none of them. What the others say is mapped to these words in their favour: an underfit of theirs needs no cause, silence
is an unconfident `healthy`.

✓ right, ~ acceptable, ✗ wrong, ‼ confidently wrong.
"""
GRADES = ("right", "acceptable", "wrong", "confidently_wrong")
MARKS = {"right": "✓", "acceptable": "~", "wrong": "✗", "confidently_wrong": "‼"}
CONFIDENT = 0.8
FEW = "torchkeep, told classes and n_val alone"
UNDERFIT = ("underfit/too-short", "underfit/capacity", "underfit/optimisation")
SLOW = ("underfit/too-short", "underfit/optimisation")
FAST = ("unstable", "underfit/optimisation")
FLAT = (*UNDERFIT, "healthy")
MEANS: dict[str, dict[str, tuple[str, ...]]] = {
    "finetune-doctor": {
        "overfitting": ("overfit",),
        "metric_disagreement": ("over-confident",),
        "stopped_improving": ("healthy",),
        "not_learning": UNDERFIT,
        "no_eval": ("cannot-say",),
        "loss_degenerate": ("unstable", "cannot-say"),
        "loss_spikes": ("unstable",),
        "gradients": ("unstable",),
    },
    "trainspotter": {
        "overfitting": ("overfit",),
        "divergence": ("unstable",),
        "spikes": ("unstable",),
        "plateau": FLAT,
        "eval_noise": ("cannot-say",),
    },
    "losslint": {
        "nan_inf": ("unstable", "cannot-say"),
        "divergence": ("unstable",),
        "loss_spike": ("unstable",),
        "overfit_onset": ("overfit",),
        "stagnation": FLAT,
    },
    "sk-autod": {
        "refused": ("cannot-say",),
        "Classic overfitting": ("overfit",),
        "Missed early stopping": ("overfit", "over-confident"),
        "Exploding gradient": ("unstable",),
        "LR too high": FAST,
        "LR too low": SLOW,
        "Underfitting": UNDERFIT,
        "Dying ReLU proxy": UNDERFIT,
        "Noisy training": ("unstable",),
        "Label noise floor": (*UNDERFIT, "generalisation-gap"),
    },
    "training-doctor": {
        "Overfitting detected": ("overfit",),
        "Learning rate likely too high": FAST,
        "Learning rate may be too low": SLOW,
        "Training plateau detected": FLAT,
        "Early training plateau": UNDERFIT,
        "Gradient instability detected": ("unstable",),
        "Possible mixed precision instability": ("unstable",),
        "Unusual train/eval pattern": ("cannot-say",),
    },
}
GRAVE = ("critical", "error", "high", "warning", "medium")  # what counts as confident where a tool gives no number


@dataclass(frozen=True)
class Case:
    """A run: its name, what it was built for, what was measured to be the matter, and the grade of each verdict."""

    name: str
    path: Path
    built_for: str
    cause: str
    grades: Mapping[str, str]
    setting: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """One verdict, its grade, and what the tool said."""

    verdict: str
    grade: str


def cases(folder: Path) -> list[Case]:
    """The runs of a folder, by what they were built for."""
    found = []
    for path in sorted(folder.glob("*.json")):
        noted = json.loads(path.read_text())
        grades = {verdict: grade for grade in GRADES for verdict in noted["truth"][grade]}
        found.append(
            Case(
                noted["name"],
                path.with_suffix(".csv"),
                noted["built_for"],
                noted["truth"]["cause"],
                grades,
                noted["setting"],
            )
        )
    return sorted(found, key=lambda case: (case.built_for, case.name))


def graded(case: Case, verdict: str, confident: bool) -> Answer:
    """A verdict with its grade: what is wrong in any case is confidently so only where it is said with confidence."""
    grade = case.grades[verdict]
    return Answer(verdict, "wrong" if grade == "confidently_wrong" and not confident else grade)


def best(answers: list[Answer]) -> Answer:
    """The answer with the best grade."""
    return min(answers, key=lambda answer: GRADES.index(answer.grade))


def read(tool: str, said: list[tuple[str, str, float | None]], case: Case) -> Answer:
    """What a tool's findings come to, in its favour."""
    means = MEANS[tool]
    known = [(what, rank, sure) for what, rank, sure in said if what in means]
    if not known:
        return graded(case, "healthy", confident=False)
    gravest = known[0][1]
    answers = [
        graded(case, verdict, sure >= CONFIDENT if sure is not None else rank in GRAVE)
        for what, rank, sure in known
        if rank == gravest
        for verdict in means[what]
    ]
    return best(answers)


def torchkeep_says(case: Case, told: tuple[str, ...] | None = None) -> Answer:
    """The verdict of tk.diagnose, told the whole setting or some of it."""
    setting = {key: value for key, value in case.setting.items() if told is None or key in told}
    diagnosis = tk.diagnose(case.path, setting=tk.Setting(**setting))
    verdict = f"{diagnosis.verdict}/{diagnosis.cause}" if diagnosis.cause else diagnosis.verdict
    return graded(case, verdict, diagnosis.confidence >= CONFIDENT)


def asked(runs: list[Case], python: str | None) -> dict[str, dict[str, Answer]]:
    """By tool and run: the answers."""
    answers: dict[str, dict[str, Answer]] = {}
    answers["torchkeep"] = {case.name: torchkeep_says(case) for case in runs}
    answers[FEW] = {case.name: torchkeep_says(case, ("classes", "n_val", "target_variance")) for case in runs}
    if python:
        script = Path(__file__).with_name("doctors_peers.py")
        done = subprocess.run(
            [python, str(script), *(str(case.path) for case in runs)], check=True, capture_output=True, text=True
        )
        said = json.loads(done.stdout)
        for tool in MEANS:
            answers[tool] = {case.name: read(tool, said[str(case.path)][tool], case) for case in runs}
    answers["always healthy"] = {case.name: graded(case, "healthy", confident=True) for case in runs}
    answers["always cannot-say"] = {case.name: graded(case, "cannot-say", confident=True) for case in runs}
    return answers


def totals(runs: list[Case], answers: dict[str, dict[str, Answer]]) -> list[str]:
    """One line a tool."""
    lines = ["| | right | right or acceptable | confidently wrong |", "| --- | --- | --- | --- |"]
    for tool, said in answers.items():
        tally = Counter(answer.grade for answer in said.values())
        good = tally["right"] + tally["acceptable"]
        shares = [f"{count} of {len(runs)} ({count / len(runs):.0%})" for count in (tally["right"], good)]
        lines.append(f"| {tool} | {' | '.join(shares)} | {tally['confidently_wrong']} |")
    return lines


def each(runs: list[Case], answers: dict[str, dict[str, Answer]]) -> list[str]:
    """One line a run."""
    tools = [tool for tool in answers if not tool.startswith("always") and tool != FEW]
    lines = [f"| run | built for | measured: right | {' | '.join(tools)} |", "| --- " * (3 + len(tools)) + "|"]
    for case in runs:
        right = ", ".join(verdict for verdict, grade in case.grades.items() if grade == "right")
        cells = [f"{MARKS[answers[tool][case.name].grade]} {answers[tool][case.name].verdict}" for tool in tools]
        lines.append(f"| {case.name} | {case.built_for} | {case.cause}: {right} | {' | '.join(cells)} |")
    return lines


def page(folders: list[Path], python: str | None) -> str:
    """The totals of each set, then its runs."""
    lines = [INTRODUCTION]
    for folder in folders:
        runs = cases(folder)
        answers = asked(runs, python)
        lines += [f"## {folder.name}", "", *totals(runs, answers), "", *each(runs, answers), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="sets of runs")
    parser.add_argument("--python", help="an interpreter that has the other tools")
    parser.add_argument("--write", type=Path, help="a file for the table")
    given = parser.parse_args()
    text = page(given.folders, given.python)
    if given.write:
        given.write.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
