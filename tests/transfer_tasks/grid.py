"""The exhaustive grid: every candidate of a task trained with every seed, and measured on the test set.

    python -m transfer_tasks.grid [--tasks NAME,NAME] [--seeds 5] [--write FOLDER]     from the folder `tests`

Each task has a file NAME.json, written anew after every training, so that a grid that was stopped goes on where it was:

    {"task": its name, "size": ..., "built": ..., "pool": examples, "test": examples, "classes": how many,
     "recipe": {...}, "candidates": their names, "scratch": the one from fresh weights, "torch": its version,
     "trials": [{"candidate": its name, "seed": ..., "seconds": of the processor, for training and for evaluation on the pool,
                 "score": accuracy on the part of the pool held out, "held": "1101..." a digit an example held out,
                 "losses": cross-entropy of each of them, "train_accuracy": ..., "train_loss": ...,
                 "test": accuracy on the test set, "hits": "1011..." a digit a test example}, ...]}

With the same seed every candidate holds out the same examples, and hits are in the same order, so differences are paired.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from torchkeep.core.transfer import Candidate
from torchkeep.sweeping import prepared
from torchkeep.trials.candidates import candidates_for
from torchkeep.trials.training import evaluate, try_out
from torchkeep.trials.trying import Trials

from .tasks import Task, named


def trial(trials: Trials, task: Task, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Train one candidate with one seed, as a sweep would without its cache, and measure it on the test set."""
    model = trials.start(candidate, seed)
    began = time.process_time()
    outcome = try_out(model, task.pool, candidate, task.recipe, seed=seed)
    seconds = time.process_time() - began
    hits, _ = evaluate(model, task.held)
    return {
        "candidate": candidate.name,
        "seed": seed,
        "seconds": round(seconds, 3),
        "score": outcome.score,
        "held": digits(outcome.hits),
        "losses": [round(loss, 5) for loss in outcome.losses.tolist()],
        "train_accuracy": outcome.train_accuracy,
        "train_loss": outcome.train_loss,
        "test": float(hits.double().mean()),
        "hits": digits(hits),
    }


def digits(hits: torch.Tensor) -> str:
    """One digit an example: 1 where the model is right."""
    return "".join("1" if hit else "0" for hit in hits.tolist())


def run(task: Task, folder: Path, seeds: Sequence[int] = range(5)) -> dict[str, Any]:
    """The grid of one task, read from its file as far as it is there and of the same task."""
    path, found = folder / f"{task.name}.json", described(task)
    if path.exists():
        kept = json.loads(path.read_text())
        found["trials"] = kept.pop("trials") if kept | {"trials": []} == found else []
    model, head = prepared(task.make, task.pool)
    listed = candidates_for(model, head=head)
    done = {(one["candidate"], one["seed"]) for one in found["trials"]}
    missing = [(one, seed) for seed in seeds for one in listed if (one.name, seed) not in done]
    trials = Trials(None, model, head, task.pool, listed, task.recipe)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # what the first optimizer imports costs seconds
    for candidate, seed in missing:
        found["trials"].append(trial(trials, task, candidate, seed))
        write(path, found)
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a file of JSON, or leave the old one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.rename(path)


def described(task: Task) -> dict[str, Any]:
    """A task's file before any training."""
    model, head = prepared(task.make, task.pool)
    candidates = candidates_for(model, head=head)
    return {
        "task": task.name,
        "size": task.size,
        "built": task.built,
        "pool": len(task.pool),
        "test": len(task.held),
        "classes": len(task.pool.classes),
        "recipe": msgspec.to_builtins(task.recipe),
        "candidates": [candidate.name for candidate in candidates],
        "scratch": next(candidate.name for candidate in candidates if candidate.start == "scratch"),
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
