"""What opens, what is byte-exact, what runs and what is noticed: torchkeep beside torch and the pickle scanners.

    python benchmarks/peers.py [--write docs/peers.md] [--scanners FOLDER]

Two sets of files: those that 15 versions of torch wrote (tests/data/checkpoints.tar.xz, each with a note of what its
writer saw), and hostile ones (tests/data/evil.tar.xz). The classes of the pickled models are not installed. Each file
is tried in a process of its own with 8 GB of memory and 20 seconds. *Opened* means that it came back without an error;
*byte-exact* that every tensor its writer noted is in what came back, bit for bit; *ran code* that a payload left its mark;
*noticed* that the tool said something about a file with a payload: an alarm, or an error that names it. The scanners
are installed into an environment of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchkeep as tk
from torchkeep.core.tree import leaves

ROOT = Path(__file__).parents[1]
MARKS = Path("/tmp/torchkeep-x/evil")  # where the payloads of the hostile files leave their mark
SECONDS, GIGABYTES = 20, 8
SCANNERS = ("picklescan==1.0.5", "modelscan==0.8.8", "fickling==0.1.12")
HARMLESS = {"legacy_module_source_pid.pth"}  # of kind exec, with nothing in it that could run

Outcome = dict[str, Any]


@dataclass
class Row:
    """What one tool did with both sets."""

    tool: str
    opened: int = 0
    exact: int = 0
    alarms: int = 0
    ran: int = 0
    noticed: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)


def sha256(tensor: torch.Tensor) -> str:
    """The digest of the elements, row by row."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.device.type == "meta":
        return ""
    plain = tensor.detach().cpu()
    plain = plain.int_repr() if plain.is_quantized else plain.resolve_conj().resolve_neg()
    plain = plain.contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"").hexdigest()


def digests(loaded: Any) -> Counter[str]:
    """Digests of all tensors in what a tool gave."""
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    found: list[torch.Tensor] = []
    for leaf in leaves(loaded):
        found.append(leaf.tensor)
    stack, seen = [loaded], set()
    while stack:  # modules inside of dicts
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, nn.Module):
            found += [*node.state_dict().values()]
        elif isinstance(node, dict):
            stack += node.values()
        elif isinstance(node, (list, tuple)):
            stack += node
    return Counter(sha256(tensor) for tensor in found if isinstance(tensor, torch.Tensor))


def torch_opener(**options: Any) -> Callable[[Path], Any]:
    """torch.load, and for folders torch.distributed.checkpoint."""

    def load(path: Path) -> Any:
        if path.is_dir():
            from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

            with tempfile.TemporaryDirectory() as folder:
                dcp_to_torch_save(path, f"{folder}/whole.pth")
                return torch.load(f"{folder}/whole.pth", **options)
        return torch.load(path, **options)

    return load


def torchkeep_opener(path: Path) -> Any:
    """Every tensor, loaded."""
    return dict(tk.open(path).load())


OPENERS: dict[str, Callable[[Path], Any]] = {
    "torch.load(f)": torch_opener(weights_only=True),
    "torch.load(f, map_location='cpu')": torch_opener(weights_only=True, map_location="cpu"),
    "torch.load(f, mmap=True, map_location='cpu')": torch_opener(weights_only=True, map_location="cpu", mmap=True),
    "torch.load(f, weights_only=False, map_location='cpu')": torch_opener(weights_only=False, map_location="cpu"),
    "torchkeep": torchkeep_opener,
}


def alone(job: Callable[[], Outcome]) -> Outcome:
    """Run a job in a process of its own, with bounds on memory and time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
        sys.setrecursionlimit(1000)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        try:
            outcome = job()
        except BaseException as error:  # whatever a tool does with a hostile file is its outcome
            outcome = {"error": f"{type(error).__name__}: {error}"[:300]}
        os.write(writing, json.dumps(outcome).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    until = time.monotonic() + SECONDS
    data = b""
    os.set_blocking(reading, False)
    while time.monotonic() < until:
        try:
            piece = os.read(reading, 1 << 16)
        except BlockingIOError:
            time.sleep(0.0005)
            continue
        if not piece:
            break
        data += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return json.loads(data) if data else {"error": "killed, or out of time"}


def opened(load: Callable[[Path], Any], path: Path, said: Outcome) -> Outcome:
    """Open one file, and compare what came back with what its writer noted."""
    found = digests(load(path))
    wanted = Counter(one["sha256"] for one in said.get("tensors", []) if one.get("sha256"))
    return {"exact": not wanted - found}


def samples(root: Path) -> list[tuple[Path, Outcome]]:
    """Every file, and every folder that is one checkpoint, with its writer's note."""
    found = []
    for path in sorted(root.rglob("*")):
        note = Path(f"{path}.json")
        said = json.loads(note.read_text()) if note.exists() else {}
        inside = path.parent != root and Path(f"{path.parent}.json").exists()
        is_note = path.suffix == ".json" and not path.name.endswith(".index.json")
        if (path.is_dir() and said) or (path.is_file() and not inside and not is_note):
            found.append((path, said))
    return found


def payloads(root: Path) -> list[tuple[Path, str]]:
    """The hostile files that carry a payload, each with what it is."""
    entries = json.loads((root / "manifest.json").read_text())
    return [
        (root / entry["file"].rstrip("/"), entry["what"])
        for entry in entries
        if entry["kind"] == "exec" and entry["file"] not in HARMLESS
    ]


def ran_code(job: Callable[[], Any]) -> bool:
    """Whether a payload left its mark while a job ran."""
    shutil.rmtree(MARKS, ignore_errors=True)
    MARKS.mkdir(parents=True)
    job()
    return any(MARKS.iterdir())


