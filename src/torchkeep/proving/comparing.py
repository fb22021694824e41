"""Comparing a run that was killed and resumed with one that was let alone, and guessing why they differ."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ..core.history import History
from ..core.proof import Divergence
from ..core.table import shorten
from ..errors import CorruptCheckpointError, LoadError
from ..running import Run
from ..running.probe import Event
from .stage import Stage

_TIMES = re.compile(
    r"(^|[^a-z])(time|seconds?|secs?|duration|elapsed|speed|throughput|fps|per_s(ec\w*)?|timestamp)([^a-z]|$)"
)
_READ = "read the data as `for batch in run.batches(loader)` and start with `range(run.epoch, ...)`"


def told(key: list[Any]) -> str:
    """A moment in words."""
    kind, *rest = key[1:]
    if kind == "batch":
        name = "" if rest[0] == "train" else f" of {rest[0]!r}"
        return f"batch {rest[2]}{name} of epoch {rest[1]}"
    return {"log": "record", "save": "the snapshot of step", "resume": "resuming after step"}[kind] + f" {rest[0]}"


def compare(
    stage: Stage, name: str, whole: list[Event], parts: list[list[Event]]
) -> tuple[Divergence | None, dict[str, Any]]:
    """The first difference between a whole run and one in parts, and how much was compared."""
    expected = {_key(event): event for event in whole}
    unused = _unused(whole)
    batches = 0
    for part in parts:
        found, count = _events(part, expected, whole, unused)
        batches += count
        if found is not None:
            return found, {"batches": batches}
    done = {_key(event) for part in parts for event in part}
    left_out = [event for key, event in expected.items() if event.key[1] == "save" and key not in done]
    if left_out:
        where = told(left_out[0].key)
        cause = "the loop leaves steps out, or saves at other moments, when it is resumed"
        return Divergence(where, "it was not saved", cause, "start with range(start, ...)"), {"batches": batches}
    snapshots = records = 0
    ignored: set[str] = set()
    there, here = stage.runs("whole"), stage.runs(name)
    for title in there:
        if title not in here:
            return Divergence("the run", f"{title} was not made", "the loop ended without saving"), {}
        found, count = _snapshots(there[title], here[title], any(e.key[1] == "batch" for e in whole), unused)
        snapshots += count
        other, count, left = _histories(there[title].history, here[title].history)
        records += count
        ignored |= left
        if found is not None or other is not None:
            return found or other, {"batches": batches, "snapshots": snapshots, "records": records}
    return None, {"batches": batches, "snapshots": snapshots, "records": records, "ignored": tuple(sorted(ignored))}


def _key(event: Event) -> str:
    return msgspec.json.encode(event.key).decode()


def _unused(whole: list[Event]) -> frozenset[str]:
    """Global generators that the loop never draws from: whether they are seeded does not matter."""
    names = {name for event in whole for name in event.random}
    return frozenset(name for name in names if len({event.random.get(name) for event in whole}) == 1)


def _events(
    part: list[Event], expected: Mapping[str, Event], whole: list[Event], unused: Collection[str]
) -> tuple[Divergence | None, int]:
    """The first event of a process that is not as in the whole run."""
    order = {key: place for place, key in enumerate(expected)}
    last, resumed, count = None, False, 0
    for event in part:
        kind = event.key[1]
        if kind == "resume":
            last, resumed = _save_before(event, whole), True
            continue
        same = expected.get(_key(event))
        where = told(event.key)
        if same is None:
            return Divergence(
                where, "the whole run has no such moment", "the loop does not go on where it was", _READ
            ), count
        if resumed and kind == "batch" and last is not None and order[_key(event)] != _next_batch(order, whole, last):
            return Divergence(
                where, "it is not the batch that comes next", "the position in the data is lost", _READ
            ), count
        resumed = False if kind == "batch" else resumed
        other = [
            name for name, digest in same.random.items() if name not in unused and digest != event.random.get(name)
        ]
        if kind == "batch":
            count += 1
            if event.digest != same.digest:
                return Divergence(where, "the batch has other values", *_cause_of_batch(other)), count
        if other and kind == "batch":
            cause = "something draws random numbers that the whole run does not draw, or the other way round"
            hint = "call resume last, when the model and the loaders are made; seed what is made in between"
            return Divergence(where, f"the random generators of {', '.join(other)} differ", cause, hint), count
    return None, count


def _cause_of_batch(other: list[str]) -> tuple[str, str]:
    if other:
        return (
            f"the generators of {', '.join(other)} differ too: one was not where it should be when the data was drawn",
            "call resume last, when the loaders are made",
        )
    return (
        "the data comes from a generator that is not restored: one of the dataset's or sampler's own, or of workers",
        "give the generator to resume under a name, and leave persistent_workers off",
    )


def _save_before(event: Event, whole: list[Event]) -> int | None:
    """The place of the save from which a process went on; None for one that began anew."""
    wanted = [event.key[0], "save", event.key[2]]
    return next((place for place, one in reversed(list(enumerate(whole))) if one.key == wanted), None)


def _next_batch(order: Mapping[str, int], whole: list[Event], last: int) -> int:
    return next((order[_key(event)] for event in whole[last:] if event.key[1] == "batch"), -1)


def _snapshots(there: Run, here: Run, read: bool, unused: Collection[str]) -> tuple[Divergence | None, int]:
    """The first snapshot that is not the same, by steps."""
    mine = {one.step: one.sequence for one in here.snapshots}
    count = 0
    for snapshot in {one.step: one for one in there.snapshots}.values():
        if snapshot.step not in mine:
            continue
        where = f"the snapshot of step {snapshot.step}"
        try:
            a = there.content(snapshot.sequence, without=unused)
            b = here.content(mine[snapshot.step], without=unused)
        except (LoadError, CorruptCheckpointError) as error:
            return Divergence(where, error.brief, "it is damaged"), count
        count += 1
        other = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
        if other:
            return Divergence(
                where, f"{len(other)} parts differ: {shorten(other, 4)}", *_cause_of_state(other, a, read)
            ), count
    if there.snapshots and there.snapshots[-1].step not in mine:
        where = f"the snapshot of step {there.snapshots[-1].step}"
        return Divergence(
            where, "it was not made", "the loop ends at another step when it is resumed", "start with range(start, ...)"
        ), count
    return None, count


def _cause_of_state(other: list[str], content: Mapping[str, str], read: bool) -> tuple[str, str]:
    """What a difference in a snapshot probably comes from."""
    tracked = {name.partition("/")[0] for name in content}
    if "optimizer" not in tracked:
        return "the optimizer is not tracked", "run.resume(model=model, optimizer=optimizer)"
    if not read:
        return "the position in the data is not kept", _READ
    if all(name.startswith("rng") for name in other):
        return "random numbers were drawn in between that the whole run does not draw", "call resume last"
    return (
        "something that the step depends on is not tracked: a scheduler, a scaler, an average, a counter",
        "give all that has a state to resume, each under its name",
    )


def _histories(there: History, here: History) -> tuple[Divergence | None, int, set[str]]:
    """The first record that is not the same; metrics that are times are left out."""
    left: set[str] = set()

    def plain(record: Mapping[str, Any]) -> str:
        left.update(name for name in record if _TIMES.search(name.lower()))
        return repr({name: value for name, value in record.items() if name not in left})

    for number, (a, b) in enumerate(zip(there, here, strict=False)):
        if plain(a) != plain(b):
            other = [name for name in a if name not in left and repr(a[name]) != repr(b.get(name))]
            what = f"{', '.join(other) or 'it'} differs: {plain(a)} and {plain(b)}"
            return (
                Divergence(f"record {number}", what, "what is measured depends on something that is not tracked"),
                number,
                left,
            )
    if len(there) != len(here):
        what = f"there are {len(here)} records, and {len(there)} in the whole run"
        return (
            Divergence("the history", what, "the loop logs at other moments when it is resumed", "log before run.save"),
            min(len(there), len(here)),
            left,
        )
    return None, len(there), left
