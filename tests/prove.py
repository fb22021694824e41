"""The long proofs, longer than a test run may take: `make prove`. Writes docs/proofs.md.

    python tests/prove.py [--kills 200] [--flips 1000] [--mutants 30000] [--seed N]

Each proof is the long form of a test of the suite and stops with an error at the first failure.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import torchkeep as tk
from models import OPTIMIZERS, TinyNet, train_epoch
from test_running import kill_at_random
from test_verifying import flips

ROOT = Path(__file__).parents[1]


def kills(folder: Path, count: int, seed: int) -> str:
    """A loop that saves constantly is killed (SIGKILL) at random moments; it resumes from the newest committed snapshot."""
    kill_at_random(folder / "run", count, seed)
    snapshots = len(tk.Run(folder / "run").snapshots)
    return f"{count} kills, {snapshots} committed snapshots, each resume gave the newest one whole"


def bit_flips(folder: Path, count: int, seed: int) -> str:
    """A random bit of a run is flipped: verify finds it, and resume never loads it."""
    model = TinyNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with tk.Run(folder / "run") as run:
        for epoch in range(3):
            run.log(epoch=epoch, val_loss=train_epoch(model, optimizer))
            run.save(epoch, model=model, optimizer=optimizer)
    flips(folder / "run", count, seed)
    return f"{count} flips, all found, none loaded"


def mutants(folder: Path, count: int, seed: int) -> str:
    """Files of the corpus with bytes changed, cut or doubled: only errors of torchkeep come out, and none is slow."""
    for name in ("checkpoints", "evil"):
        with tarfile.open(ROOT / "tests" / "data" / f"{name}.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    suffixes = {".json", ""}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in suffixes)
    generator = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    target = folder / "mutant"
    for _ in range(count):
        target.write_bytes(mutate(generator.choice(files).read_bytes(), generator))
        started = time.perf_counter()
        try:
            for tensor in tk.open(target).values():
                with contextlib.suppress(tk.errors.TorchkeepError):
                    tensor.load()
            tk.verify(target)
            outcomes["opened"] += 1
        except tk.errors.TorchkeepError as error:
            outcomes[type(error).__name__] += 1
        slowest = max(slowest, time.perf_counter() - started)
    listed = ", ".join(f"{number} {name}" for name, number in outcomes.most_common())
    return f"{count} mutants: {listed}; the slowest took {slowest:.1f} s"


def mutate(data: bytes, generator: random.Random) -> bytes:
    """A few bytes changed, a piece cut out, doubled or moved, or the end cut off."""
    out = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(out) + 1)
        length = min(generator.choice([1, 1, 1, 4, 64, 1000]), len(out) - place)
        kind = generator.randrange(6)
        if kind < 3 and length:
            out[place : place + length] = generator.randbytes(length)
        elif kind == 3:
            del out[place : place + length]
        elif kind == 4:
            out[place:place] = out[place : place + length]
        elif generator.random() < 0.3:
            del out[place:]
    return bytes(out)


def main() -> None:
    """Run all proofs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in (("kills", 200), ("flips", 1000), ("mutants", 30_000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "proofs.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    proofs: list[tuple[Callable[[Path, int, int], str], int]] = [
        (kills, options.kills),
        (bit_flips, options.flips),
        (mutants, options.mutants),
    ]
    rows = ["# The long proofs", "", "Written by `make prove`; the suite runs short forms of all of them.", ""]
    rows += ["| what was done | outcome | seconds |", "| --- | --- | --- |"]
    for proof, count in proofs:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            outcome = proof(Path(folder), count, options.seed)
        rows.append(f"| {(proof.__doc__ or '').strip()} | {outcome} | {time.perf_counter() - started:.0f} |")
        print(rows[-1], flush=True)
    rows += ["", f"torch {torch.__version__}, Python {sys.version.split()[0]}, seed {options.seed}."]
    options.write.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