def noticed(name: str, outcome: Outcome) -> bool:
    """Whether a loader said that there was something: torch by refusing, torchkeep by a finding or in its error."""
    return bool(outcome.get("danger")) or ("error" in outcome and name != "torchkeep")


def try_opener(name: str, load: Callable[[Path], Any], benign: Path, evil: Path) -> Row:
    """One loader on both sets."""
    row = Row(name)
    for path, said in samples(benign):
        started = time.perf_counter()
        outcome = alone(lambda path=path, said=said: opened(load, path, said))  # type: ignore[misc]
        row.seconds += time.perf_counter() - started
        row.opened += "error" not in outcome
        row.exact += bool(outcome.get("exact"))
        if "error" in outcome:
            row.failures[outcome["error"].partition(":")[0]] += 1
        if name == "torchkeep" and "error" not in outcome:
            row.alarms += bool(dangers(path))
    for path, _ in payloads(evil):
        outcome = {}

        def attempt(path: Path = path, outcome: Outcome = outcome) -> None:
            outcome |= alone(lambda: {"loaded": str(type(load(path)))})

        row.ran += ran_code(attempt)
        if name == "torchkeep":
            outcome["danger"] = dangers(path)
        row.noticed += noticed(name, outcome)
    return row


def dangers(path: Path) -> list[str]:
    """What torchkeep says of a file that is dangerous, whether it opens or not."""
    report = tk.scan(path)
    return [finding.message for file in report.files for finding in file.findings if finding.severity == "danger"]


def scanner_environment(folder: Path) -> Path:
    """An environment with the scanners, made once."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *SCANNERS, "numpy"], check=True)
    return folder / "bin"


def scanners(bin_: Path) -> dict[str, Callable[[Path], bool]]:
    """Each scanner as a question: does it raise an alarm about this file?"""

    def call(*command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)

    def fickling(path: Path) -> bool:
        done = call(bin_ / "fickling", "--check-safety", path)
        return done.returncode != 0 and "No pickle files" not in done.stdout + done.stderr

    return {
        "picklescan 1.0.5": lambda path: call(bin_ / "picklescan", "-p", path).returncode == 1,
        "modelscan 0.8.8": lambda path: call(bin_ / "modelscan", "-p", path).returncode == 1,
        "fickling 0.1.12": fickling,
    }


def try_scanner(name: str, alarm: Callable[[Path], bool], benign: Path, evil: Path, step: int) -> Row:
    """One scanner on both sets; a scanner opens nothing."""
    row = Row(name, opened=-1, exact=-1)
    started = time.perf_counter()
    for path, _ in samples(benign)[::step]:
        row.alarms += alarm(path)
    row.seconds = (time.perf_counter() - started) * step
    for path, _ in payloads(evil):
        said: list[bool] = []
        row.ran += ran_code(lambda path=path, said=said: said.append(alarm(path)))  # type: ignore[misc]
        row.noticed += said[0]
    return row


def table(rows: Iterable[Row], files: int, armed: int, step: int) -> str:
    """The rows as Markdown."""
    lines = [
        f"| | opened of {files} | byte-exact | false alarms | ran code, of {armed} payloads | noticed the payload | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        opened_, exact = ("-", "-") if row.opened < 0 else (str(row.opened), str(row.exact))
        alarms = f"{row.alarms} of {len(range(0, files, step))}" if row.opened < 0 else "-"
        alarms = str(row.alarms) if row.tool == "torchkeep" else alarms
        lines.append(f"| {row.tool} | {opened_} | {exact} | {alarms} | {row.ran} | {row.noticed} | {row.seconds:.0f} |")
    return "\n".join(lines)


def page(rows: list[Row], files: int, armed: int, step: int) -> str:
    """The page of the docs."""
    intro = (__doc__ or "").split("\n\n", 2)[2].strip()
    notes = [
        f"- {row.tool}: {', '.join(f'{count} {kind}' for kind, count in row.failures.most_common(4))}"
        for row in rows
        if row.failures
    ]
    return "\n".join(
        [
            "# Beside torch and the scanners",
            "",
            f"Written by `python benchmarks/peers.py`: torch {torch.__version__}, {', '.join(SCANNERS)}.",
            "",
            intro,
            "",
            table(rows, files, armed, step),
            "",
            "torch notices a payload by refusing the file, benign or not; false alarms of the scanners are counted on every",
            f"{step}th file, and their seconds, which are mostly the start of a process for each file, are scaled to all of them.",
            "A file with payload that torchkeep opens is read as data, and its findings name what would have run. What it raises",
            "an alarm about in the genuine files are names that can run code and do nothing bad there: functools.partial,",
            "cloudpickle and dill. The payload that runs with weights_only=True is the .metadata of a distributed checkpoint.",
            "",
            "What the loaders raised for the genuine files that they did not open:",
            "",
            *notes,
            "",
        ]
    )


def main() -> None:
    """Try everything, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--scanners", type=Path, default=ROOT / ".venv-scanners")
    parser.add_argument("--every", type=int, default=10, help="scan every n-th genuine file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for archive in ("checkpoints", "evil"):
            with tarfile.open(ROOT / "tests" / "data" / f"{archive}.tar.xz") as packed:
                packed.extractall(name, filter="data")
        benign, evil = Path(name) / "checkpoints", Path(name) / "evil"
        rows = [try_opener(tool, load, benign, evil) for tool, load in OPENERS.items()]
        for tool, alarm in scanners(scanner_environment(options.scanners)).items():
            rows.insert(-1, try_scanner(tool, alarm, benign, evil, options.every))
        text = page(rows, len(samples(benign)), len(payloads(evil)), options.every)
    shutil.rmtree(MARKS.parent, ignore_errors=True)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
