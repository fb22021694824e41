"""The long proofs, longer than a test run may take: `make prove`. Writes docs/proofs.md.

    python tests/prove.py [resume] [kills] [power] [prune] [flips] [mutants] [structures] [dropout] [fuzz] [transfer]
        all of them, if none is named
        [--resume 500] [--kills 200] [--power 5000] [--prune 60] [--flips 1000] [--mutants 30000]
        [--structures 12000] [--dropout 5] [--seed N]
        [--tasks NAME,NAME] [--trials build/transfer]
        [--minutes 30] [--others 5] [--targets unpickler,torch_zip] [--tools guided,made] [--keep build/fuzz]
    python tests/prove.py --collect build/fuzz/results.jsonl      write down what was run before, or elsewhere

`transfer` writes docs/proofs-transfer.md, or prints the page where only some tasks are named. It does not do again what it
finds in the folder of its trials.

Each proof is the long form of a test of the suite. All but the last stop with an error at the first failure; fuzzing goes
on, keeps what broke a reader, and ends with an error. Rows of the page that were not proved again stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

import dropout_tasks
import mutations
import torchkeep as tk
from crash.states import MODES, run_states
from fuzz import campaign
from fuzz.targets import names
from models import OPTIMIZERS, TinyNet, train_epoch
from test_resuming_property import random_runs
from test_retention import save_and_let_go
from test_running import kill_at_random
from test_verifying import flips, flips_of_a_file
from transfer_tasks.proof import page, rows_of, summary
from transfer_tasks.tasks import named

ROOT = Path(__file__).parents[1]


# Each proof, and how many of its trials there are; fuzzing counts minutes.
SECTIONS = {
    "resume": 500, "kills": 200, "power": 5000, "prune": 60, "flips": 1000, "mutants": 30_000,
    "structures": 12_000, "dropout": 5, "fuzz": 0, "transfer": 0,
}  # fmt: skip


WAYS = "by both engines, waiting for saves and not"


def resume(folder: Path, count: int, seed: int) -> str:
    """Random networks, frozen sets, phases, optimizers, schedulers, accumulations, orders and kill points: resumed equals uninterrupted."""
    workers = max(1, count // 20)
    random_runs(count - workers, seed)
    random_runs(workers, seed, workers=2)
    return f"{count} training runs, {workers} of them with two loader workers, each bit for bit the same"


def power(folder: Path, count: int, seed: int) -> str:
    """Power is lost while a run is written, pruned and collected; unsynced writes and names are lost, torn or kept in any order."""
    found = [run_states(count // len(MODES), seed, mode=mode) for mode in MODES]
    seen = sum((one.seen for one in found), Counter[str]())
    listed = ", ".join(f"{number} {what}" for what, number in sorted(seen.items()))
    return f"{sum(one.count for one in found)} states {WAYS}: {listed}; each resumed what was saved last, whole"


def kills(folder: Path, count: int, seed: int) -> str:
    """A loop that saves constantly is killed (SIGKILL) at random moments; it resumes from the newest committed snapshot."""
    snapshots = 0
    for number, mode in enumerate(MODES):
        kill_at_random(folder / f"run{number}", count // len(MODES), seed + number, mode)
        snapshots += len(tk.Run(folder / f"run{number}").snapshots)
    return f"{count} kills {WAYS}, {snapshots} committed snapshots, each resume gave the newest one whole"


def prune(folder: Path, count: int, seed: int) -> str:
    """One process saves constantly, one prunes, collects without grace and tags, one opens and verifies: nothing is lost."""
    saved, left, collected = save_and_let_go(folder / "run", count, seed)
    return f"{count} s: {saved} snapshots saved, {collected} packs collected, the {left} snapshots left are whole"


def bit_flips(folder: Path, count: int, seed: int) -> str:
    """A random bit of a run, or of a single file, is flipped: verify finds it, resume and open(verify=True) never load it."""
    model = TinyNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    for epoch, mode in enumerate(MODES):
        with mode.run(folder / "run") as run:
            run.log(epoch=epoch, val_loss=train_epoch(model, optimizer))
            if mode.blocking:
                run.save(epoch, model=model, optimizer=optimizer)
            else:
                run.save(epoch, model=model, optimizer=optimizer, blocking=False).result()
    flips(folder / "run", count, seed)
    tk.save(model, folder / "model.safetensors")
    flips_of_a_file(folder / "model.safetensors", count, seed)
    return f"{count} flips of each, all found, none loaded"


def structures(folder: Path, count: int, seed: int) -> str:
    """Architectures are changed (layers inserted, deleted, widened, renamed) and matched by structure: never wrongly; real weights too."""
    tally = mutations.mutants(count, seed)
    assert not tally.wrong, tally.wrong
    return f"{tally}; published MobileNetV2: {mutations.real_mobilenet(folder)}"


def dropout(folder: Path, count: int, seed: int) -> str:
    """Dropout is tuned on real tasks that overfit: as good as the best of a full grid within seed noise, in half its trials."""
    rows = dropout_tasks.prove(count, seed)
    dropout_tasks.write_page(ROOT / "docs" / "proofs-dropout.md", rows, count)
    return f"{len(rows)} tasks, {count} seeds each, all within one paired standard error: [table](proofs-dropout.md)"


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


HEAVY = ("unpickler", "torch_zip", "torch_legacy")  # what every other reader is built on, or what most files are


def fuzz(options: argparse.Namespace) -> list[campaign.Result]:
    """Fuzz every target by every tool, one after another; each result is written to a file when it is there.

    Raises:
        SystemExit: a tool is not installed, or a target does not exist.
    """
    targets, tools = options.targets or names(), options.tools
    unknown = sorted(set(targets) - set(names())) + sorted(set(tools) - set(campaign.TOOLS))
    if unknown:
        raise SystemExit(f"there is no {', '.join(unknown)}; targets are {', '.join(names())}")
    if "guided" in tools and not campaign.has_atheris():
        raise SystemExit("atheris is not installed (its wheels are for Linux on x86-64); --tools made goes without it")
    results = []
    for target in targets:
        minutes = options.minutes if target in HEAVY else options.others
        for tool in tools:
            result = campaign.run(tool, target, 60 * minutes, options.keep, options.seed)
            with (options.keep / "results.jsonl").open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            print(fuzz_row(result), flush=True)
            results.append(result)
    return results


def collected(path: Path) -> list[campaign.Result]:
    """Results that were written to a file before; the last of each target and tool."""
    found = {}
    for line in path.read_text().splitlines():
        result = campaign.Result(**json.loads(line))
        found[result.target, result.tool] = result
    return list(found.values())


def fuzz_row(result: campaign.Result) -> str:
    """A campaign as a row of the page."""
    speed = result.inputs / max(result.seconds, 1)
    cells = [result.target, result.tool, f"{result.seconds / 60:.1f}", f"{result.inputs:,}", f"{speed:,.0f}"]
    counted = result.tool == "guided"
    cells += [f"{n:,}" if counted and n else "" for n in (result.coverage, result.features, result.kept)]
    return f"| {' | '.join([*cells, str(len(result.broken)), result.day])} |"


def transfer(options: argparse.Namespace) -> None:
    """Train every candidate of every task, let the library choose, and write how far its choice is behind the best."""
    rows = rows_of(named(options.tasks), options.trials)
    print("\n".join(summary(rows)), flush=True)
    if options.tasks:
        print(page(rows))
    else:
        (ROOT / "docs" / "proofs-transfer.md").write_text(page(rows))


FUZZ_HEAD = "| target | tool | minutes | inputs | a second | edges | features | corpus | broke it | day |"
PROOF_HEAD = "| what was done | outcome | seconds |"
FUZZ_TEXT = """Every reader gets inputs that no writer wrote; whatever opens is walked, printed, loaded and verified. Only errors of
torchkeep may come out, within 5 s and 500 MB. Tools: `guided` is atheris (libFuzzer), which keeps the inputs that reach
new code; `made` is Hypothesis, with pickles, archives and streams that are nearly right. Edges and features are
libFuzzer's counts of the code that was reached. What once broke a reader is kept in `tests/fuzz/crashes`; the suite replays it."""


