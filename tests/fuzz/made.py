"""The search by inputs that Hypothesis makes: `python -m fuzz.made TARGET SECONDS FOUND SEED`, as fuzz/campaign.py starts it.

Inputs come in batches, one for each number from SEED on, so that a run can be repeated. What breaks the target is shrunk
and written to the folder FOUND, with the traceback; the same break at the same line only once. Prints `inputs: N`.
"""

from __future__ import annotations

import faulthandler
import hashlib
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from fuzz.strategies import inputs
from fuzz.targets import MOST_SECONDS, Read, stored_inputs, targets

BATCH = 50
ADDRESSES = 3 << 30  # bytes of address space that inputs may add before memory is refused to them
MOST_FOUND = 20


class Search:
    """One target and the inputs made for it; counts them, and knows the last one that broke the target."""

    def __init__(self, target: str, read: Read) -> None:
        self.read = read
        self.inputs = inputs(target, [data for _, data in stored_inputs(target)])
        self.count = 0
        self.broken: bytes | None = None

    def batch(self, number: int) -> None:
        """Fifty inputs, always the same for a number. Raises what comes out of the target, for the shrunk input."""
        self.broken = None

        @seed(number)
        @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(self.inputs)
        def one(data: bytes) -> None:
            self.count += 1
            try:
                self.read(data)
            except Exception:
                self.broken = data
                raise

        one()

    def until(self, deadline: float, start: int) -> int:
        """Batches until the clock (time.monotonic) says so; returns the number after the last."""
        while time.monotonic() < deadline:
            self.batch(start)
            start += 1
        return start


def site(error: BaseException) -> str:
    """What broke and in which line of the project; the first of several errors in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "torchkeep" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def last_input_kept(read: Read, scratch: Path) -> Read:
    """The same target; an input that hangs or kills the process stays in a file."""

    def keep(data: bytes) -> None:
        scratch.write_bytes(data)
        faulthandler.dump_traceback_later(MOST_SECONDS * 4, exit=True)
        read(data)
        faulthandler.cancel_dump_traceback_later()

    return keep


def _limit_memory() -> None:
    """Refuse memory to inputs that ask for a lot of it, so that the machine does not run out of it."""
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES, used + ADDRESSES))


def main(target: str, seconds: float, found: Path, number: int) -> None:
    """Search until the time is over."""
    warnings.simplefilter("ignore")
    deadline = time.monotonic() + seconds
    scratch = found / "last"
    search = Search(target, last_input_kept(targets()[target], scratch))
    _limit_memory()
    sites: set[str] = set()
    while time.monotonic() < deadline and len(sites) < MOST_FOUND:
        try:
            search.batch(number)
        except Exception as error:
            where = site(error)
            if where not in sites and search.broken is not None:
                sites.add(where)
                kept = found / f"crash-{hashlib.sha1(search.broken, usedforsecurity=False).hexdigest()}"
                kept.write_bytes(search.broken)
                kept.with_suffix(".txt").write_text(f"{where}\n\n{traceback.format_exc()}")
        number += 1
        print(f"inputs: {search.count}", file=sys.stderr, flush=True)
    scratch.unlink(missing_ok=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
