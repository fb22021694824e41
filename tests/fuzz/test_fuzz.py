"""A minute of fuzzing, from the seeds that are kept beside this file; `make prove` does it for hours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuzz.strategies import inputs
from fuzz.targets import stored_inputs, targets

HERE = Path(__file__).parent
TARGETS = targets()
SECONDS = 60 / len(TARGETS)
SLOWEST = 5.0  # seconds for one input


def fuzz(target: str, seconds: float, *, seed: int | None = None) -> int:
    """Give a target inputs until the time is over; returns how many there were."""
    read = TARGETS[target]
    seeds = [data for _, data in stored_inputs(HERE, target)]
    given_inputs = 0
    until = time.monotonic() + seconds

    @settings(
        max_examples=2000,
        deadline=None,
        derandomize=seed is None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(target, seeds))
    def one(data: bytes) -> None:
        nonlocal given_inputs
        if time.monotonic() < until:
            started = time.monotonic()
            read(data)
            assert time.monotonic() - started < SLOWEST, f"{len(data)} bytes took too long"
            given_inputs += 1

    while time.monotonic() < until:
        one()
        if seed is None:
            break
    return given_inputs


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