def write_page(path: Path, proofs: list[str], fuzzed: list[str]) -> None:
    """Write rows into the page, in the place of earlier ones about the same."""
    old = path.read_text().splitlines() if path.exists() else []
    split = old.index("## Fuzzing") if "## Fuzzing" in old else len(old)
    order = names()
    tables = [merged(old[:split], proofs, 1), merged(old[split:], fuzzed, 2)]
    tables[1].sort(key=lambda row: order.index(cells(row)[0]) if cells(row)[0] in order else len(order))
    lines = ["# The long proofs", "", "Written by `make prove`; the suite runs short forms of all of them.", ""]
    lines += [PROOF_HEAD, "| --- | --- | --- |", *tables[0], ""]
    if tables[1]:
        lines += [
            "## Fuzzing",
            "",
            FUZZ_TEXT,
            "",
            FUZZ_HEAD,
            "| --- | --- | " + "---: | " * 7 + "--- |",
            *tables[1],
            "",
        ]
    lines += [f"torch {torch.__version__}, Python {sys.version.split()[0]}."]
    path.write_text("\n".join(lines) + "\n")


def merged(old: list[str], new: list[str], key: int) -> list[str]:
    """The rows of a table with some replaced or added; the first cells say what a row is about."""
    rows = [line for line in old if line.startswith("| ") and not line.startswith(("| ---", PROOF_HEAD, FUZZ_HEAD))]
    return list({tuple(cells(row)[:key]): row for row in [*rows, *new]}.values())


