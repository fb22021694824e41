"""A campaign: a target is fuzzed for some time by one of two tools, in processes that may die without harm.

Two tools: `guided` (atheris: coverage leads) and `made` (Hypothesis: inputs that are nearly right).
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from fuzz.guided import EVERY
from fuzz.targets import HERE, MOST_SECONDS, names, stored_inputs

TOOLS = ("guided", "made")
INPUT_BYTES = 1 << 16
MEGABYTES = 2048
MOST_FOUND = 20
GRACE = 60  # seconds that a process may take longer than it was told


@dataclass
class Result:
    """What a campaign came to.

    Attributes:
        target, tool, seconds: what was done; seconds as they passed.
        inputs: how many the target was given.
        coverage, features: of the code, as libFuzzer counts them; 0 for a tool that counts nothing.
        kept: inputs in the corpus at the end.
        broken: files with inputs that broke the target.
        day: when it ended.
    """

    target: str
    tool: str = "guided"
    seconds: int = 0
    inputs: int = 0
    coverage: int = 0
    features: int = 0
    kept: int = 0
    broken: list[str] = field(default_factory=list)
    day: str = ""


def has_atheris() -> bool:
    """Whether the tool that coverage leads is installed: its wheels are for Linux only."""
    return find_spec("atheris") is not None


def run(tool: str, target: str, seconds: float, keep: Path, seed: int = 0) -> Result:
    """Fuzz for so many seconds. What breaks the target is kept in the folder `keep`, and fuzzing goes on.

    Raises:
        RuntimeError: the fuzzing process did not run.
    """
    if tool not in TOOLS:
        raise ValueError(f"there is no tool {tool!r}; there are {', '.join(TOOLS)}")
    keep.mkdir(parents=True, exist_ok=True)
    result = Result(target, tool)
    started = time.monotonic()
    with _folders() as (corpus, found):
        if tool == "guided":
            _seed(corpus, target)
        while (left := seconds - (time.monotonic() - started)) > 1 and len(result.broken) < MOST_FOUND:
            if tool == "guided":
                arguments = [str(corpus), *_flags(found, left, seed)]
            else:
                arguments = [str(left), str(found), str(seed + result.inputs)]
            said, ended_well = _process(tool, target, arguments, left + GRACE)
            _count(result, said)
            if not _collect(result, found, keep, said) and not ended_well:
                raise RuntimeError(f"{tool} {target} did not run: {said[-3000:]}")
        result.kept = sum(1 for _ in corpus.iterdir())
    result.seconds = round(time.monotonic() - started)
    result.day = date.today().isoformat()
    return result


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory() as name:
        corpus, found = Path(name) / "corpus", Path(name) / "found"
        corpus.mkdir()
        found.mkdir()
        yield corpus, found


def _seed(corpus: Path, target: str) -> None:
    """Start from what is stored; for all targets at once a byte in front says which is meant."""
    order = names()
    for one in order if target == EVERY else [target]:
        lead = bytes([order.index(one)]) if target == EVERY else b""
        for name, data in stored_inputs(one):
            (corpus / name.replace("/", "-")).write_bytes(lead + data)


def _flags(found: Path, seconds: float, seed: int) -> list[str]:
    return [
        f"-max_total_time={max(1, int(seconds))}",
        f"-timeout={int(MOST_SECONDS)}",
        f"-rss_limit_mb={MEGABYTES}",
        f"-max_len={INPUT_BYTES}",
        f"-artifact_prefix={found}/",
        f"-seed={seed + 1}",
        "-report_slow_units=1000",
        "-print_final_stats=1",
        "-close_fd_mask=1",
    ]


def _process(tool: str, target: str, arguments: list[str], seconds: float) -> tuple[str, bool]:
    """What a fuzzing process said, and whether it ended by itself and without an error."""
    command = [sys.executable, "-m", f"fuzz.{tool}", target, *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", cwd=HERE.parent, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        return said if isinstance(said, str) else said.decode(errors="replace"), False
    return done.stderr, done.returncode == 0


def _count(result: Result, said: str) -> None:
    counts = re.findall(r"^(?:#|stat::number_of_executed_units: +|inputs: )(\d+)", said, re.MULTILINE)
    result.inputs += max(map(int, counts), default=0)
    result.coverage = max([result.coverage, *map(int, re.findall(r"cov: (\d+)", said))])
    result.features = max([result.features, *map(int, re.findall(r"ft: (\d+)", said))])


def _collect(result: Result, found: Path, keep: Path, said: str) -> bool:
    """Keep what broke the target, with what was said of it; returns whether there was anything."""
    inputs = [path for path in sorted(found.iterdir()) if path.suffix != ".txt"]
    for path in inputs:
        kept = keep / f"{result.target}-{result.tool}-{path.name}"
        note = path.with_suffix(".txt")
        kept.with_suffix(".txt").write_text(note.read_text() if note.exists() else said[-8000:])
        shutil.move(path, kept)
        note.unlink(missing_ok=True)
        result.broken.append(kept.name)
    return bool(inputs)
