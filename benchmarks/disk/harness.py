"""Runs the jobs: each in a fresh process, in rotating order, all of one shape in turns before the next one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .asynchronous import PEERS
from .child import Job, described
from .readers import READERS
from .runs import KEEPERS
from .savers import LIMITS, SAVERS

ROOT = Path(__file__).parents[2]
SECONDS = 600  # that a process may take
HEAD = (*LIMITS, "torchkeep", "torch.save", "safetensors", "DCP", "moonclip", "moonclip, level 0")


@dataclass
class Series:
    """All that was measured of one subject: samples by name, or why there are none."""

    samples: dict[str, list[float]] = field(default_factory=dict)
    failed: str = ""

    def median(self, name: str) -> float | None:
        """The median of a figure, if there is one."""
        values = self.samples.get(name)
        return statistics.median(values) if values else None

    def least(self, name: str) -> float | None:
        """The minimum of a figure, if there is one."""
        values = self.samples.get(name)
        return min(values) if values else None


@dataclass
class Results:
    """Everything of a run, by kind of job, shape and subject."""

    versions: str = ""
    series: dict[str, Series] = field(default_factory=dict)

    def of(self, kind: str, shape: str, subject: str) -> Series:
        """One series; an empty one if it was not asked for."""
        return self.series.get(f"{kind}/{shape}/{subject}", Series(failed="not measured"))

    def subjects(self, kind: str, shape: str, among: list[str]) -> dict[str, Series]:
        """The series of a table, in a fixed order."""
        named = {name: f"{kind}/{shape}/{name}" for name in among}
        return {name: self.series[key] for name, key in named.items() if key in self.series}

    def add(self, job: Job, outcome: dict[str, object]) -> None:
        """Add the samples of a process to those of earlier rounds."""
        series = self.series.setdefault(f"{job.kind}/{job.shape}/{job.subject}", Series())
        series.failed = str(outcome.get("failed", ""))
        found = outcome.get("found", {})
        assert isinstance(found, dict)
        for name, values in found.items():
            series.samples.setdefault(name, []).extend(values)

    def write(self, path: Path) -> None:
        """Keep everything as JSON."""
        series = {key: vars(one) for key, one in self.series.items()}
        path.write_text(json.dumps({"versions": self.versions, "series": series}, indent=1))

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` kept."""
        kept = json.loads(path.read_text())
        return cls(kept["versions"], {key: Series(**one) for key, one in kept["series"].items()})


def groups(shape: str) -> Iterator[list[tuple[str, str]]]:
    """What is measured of a shape, as (kind, subject); what stands in one list uses one folder, in this order."""
    if shape != "head":
        yield [("limits", "limits")]
    for saver in SAVERS if shape != "head" else HEAD:
        readers = [name for name, reader in READERS.items() if reader.writer == saver and shape in {"mid", "small"}]
        yield [("save", saver), *(("load", name) for name in readers)]
    if shape == "train":
        yield from ([("async", peer)] for peer in PEERS)
    if shape != "small":
        yield from ([("run", keeper)] for keeper in KEEPERS if shape == "head" or keeper == "torchkeep")


def perform(job: Job, python: str, seconds: float = SECONDS) -> dict[str, object]:
    """Do a job in a process of its own, which is ended with all that it started when it takes too long."""
    result = Path(job.folder) / "result.json"
    result.unlink(missing_ok=True)
    command = [python, "-m", "benchmarks.disk.child", described(job), str(result)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {seconds:.0f} s"}
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if result.exists():
            found: dict[str, object] = json.loads(result.read_text())
            return found
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
        return {"failed": f"ended with {process.returncode}: {last[:160]}"}


def versions(python: str) -> str:
    """The versions that are measured."""
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run([python, "-m", "benchmarks.disk.child", "versions", file.name], cwd=ROOT, check=True)
        return str(json.loads(Path(file.name).read_text())["versions"])


@dataclass(frozen=True)
class Plan:
    """What to measure, and how."""

    shapes: list[str]
    only: list[str]
    scale: float
    rounds: int
    repeats: int
    python: str
    parent: Path
    keep: Path | None

    def wants(self, subject: str) -> bool:
        """Whether a subject was asked for; the limits always are."""
        return not self.only or subject.startswith(("limit", *self.only))


def measure(plan: Plan) -> Results:
    """Measure everything, add it to what was kept, and say what is going on."""
    results = Results.read(plan.keep) if plan.keep is not None and plan.keep.exists() else Results()
    results.versions = versions(plan.python)
    for shape in plan.shapes:
        listed = [group for group in groups(shape) if plan.wants(group[0][1])]
        for number in range(plan.rounds):
            turn = number * len(listed) // plan.rounds
            for group in listed[turn:] + listed[:turn]:
                _measure_group(plan, shape, group, results)
                if plan.keep is not None:
                    results.write(plan.keep)
    return results


def _measure_group(plan: Plan, shape: str, group: list[tuple[str, str]], results: Results) -> None:
    folder = tempfile.mkdtemp(dir=plan.parent, prefix="benchmark-")
    try:
        for kind, subject in group:
            failed = results.of(kind, shape, subject).failed
            if failed and failed != "not measured":
                continue
            job = Job(kind, shape, subject, plan.scale, plan.repeats, folder)
            began = time.perf_counter()
            outcome = perform(job, plan.python)
            seconds = time.perf_counter() - began
            if kind == "load" and not Path(folder, "kept").exists():
                outcome = {"failed": "there is nothing to read"}
            results.add(job, outcome)
            said = outcome.get("failed", "done")
            print(f"{shape}: {kind} {subject}: {said} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
