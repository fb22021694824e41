"""A minute of fuzzing, from the seeds that are kept beside this file; `make prove` does it for hours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from fuzz.strategies import inputs
from fuzz.targets import stored_inputs, targets

HERE = Path(__file__).parent
TARGETS = targets()
SECONDS = 60 / len(TARGETS)
SLOWEST = 5.0  # seconds for one input


def fuzz(target: str, seconds: float, start: int = 0) -> int:
    """Give a target inputs, a batch for each number from `start` on, until the time is over; returns how many."""
    read = TARGETS[target]
    seeds = [data for _, data in stored_inputs(HERE, target)]
    count, batch = 0, start
    until = time.monotonic() + seconds
    while time.monotonic() < until:

        @seed(batch)
        @settings(max_examples=50, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(inputs(target, seeds))
        def one(data: bytes) -> None:
            nonlocal count
            started = time.monotonic()
            read(data)
            assert time.monotonic() - started < SLOWEST, f"{len(data)} bytes took too long"
            count += 1

        one()
        batch += 1
    return count


@pytest.mark.parametrize("target", list(TARGETS))
def test_only_errors_of_ours_come_out(target: str, capsys: Any) -> None:
    stored = list(stored_inputs(HERE, target))
    assert stored, f"{target} has no seeds: python -m fuzz.seeds"
    for _, data in stored:
        TARGETS[target](data)
    count = fuzz(target, SECONDS)
    assert count > 20
    with capsys.disabled():
        print(f" {len(stored)} stored and {count} made inputs", end="")
