"""How long a million records take from the disk to a diagnosis.

    python -m benchmarks.histories [--records 1000000]

Each kind of file is written, read and diagnosed in a process of its own; seconds are of the processor.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import torchkeep as tk
from torchkeep.core.history import encode_record


def rows(count: int) -> Iterator[dict[str, float]]:
    """Losses that fall, with noise."""
    noise = np.random.default_rng(0).random((2, count)) * 0.02
    train = 2.3 * np.exp(-5 * np.arange(count) / count) + noise[0]
    for step, (one, other) in enumerate(zip(train.tolist(), (train + 0.1 + noise[1]).tolist(), strict=True)):
        yield {"step": step, "train_loss": one, "val_loss": other}


def csv(path: Path, count: int) -> Path:
    """One line a record."""
    with (path / "log.csv").open("w") as file:
        file.write("step,train_loss,val_loss\n")
        file.writelines(f"{row['step']},{row['train_loss']},{row['val_loss']}\n" for row in rows(count))
    return path / "log.csv"


def jsonl(path: Path, count: int) -> Path:
    """One object a line."""
    with (path / "log.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count))
    return path / "log.jsonl"


def run(path: Path, count: int) -> Path:
    """The history of a run of torchkeep."""
    with tk.Run(path / "run") as made:
        made.log(step=-1, train_loss=2.5, val_loss=2.5)
    with (path / "run" / "history.jsonl").open("ab") as file:
        file.writelines(map(encode_record, rows(count)))
    return path / "run"


KINDS: dict[str, Callable[[Path, int], Path]] = {"csv": csv, "jsonl": jsonl, "run": run}


def measure(path: Path) -> dict[str, float]:
    """Seconds of reading and of the rest, and the largest memory of the process in MB."""
    start = time.process_time()
    history = tk.read_history(path)
    read = time.process_time()
    tk.diagnose(history, classes=10, n_val=1000)
    done = time.process_time()
    return {
        "read": read - start,
        "diagnose": done - read,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    print(f"| {given.records:,} records | read, s | diagnose, s | peak memory, MB |\n| --- | --- | --- | --- |")
    for name, write in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), given.records)
            command = [sys.executable, "-m", "benchmarks.histories", "--measure", str(path)]
            done = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"| {name} | {done['read']:.1f} | {done['diagnose']:.1f} | {done['peak']:.0f} |")


if __name__ == "__main__":
    main()
