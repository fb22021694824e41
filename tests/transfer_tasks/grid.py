"""The exhaustive grid: every candidate of a task trained with every seed, and measured on the test set.

    python -m transfer_tasks.grid [--tasks NAME,NAME] [--seeds 5] [--write FOLDER]     from the folder `tests`

Each task has a file NAME.json, written anew after every training, so that a grid that was stopped goes on where it was:

    {"task": its name, "size": ..., "built": ..., "pool": examples, "test": examples, "classes": how many,
     "recipe": {...}, "torch": its version,
     "trials": [{"candidate": its name, "seed": ..., "seconds": of training and evaluation on the part held out,
                 "score": accuracy on the part of the pool held out, "held": "1101..." a digit an example held out,
                 "loss": cross-entropy there, "train_accuracy": ..., "train_loss": ...,
                 "test": accuracy on the test set, "hits": "1011..." a digit a test example}, ...]}

With the same seed every candidate holds out the same examples, and hits are in the same order, so differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

import torchkeep as tk
from torchkeep.core.transfer import Candidate, Stage
from torchkeep.trials.training import evaluate, try_out

from .tasks import Task, named


def candidates(task: Task) -> list[Candidate]:
    """What the grid is made of."""
    model = task.make()
    head = tk.surgery.head_of(model)
    names = [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    names = [name for name in names if name != head]
    found = [
        Candidate("head", [Stage([head])]),
        Candidate("lp-ft", [Stage([head], share=0.3), Stage(["*"], share=0.7, rate=0.3)]),
        Candidate("full", [Stage(["*"])]),
        Candidate("scratch", [Stage(["*"])], start="scratch"),
    ]
    groups = [[str(name) for name in group] for group in np.array_split(names, min(3, len(names)))]
    found += [Candidate(f"from {k}", [Stage([*sum(groups[k:], []), head])]) for k in range(1, len(groups))]
    return [*found, Candidate("first", [Stage([*groups[0], head])])]


def prepared(task: Task, candidate: Candidate, seed: int) -> nn.Module:
    """The network that a candidate starts from: with a fresh head, or fresh throughout."""
    model = task.make()
    tk.surgery.resize_head(model, len(task.pool.classes))
    chosen = "*" if candidate.start == "scratch" else tk.surgery.head_of(model)
    tk.surgery.reinitialise(model, chosen, seed=seed)
    return model


def trial(task: Task, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Train one candidate with one seed, and measure it on the test set."""
    model = prepared(task, candidate, seed)
    outcome = try_out(model, task.pool, candidate, task.recipe, seed=seed)
    hits, _ = evaluate(model, task.held)
    return {
        "candidate": candidate.name,
        "seed": seed,
        "seconds": round(outcome.seconds, 3),
        "score": outcome.score,
        "held": digits(outcome.hits),
        "loss": outcome.loss,
        "train_accuracy": outcome.train_accuracy,
        "train_loss": outcome.train_loss,
        "test": float(hits.double().mean()),
        "hits": digits(hits),
    }


def digits(hits: torch.Tensor) -> str:
    """One digit an example: 1 where the model is right."""
    return "".join("1" if hit else "0" for hit in hits.tolist())


def run(task: Task, folder: Path, seeds: Sequence[int] = range(5)) -> dict[str, Any]:
    """The grid of one task, read from its file as far as it is there."""
    path = folder / f"{task.name}.json"
    found = json.loads(path.read_text()) if path.exists() else described(task)
    done = {(one["candidate"], one["seed"]) for one in found["trials"]}
    for seed in seeds:
        for candidate in candidates(task):
            if (candidate.name, seed) not in done:
                found["trials"].append(trial(task, candidate, seed))
                part = path.with_suffix(".part")
                part.write_text(json.dumps(found))
                part.rename(path)
    return found


def described(task: Task) -> dict[str, Any]:
    """A task's file before any training."""
    return {
        "task": task.name,
        "size": task.size,
        "built": task.built,
        "pool": len(task.pool),
        "test": len(task.held),
        "classes": len(task.pool.classes),
        "recipe": msgspec.to_builtins(task.recipe),
        "torch": torch.__version__,
        "trials": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, default=Path("build/transfer"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.write.mkdir(parents=True, exist_ok=True)
    for task in named(asked.tasks):
        began = time.perf_counter()
        found = run(task, asked.write, range(asked.seeds))
        print(task.name, f"{time.perf_counter() - began:.0f} s", summary(found), flush=True)


def summary(found: dict[str, Any]) -> str:
    """Mean test accuracy and seconds of each candidate."""
    by: dict[str, list[dict[str, Any]]] = {}
    for one in found["trials"]:
        by.setdefault(one["candidate"], []).append(one)
    return "  ".join(
        f"{name} {sum(one['test'] for one in many) / len(many):.3f} ({sum(one['seconds'] for one in many) / len(many):.1f} s)"
        for name, many in by.items()
    )


if __name__ == "__main__":
    main()
