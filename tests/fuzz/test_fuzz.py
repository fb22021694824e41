"""A minute of fuzzing, from the seeds and the crashes that are kept beside this file; `make prove` does it for hours."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from fuzz import campaign
from fuzz.guided import EVERY
from fuzz.made import Search
from fuzz.targets import MARK, TooMuch, as_input, files_of, measured, names, stored_inputs, targets
from torchkeep.formats import FORMATS

TARGETS = targets()
GUIDED_SECONDS = 12.0  # for all targets together, with the time it takes to start
MADE_SECONDS = (32.0 - GUIDED_SECONDS) / len(TARGETS)
CRASHES = [pytest.param(name, data, id=place) for name in TARGETS for place, data in stored_inputs(name, "crashes")]

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch says of odd tensors


def say(capsys: Any, text: str) -> None:
    """Print it even where the tests pass."""
    with capsys.disabled():
        print(f" {text}", end="", flush=True)


def test_every_format_is_a_target() -> None:
    assert set(TARGETS) == {"unpickler", *FORMATS}
    assert sorted(names()) == sorted(TARGETS)


@pytest.mark.parametrize(("target", "data"), CRASHES)
def test_what_broke_a_reader_once_does_not_break_it_again(target: str, data: bytes) -> None:
    TARGETS[target](data)


@pytest.mark.parametrize("target", list(TARGETS))
def test_only_errors_of_ours_come_out(target: str, capsys: Any) -> None:
    stored = list(stored_inputs(target, "seeds"))
    assert stored, f"{target} has no seeds: python -m fuzz.seeds"
    until = time.monotonic() + MADE_SECONDS
    for _, data in stored:
        TARGETS[target](data)
    search = Search(target, TARGETS[target])
    search.until(until, start=0)
    assert search.count > 20
    say(capsys, f"{len(stored)} seeds and {search.count} made inputs")


def test_search_that_coverage_leads(tmp_path: Path, capsys: Any) -> None:
    if not campaign.has_atheris():
        say(capsys, "NOT RUN: atheris is not installed (it is for Linux on x86-64 only); inputs were only made")
        pytest.skip("atheris is not installed: the search that coverage leads did not run")
    result = campaign.run("guided", EVERY, GUIDED_SECONDS, tmp_path)
    assert result.broken == [], (tmp_path / result.broken[0]).with_suffix(".txt").read_text()
    assert result.inputs > 500
    assert result.coverage > 500
    say(capsys, f"{result.inputs} guided inputs over {len(TARGETS)} targets, {result.coverage} edges")


def breaks_at(needle: bytes) -> Any:
    """A reader that breaks for inputs with these bytes in them."""

    def read(data: bytes) -> None:
        if needle in data:
            raise ZeroDivisionError(needle)

    return read


def test_inputs_that_break_a_reader_are_found() -> None:
    search = Search("unpickler", breaks_at(b"R"))
    with pytest.raises((ZeroDivisionError, BaseExceptionGroup)):
        search.until(time.monotonic() + 60, start=0)
    assert search.broken is not None
    assert b"R" in search.broken


def test_too_much_time_and_memory_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.targets.MOST_SECONDS", 0.01)
    with pytest.raises(TooMuch, match=r"took .* s"):
        measured(lambda data: sum(range(2_000_000)) and None)(b"")
    monkeypatch.setattr("fuzz.targets.MOST_SECONDS", 100.0)
    with pytest.raises(TooMuch, match="of memory"):
        measured(lambda data: bytearray(b"x" * 1_500_000_000) and None)(b"")


def test_several_files_are_one_input() -> None:
    files = {"a.json": b"{}", ".metadata": b"\x80\x02.\n"}
    assert files_of(as_input(files)) == files
    assert as_input(files).startswith(MARK)
