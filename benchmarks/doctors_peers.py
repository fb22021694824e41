"""Runs the other doctors on CSV files of learning curves: the part of benchmarks/doctors.py that their environment runs.

    python benchmarks/doctors_peers.py FILE ...

Prints a JSON object: by file and tool, what the tool said, as [what, how grave, its own confidence or null], gravest first.
Each tool is given the curves as it wants them: the columns under the names it knows, and the format it reads.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Said = list[tuple[str, str, float | None]]
RANKS = ("critical", "error", "high", "warning", "medium", "info")


def rows_of(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV as numbers."""
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def renamed(path: Path, names: dict[str, str], folder: Path) -> Path:
    """The same table with other names of columns."""
    header, _, rest = path.read_text().partition("\n")
    target = folder / path.name
    target.write_text(",".join(names.get(name, name) for name in header.split(",")) + "\n" + rest)
    return target


def finetune_doctor(path: Path) -> Said:
    """It reads Trainer's state; it is told to go by the accuracy where there is one."""
    names = {"train_loss": "loss", "lr": "learning_rate", "val_loss": "eval_loss", "val_accuracy": "eval_accuracy"}
    log: list[dict[str, float]] = []
    for row in rows_of(path):
        given = {names[key]: value for key, value in row.items() if key in names}
        place = {"step": int(row["epoch"]), "epoch": row["epoch"]}
        log.append({**place, **{key: value for key, value in given.items() if not key.startswith("eval_")}})
        log.append({**place, **{key: value for key, value in given.items() if key.startswith("eval_")}})
    state = {"log_history": log, "global_step": len(log) // 2, "max_steps": len(log) // 2, "epoch": len(log) // 2}
    history = import_module("finetune_doctor.history").from_trainer_state(state)
    metric = "eval_accuracy" if "eval_accuracy" in history.evals else None
    found = import_module("finetune_doctor").diagnose(history, metric=metric).problems
    return [(one.check, one.severity.name.lower(), None) for one in found]


def trainspotter(path: Path) -> Said:
    """It counts in steps, so the epochs are called that."""
    with tempfile.TemporaryDirectory() as folder:
        run = import_module("trainspotter.readers").load_run(renamed(path, {"epoch": "step"}, Path(folder)))
    return [(one.detector, one.severity, None) for one in import_module("trainspotter.detectors").run_all(run)]


def losslint(path: Path) -> Said:
    """It reads the CSV as it is."""
    run = import_module("losslint.parsing").load_run(path)
    return [(one.check, one.severity, None) for one in import_module("losslint.checks").run_all_checks(run)]


def sk_autod(path: Path) -> Said:
    """It takes two lists; fewer than five points, or any that is no number, it refuses, which counts as cannot-say."""
    rows = rows_of(path)
    try:
        report = import_module("sk_autod").diagnose(
            [row["train_loss"] for row in rows], [row["val_loss"] for row in rows]
        )
    except ValueError:
        return [("refused", "info", None)]
    return [(one.detector_name, one.severity.value.lower(), one.confidence) for one in report.findings]


def training_doctor(path: Path) -> Said:
    """It wants eval_loss."""
    with tempfile.TemporaryDirectory() as folder:
        doctor = import_module("training_doctor").Doctor()
        doctor.load(renamed(path, {"val_loss": "eval_loss"}, Path(folder)))
    return [(one.problem, one.severity.value, one.confidence) for one in doctor.analyze()]


TOOLS: dict[str, Callable[[Path], Said]] = {
    "finetune-doctor": finetune_doctor,
    "trainspotter": trainspotter,
    "losslint": losslint,
    "sk-autod": sk_autod,
    "training-doctor": training_doctor,
}


def main() -> None:
    answers: dict[str, dict[str, Any]] = {}
    for name in sys.argv[1:]:
        answers[name] = {}
        for tool, ask in TOOLS.items():
            try:
                said = ask(Path(name))
            except Exception as error:  # whatever a tool stumbles over is its answer
                said = [("crashed", "info", None)]
                print(f"{tool} on {name}: {error!r}", file=sys.stderr)
            answers[name][tool] = sorted(set(said), key=lambda one: (RANKS.index(one[1]), one[0]))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
