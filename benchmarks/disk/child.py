"""One job in a process of its own: `python -m benchmarks.disk.child JOB RESULT`, both of them JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import logging
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Found = dict[str, list[float]]

# What is imported before a peer is measured, by the beginning of its name.
PACKAGES = {
    "DCP": "torch.distributed.checkpoint",
    "torch-checkpointing": "torch_checkpointing",
    "moonclip": "moonclip",
    "tensorizer": "tensorizer",
    "orbax": "orbax.checkpoint",
    "fastsafetensors": "fastsafetensors",
    "torchsnapshot": "torchsnapshot",
    "runai-model-streamer": "runai_model_streamer",
}
DISTRIBUTIONS = [
    "torch",
    "safetensors",
    "blake3",
    "torchkeep",
    "torch-checkpointing",
    "moonclip",
    "tensorizer",
    "orbax-checkpoint",
    "fastsafetensors",
    "torchsnapshot",
    "runai-model-streamer",
]
PATIENCE = 60.0  # seconds of saving or loading after which a process does not begin another one


@dataclass(frozen=True)
class Job:
    """What a process measures."""

    kind: str
    shape: str
    subject: str
    scale: float
    repeats: int
    folder: str


def preload(subject: str) -> None:
    """Import what a peer needs, so that no figure contains it."""
    for peer, module in PACKAGES.items():
        if subject.startswith(peer):
            importlib.import_module(module)


def save(job: Job, folder: Path) -> Found:
    """Save the same state again and again, each time beside the last one, which is then removed; keep the last."""
    from . import shapes
    from .limits import flat_state
    from .probe import Memory, files, size, sync, timed
    from .savers import LIMITS, SAVERS

    if job.subject in LIMITS:
        state = flat_state(shapes.bytes_of(job.shape, job.scale))
    else:
        state = shapes.state_of(job.shape, job.scale)
    saver = SAVERS[job.subject]
    tensors = shapes.flat(state)
    note = {"checksum": shapes.checksum(tensors), "name": shapes.typical(tensors)}
    (folder / "note.json").write_text(json.dumps(note))
    found: Found = {"returned": [], "durable": [], "bytes": [float(shapes.nbytes(state))]}
    began = time.perf_counter()
    kept = folder / "kept"
    for number in range(1 + job.repeats):
        if number > 1 and time.perf_counter() - began > PATIENCE:
            break
        if kept.exists():
            shutil.rmtree(kept)
        kept.mkdir()
        if number:
            returned = timed(partial(saver, state, kept))
            found["returned"].append(returned)
            found["durable"].append(returned + timed(partial(sync, kept)))
        else:  # the first one finds cold memory, and is watched
            with Memory() as memory:
                found["first"] = [timed(partial(saver, state, kept))]
            sync(kept)
            found["memory"] = [memory.rise]
    return found | {"on disk": [size(kept)], "files": [len(files(kept))]}


def load(job: Job, folder: Path) -> Found:
    """Open what was kept: one tensor, all of them with every byte touched, and into a model."""
    import torch

    from . import shapes
    from .probe import Memory, timed, warm
    from .readers import READERS

    reader, kept = READERS[job.subject], folder / "kept"
    note = json.loads((folder / "note.json").read_text())
    warm(kept)
    sums: list[int] = []

    def one() -> None:
        shapes.checksum({"": reader.first(kept, note["name"])})

    def everything() -> object:
        tensors = reader.load(kept)
        sums.append(shapes.checksum(tensors))
        return tensors

    found: Found = {"first tensor, fresh": [timed(one)]}
    with Memory() as memory:
        found["first"] = [timed(everything)]
    found["memory"] = [memory.rise]
    found |= {"first tensor": [], "open": [], "all": [], "into": []}
    began = time.perf_counter()
    for number in range(job.repeats):
        if number and time.perf_counter() - began > PATIENCE:
            break
        found["first tensor"].append(timed(one))
        found["open"].append(timed(partial(reader.load, kept)))
        found["all"].append(timed(everything))
    if job.shape == "mid":
        sizes = shapes.sizes_of(job.shape, job.scale)
        model = shapes.module_of({name: torch.empty(size) for name, size in sizes.items()})
        reader.into(kept, model)
        found["into"] = [timed(partial(reader.into, kept, model)) for _ in range(job.repeats)]
        sums.append(shapes.checksum(model.state_dict()))
    if set(sums) != {note["checksum"]}:
        raise ValueError("what was loaded is not what was saved")
    return found


def in_background(job: Job, folder: Path) -> Found:
    """Save while training goes on."""
    from . import shapes
    from .asynchronous import PEERS, measure

    model, optimizer = shapes.training(job.shape, job.scale)
    return measure(PEERS[job.subject], model, optimizer, folder, 1 + job.repeats)


def run(job: Job, folder: Path) -> Found:
    """Snapshots of one training."""
    from .runs import KEEPERS, measure

    return measure(KEEPERS[job.subject], job.shape, job.scale, folder, job.repeats)


def limits(job: Job, folder: Path) -> Found:
    """What the machine can do."""
    from .limits import measure
    from .shapes import bytes_of

    total = bytes_of(job.shape, job.scale)
    return measure(total, folder, job.repeats) | {"bytes": [total]}


KINDS: dict[str, Callable[[Job, Path], Found]] = {
    "save": save,
    "load": load,
    "async": in_background,
    "run": run,
    "limits": limits,
}


def versions() -> str:
    """What is installed."""
    known = []
    for name in DISTRIBUTIONS:
        with contextlib.suppress(PackageNotFoundError):
            known.append(f"{name} {version(name)}")
    return ", ".join(known)


def outcome(job: Job) -> dict[str, Any]:
    """What was measured, or why it was not."""
    try:
        preload(job.subject)
    except ModuleNotFoundError as error:
        return {"failed": f"not installed ({error.name})"}
    try:
        return {"found": KINDS[job.kind](job, Path(job.folder))}
    except Exception as error:  # whatever a peer raises is its outcome
        return {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"}


def main() -> None:
    """Do the job that the first argument describes, and write what was found where the second one says."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if sys.argv[1] == "versions":
        result: dict[str, Any] = {"versions": versions()}
    else:
        result = outcome(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(result))


def described(job: Job) -> str:
    """The first argument."""
    return json.dumps(dataclasses.asdict(job))


if __name__ == "__main__":
    main()