def cells(row: str) -> list[str]:
    """What stands in a row of a table."""
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


def arguments() -> argparse.Namespace:
    """What the caller wants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    for name, number in SECTIONS.items():
        if not number:
            continue
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help=f"for each tool on {', '.join(HEAVY)}")
    parser.add_argument("--others", type=float, default=5, help="minutes for each tool on every other target")
    parser.add_argument("--targets", type=lambda text: text.split(","), default=[])
    parser.add_argument("--tools", type=lambda text: text.split(","), default=list(campaign.TOOLS))
    parser.add_argument(
        "--tasks", type=lambda text: text.split(","), default=[], help="of transfer; all, if none is named"
    )
    parser.add_argument("--trials", type=Path, default=ROOT / "build" / "transfer", help="for the trials of transfer")
    parser.add_argument(
        "--keep", type=Path, default=ROOT / "build" / "fuzz", help="for results, and what broke a reader"
    )
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "proofs.md")
    options = parser.parse_args()
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"there is no proof {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Run the proofs and write the page."""
    options = arguments()
    torch.set_num_threads(1)
    if options.collect:
        write_page(options.write, [], [fuzz_row(result) for result in collected(options.collect)])
        return
    sections = options.sections or list(SECTIONS)
    proofs: dict[str, tuple[Callable[[Path, int, int], str], int]] = {
        "resume": (resume, options.resume),
        "kills": (kills, options.kills),
        "power": (power, options.power),
        "prune": (prune, options.prune),
        "flips": (bit_flips, options.flips),
        "mutants": (mutants, options.mutants),
        "structures": (structures, options.structures),
        "dropout": (dropout, options.dropout),
    }
    for proof, count in (found for name, found in proofs.items() if name in sections):
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            outcome = proof(Path(folder), count, options.seed)
        row = f"| {(proof.__doc__ or '').strip()} | {outcome} | {time.perf_counter() - started:.0f} |"
        print(row, flush=True)
        write_page(options.write, [row], [])
    if "transfer" in sections:
        transfer(options)
    if "fuzz" in sections:
        results = fuzz(options)
        write_page(options.write, [], [fuzz_row(result) for result in results])
        broken = [name for result in results for name in result.broken]
        if broken:
            raise SystemExit(f"readers broke; the inputs are in {options.keep}: {', '.join(broken)}")


if __name__ == "__main__":
    main()
