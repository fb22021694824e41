"""Fuzzing led by coverage: `python -m fuzz.guided TARGET SECONDS OUT` from the folder of the tests.

Runs atheris on one target, starting from its seeds, and writes a line of JSON to OUT: target, seconds, inputs, coverage,
and the files that broke it, which are kept beside OUT.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
INPUT_BYTES = 1 << 16
SECONDS_EACH = 5
MEGABYTES = 3000


def fuzz(target: str, arguments: list[str]) -> None:
    """The fuzzing process itself; it does not come back."""
    import atheris

    with atheris.instrument_imports(include=["torchkeep"]):
        from fuzz.targets import targets
    from fuzz.mutation import in_a_record

    rng = random.Random(0)
    read = targets()[target]

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng.seed(seed)
        if data[:2] == b"PK" and rng.random() < 0.6:
            return in_a_record(data, lambda body: atheris.Mutate(body, len(body) + 64), rng)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    atheris.Setup([sys.argv[0], *arguments], read, custom_mutator=mutator)
    atheris.Fuzz()


def run(target: str, seconds: int, out: Path) -> dict[str, object]:
    """Fuzz in a process of its own for so many seconds; a crash is kept and fuzzing goes on until the time is over."""
    started = time.monotonic()
    inputs = coverage = 0
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        corpus, found = Path(name) / "corpus", Path(name) / "found"
        corpus.mkdir(), found.mkdir()
        for kind in ("seeds", "crashes"):
            for path in (HERE / kind / target).glob("*"):
                shutil.copy(path, corpus / f"{kind}-{path.name}")
        while (left := seconds - (time.monotonic() - started)) > 1 and len(broken) < 20:
            flags = [f"-max_total_time={int(left)}", f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MEGABYTES}"]
            flags += [
                f"-max_len={INPUT_BYTES}",
                f"-artifact_prefix={found}/",
                "-print_final_stats=1",
                "-close_fd_mask=1",
            ]
            command = [sys.executable, "-m", "fuzz.guided", target, str(corpus), *flags]
            done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, check=False)
            counted = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", done.stderr, re.MULTILINE)
            inputs += max((int(a or b) for a, b in counted), default=0)
            coverage = max([coverage, *map(int, re.findall(r"cov: (\d+)", done.stderr))])
            for path in sorted(found.iterdir()):
                kept = out.parent / f"{target}-{path.name}"
                shutil.move(path, kept)
                kept.with_suffix(".txt").write_text(done.stderr[-8000:])
                broken.append(kept.name)
            if done.returncode and not broken:
                raise RuntimeError(f"{target} did not run: {done.stderr[-2000:]}")
    took = round(time.monotonic() - started)
    result = {"target": target, "seconds": took, "inputs": inputs, "coverage": coverage, "broken": broken}
    with out.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[2].isdigit():
        print(run(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
    else:
        fuzz(sys.argv[1], sys.argv[2:])
