"""What torchkeep promises of its speed, and whether a run of the benchmark kept it.

Ratios are within one run: of medians where writes go past the page cache, of minima where they go through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from .asynchronous import PEERS
from .harness import Results

DIRECT, CACHE = "limit: O_DIRECT + fsync", "limit: page cache"
TWO_COPIES, TWO_READS = "memcpy, 2 threads", "page cache, 2 threads of preadv into warm memory"


@dataclass(frozen=True)
class Promise:
    """One bound, and what was measured, if it was."""

    text: str
    measured: float | None
    bound: float
    least: bool = False  # the bound is one from below
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """In words."""
        if self.measured is None:
            return "not measured"
        kept = self.measured >= self.bound if self.least else self.measured <= self.bound
        return "met" if kept else "not met"

    def cells(self) -> tuple[str, ...]:
        """A row of the table."""
        measured = "" if self.measured is None else f"{self.measured:.2f} {self.unit}"
        return self.text, measured, f"{'>=' if self.least else '<='} {self.bound:g} {self.unit}", self.verdict


at_least = partial(Promise, least=True)


def ratio(one: float | None, other: float | None) -> float | None:
    """One through the other, if there are both."""
    return one / other if one is not None and other else None


def largest(*values: float | None) -> float | None:
    """The largest, if there are all."""
    known = [value for value in values if value is not None]
    return max(known) if len(known) == len(values) else None


def promises(results: Results) -> Iterator[Promise]:
    """All of them."""
    yield from _saving(results)
    yield from _small(results)
    yield from _snapshots(results)
    yield from _in_background(results)
    yield from _loading(results)


def _durable(results: Results, shape: str, subject: str) -> float | None:
    return results.of("save", shape, subject).median("durable")


def _saving(results: Results) -> Iterator[Promise]:
    ours = _durable(results, "mid", "torchkeep")
    yield Promise(
        "a durable save of mid / a flat O_DIRECT write with fsync", ratio(ours, _durable(results, "mid", DIRECT)), 1.1
    )
    bounds = {
        "torch.save": 3,
        "DCP": 3,
        "safetensors": 1.7,
        "DCP, 2 threads": 1.7,
        "moonclip": 3.5,
        "moonclip, level 0": 3.5,
    }
    for peer, bound in bounds.items():
        yield at_least(f"{peer} + fsync / a durable save of mid", ratio(_durable(results, "mid", peer), ours), bound)
    cached = results.of("save", "mid", "torchkeep, durable=False").least("returned")
    flat = results.of("save", "mid", CACHE).least("returned")
    hashed = results.of("limits", "mid", "limits").least("BLAKE3, 1 thread")
    text = "durable=False of mid / the larger of a flat write to the page cache and BLAKE3 on one core"
    yield Promise(text, ratio(cached, largest(flat, hashed)), 1.1)


def _small(results: Results) -> Iterator[Promise]:
    ours = _durable(results, "small", "torchkeep")
    yield Promise(
        "a durable save of small / a flat O_DIRECT write with fsync", ratio(ours, _durable(results, "small", DIRECT)), 2
    )
    for peer, bound in {"torch.save": 2.5, "safetensors": 1.6, "DCP": 8}.items():
        yield at_least(
            f"{peer} + fsync / a durable save of small", ratio(_durable(results, "small", peer), ours), bound
        )
    mine, plain = results.of("load", "small", "torchkeep"), results.of("load", "small", "safetensors load_file")
    peer_first = results.of("load", "small", "safetensors safe_open").least("first tensor")
    yield Promise(
        "the first tensor of small / safe_open and get_tensor", ratio(mine.least("first tensor"), peer_first), 1
    )
    yield Promise("a dict of all of small / load_file", ratio(mine.least("open"), plain.least("open")), 1.1)


def _snapshots(results: Results) -> Iterator[Promise]:
    run, trusting = (results.of("run", "head", f"torchkeep{option}") for option in ("", ", trust_frozen"))
    trained, manifest, written = (run.median(name) for name in ("trained bytes", "manifest bytes", "changed bytes"))
    beside = None if written is None or manifest is None else written - manifest
    yield Promise("bytes of a snapshot of head without its manifest / bytes that train", ratio(beside, trained), 1.02)
    whole = _durable(results, "head", "torch.save")
    yield at_least("torch.save + fsync / a snapshot of head", ratio(whole, run.median("changed")), 8)
    yield at_least("the same with trust_frozen", ratio(whole, trusting.median("changed")), 15)
    unchanged = results.of("run", "mid", "torchkeep").median("unchanged")
    hashed = results.of("limits", "mid", "limits").median("BLAKE3, 2 threads")
    yield Promise("a snapshot of mid with nothing changed / BLAKE3 on two threads", ratio(unchanged, hashed), 1.2)


def _in_background(results: Results) -> Iterator[Promise]:
    copied = results.of("limits", "train", "limits").median(TWO_COPIES)
    together = results.of("run", "train", "torchkeep").median("changed")
    peers = {
        name: results.of("async", "train", name).median("lost") for name in PEERS if not name.startswith("torchkeep")
    }
    best = min((lost for lost in peers.values() if lost is not None), default=None)
    for name in ("torchkeep", "torchkeep, guarded"):
        ours = results.of("async", "train", name)
        yield Promise(
            f"{name}: stall of train / a copy on two threads", ratio(ours.median("stall, later"), copied), 1.5
        )
        yield Promise(f"{name}: stall and slowdown / those of DCP", ratio(ours.median("lost"), peers["DCP"]), 0.5)
        yield Promise(f"{name}: stall and slowdown / those of the best peer", ratio(ours.median("lost"), best), 1)
        yield Promise(f"{name}: durable after / a save that waits", ratio(ours.median("durable"), together), 1.4)
        yield Promise(f"{name}: memory that later saves add", ours.median("memory, later"), 4, unit="MB")


def _loading(results: Results) -> Iterator[Promise]:
    ours, limits = results.of("load", "mid", "torchkeep"), results.of("limits", "mid", "limits")
    mapped = limits.least("page cache, mmap and touch all")
    yield Promise("all bytes of mid / mapping and touching them", ratio(ours.least("all"), mapped), 1.1)
    first = ours.median("first tensor, fresh")
    yield Promise("the first tensor of mid in a fresh process", None if first is None else first * 1e3, 5, unit="ms")
    yield Promise(
        "load_into of mid / a copy from the page cache on two threads",
        ratio(ours.least("into"), limits.least(TWO_READS)),
        1.15,
    )
    for shape in ("mid", "small", "train"):
        memory = results.of("save", shape, "torchkeep").median("memory")
        yield Promise(f"memory that a save of {shape} adds", memory, 64, unit="MB")
