"""Policies: each keeps what it says, they join, and no list of snapshots makes them break a promise."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.core.retention import (
    Either,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    Limited,
    Policy,
    estimated_sizes,
)
from torchkeep.core.snapshot import Snapshot
from torchkeep.core.spans import gaps, joined, span_text, spans_of, within
from torchkeep.core.units import parse_bytes, parse_seconds


def snapshot(sequence: int, step: int = 0, packs: tuple[str, ...] = (), new: int = 0, **metrics: object) -> Snapshot:
    return Snapshot(sequence, step, sequence - 1, 0.0, metrics, 1, new, new, packs)


FIVE = [
    snapshot(number, 2 * number, (f"p{number}",), 10, val_loss=loss, val_acc=acc)
    for number, loss, acc in [(1, 0.5, 0.1), (2, 0.2, 0.9), (3, math.nan, 0.9), (5, 0.2, math.inf), (8, 0.9, 0.2)]
]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepLast(1), {8}),
        (KeepLast(2), {5, 8}),
        (KeepLast(99), {1, 2, 3, 5, 8}),
        (KeepEvery(4), {2, 8}),
        (KeepEvery(3), {3, 8}),
        (KeepBest(1, "val_loss"), {2, 8}),
        (KeepBest(2, "val_loss"), {2, 5, 8}),
        (KeepBest(9, "val_loss"), {1, 2, 5, 8}),
        (KeepBest(1, "val_acc"), {2, 8}),
        (KeepBest(2, "val_acc"), {2, 3, 8}),
        (KeepBest(1, "val_acc", "min"), {1, 8}),
        (KeepBest(1, "nothing_loss"), {8}),
        (KeepTagged(), {1, 8}),
        (KeepLast(2) | KeepBest(1, "val_loss"), {2, 5, 8}),
        (KeepTagged() | KeepEvery(3) | KeepLast(1), {1, 3, 8}),
        (KeepLast(5).at_most(50), {1, 2, 3, 5, 8}),
        (KeepLast(5).at_most(49), {2, 3, 5, 8}),
        (KeepLast(5).at_most("25"), {5, 8}),
        (KeepLast(5).at_most(1), {8}),
        ((KeepLast(5) | KeepTagged()).at_most(20), {1, 8}),
        ((KeepLast(5) | KeepBest(1, "val_loss")).at_most(25), {2, 8}),
        ((KeepLast(5) | KeepBest(2, "val_acc")).at_most(25), {2, 8}),
        (KeepLast(5).at_most(1) | KeepBest(1, "val_acc"), {2, 8}),
    ],
    ids=str,
)
def test_what_stays(policy: Policy, kept: set[int]) -> None:
    assert policy(FIVE, tags={"first": 1, "gone": 4}) == kept
    assert policy(FIVE[::-1], tags={"first": 1}) == kept, "the order of the list does not matter"


def test_reasons_and_text() -> None:
    policy = (KeepLast(2) | KeepBest(1, "val_loss") | KeepEvery(4) | KeepTagged()).at_most("1 kB")
    assert str(policy) == (
        "(keep_last(2) | keep_best(1, 'val_loss', 'min') | keep_every(4) | keep_tagged()).at_most(1000)"
    )
    why = policy.explain(FIVE, tags={"a": 2, "b": 2})
    assert why == {
        2: "best 1 by val_loss, every 4 steps, tag a, tag b",
        5: "last 2",
        8: "last 2, every 4 steps, the newest",
    }
    assert policy.metrics == {"val_loss"} and policy.limit == 1000 and KeepLast(1).limit is None
    assert KeepLast(3)([]) == frozenset()


def test_packs_that_are_shared_are_counted_once() -> None:
    shared = [snapshot(number, packs=("backbone", f"head{number}")) for number in (1, 2, 3, 4)]
    sizes = {"backbone": 1000, "head1": 10, "head2": 10, "head3": 10, "head4": 10}
    assert KeepLast(4).at_most(1030)(shared, sizes=sizes) == {2, 3, 4}
    assert KeepLast(4).at_most(1040)(shared, sizes=sizes) == {1, 2, 3, 4}
    assert KeepLast(4).at_most(900)(shared, sizes=sizes) == {4}, "the newest stays, whatever it takes"
    told = [snapshot(1, packs=("backbone", "head1"), new=1010), snapshot(2, packs=("backbone", "head2"), new=10)]
    assert sum(estimated_sizes(told).values()) == 1020


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: KeepLast(0),
        lambda: KeepEvery(-1),
        lambda: KeepLast(1.5),
        lambda: KeepLast(True),
        lambda: KeepBest(0, "loss"),
        lambda: KeepBest(1, "goodness"),
        lambda: KeepBest(1, "loss", "best"),
        lambda: KeepLast(1).at_most("much"),
        lambda: KeepLast(1).at_most(0),
    ],
)
def test_misuse_is_named(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"needs an integer from 1|high or a low|must be 'min' or 'max'|is no size"):
        wrong()


# -- properties ---------------------------------------------------------------------------------------------------

VALUES = st.one_of(st.floats(), st.integers(-5, 5), st.none(), st.text(max_size=2))
PACKS = [f"p{number}" for number in range(12)]


@st.composite
def shelves(draw: st.DrawFn) -> tuple[list[Snapshot], dict[str, int], dict[str, int]]:
    numbers = draw(st.lists(st.integers(1, 60), unique=True, max_size=12))
    snapshots = [
        snapshot(
            number,
            draw(st.integers(0, 30)),
            tuple(draw(st.lists(st.sampled_from(PACKS), unique=True, max_size=4))),
            draw(st.integers(0, 100)),
            **{name: draw(VALUES) for name in draw(st.sets(st.sampled_from(["loss", "acc"])))},
        )
        for number in numbers
    ]
    tags = draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 60)))
    sizes = {ident: draw(st.integers(0, 50)) for ident in PACKS}
    return snapshots, tags, sizes


LEAVES = st.one_of(
    st.builds(KeepLast, st.integers(1, 8)),
    st.builds(KeepEvery, st.integers(1, 8)),
    st.builds(KeepBest, st.integers(1, 4), st.sampled_from(["loss", "acc"]), st.sampled_from([None, "min", "max"])),
    st.just(KeepTagged()),
)
POLICIES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Either, inner, inner),
        st.builds(lambda policy, size: policy.at_most(size), inner, st.integers(1, 300)),
    ),
    max_leaves=5,
)


@given(shelves(), POLICIES)
def test_the_newest_stays_and_nothing_is_made_up(shelf: tuple, policy: Policy) -> None:
    snapshots, tags, sizes = shelf
    kept = policy(snapshots, tags=tags, sizes=sizes)
    numbers = {one.sequence for one in snapshots}
    assert kept <= numbers
    assert not numbers or max(numbers) in kept
    assert set(policy.explain(snapshots, tags=tags, sizes=sizes)) == kept
    assert all(policy.explain(snapshots, tags=tags, sizes=sizes).values()), "each has a reason"
    assert policy(snapshots, tags=tags) <= numbers


@given(shelves(), LEAVES, LEAVES, LEAVES)
def test_joining_is_a_union(shelf: tuple, first: Policy, second: Policy, third: Policy) -> None:
    snapshots, tags, sizes = shelf

    def keeps(policy: Policy) -> frozenset[int]:
        return policy(snapshots, tags=tags, sizes=sizes)

    assert keeps(first | second) == keeps(first) | keeps(second) == keeps(second | first)
    assert keeps(first | first) == keeps(first)
    assert keeps((first | second) | third) == keeps(first | (second | third))


@given(shelves(), POLICIES)
def test_pruning_twice_is_pruning_once(shelf: tuple, policy: Policy) -> None:
    snapshots, tags, sizes = shelf
    kept = policy(snapshots, tags=tags, sizes=sizes)
    left = [one for one in snapshots if one.sequence in kept]
    again = policy(left, tags=tags, sizes=sizes)
    if isinstance(policy, (KeepLast, KeepEvery, KeepBest, KeepTagged)):
        assert again == kept
    assert again <= kept


@given(shelves(), LEAVES, LEAVES, st.integers(1, 300))
def test_a_limit_drops_no_more_than_it_has_to(shelf: tuple, first: Policy, second: Policy, limit: int) -> None:
    snapshots, tags, sizes = shelf
    policy = first | second
    kept, all_of_it = (
        policy.at_most(limit)(snapshots, tags=tags, sizes=sizes),
        policy(snapshots, tags=tags, sizes=sizes),
    )
    assert kept <= all_of_it

    def taken(numbers: frozenset[int]) -> int:
        return sum(sizes[ident] for ident in {i for one in snapshots if one.sequence in numbers for i in one.packs})

    if taken(all_of_it) <= limit:
        assert kept == all_of_it
    tagged = isinstance(first, KeepTagged) or isinstance(second, KeepTagged)
    protected = {max((one.sequence for one in snapshots), default=0)} | (set(tags.values()) if tagged else set())
    assert taken(kept) <= limit or kept <= protected
    assert protected & all_of_it <= kept
    wider = policy.at_most(limit + 50)(snapshots, tags=tags, sizes=sizes)
    assert kept <= wider


@given(shelves(), st.integers(1, 4))
def test_nan_and_infinity_are_never_best(shelf: tuple, count: int) -> None:
    snapshots, _, _ = shelf
    for mode in ("min", "max"):
        kept = KeepBest(count, "loss", mode)(snapshots)
        newest = max((one.sequence for one in snapshots), default=0)
        values = {one.sequence: one.metrics.get("loss") for one in snapshots}
        numbers = {s: v for s, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        assert kept - {newest} <= numbers.keys()
        for dropped in numbers.keys() - kept:
            better = [s for s in kept & numbers.keys() if s != newest or len(kept) <= count]
            if mode == "min":
                assert all(numbers[s] <= numbers[dropped] for s in better)
            else:
                assert all(numbers[s] >= numbers[dropped] for s in better)


@given(st.sets(st.integers(1, 30)), st.sets(st.integers(1, 30)), st.integers(0, 32))
def test_spans_are_sets(first: set[int], second: set[int], last: int) -> None:
    both = joined([*spans_of(first), *spans_of(second)])
    assert {n for a, b in both for n in range(a, b + 1)} == first | second
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(both))
    assert {n for a, b in gaps(spans_of(first), last) for n in range(a, b + 1)} == set(range(1, last + 1)) - first
    assert all(within(both, n) == (n in first | second) for n in range(32))
    assert [span_text(span) for span in spans_of({1, 3, 4})] == ["1", "3-4"]


def test_units() -> None:
    assert (
        parse_bytes("20 GB") == parse_bytes("20g") == 20 * 10**9
        and parse_bytes("1.5KiB") == 1536
        and parse_bytes(7) == 7
    )
    assert parse_seconds("1h") == 3600 and parse_seconds("90s") == parse_seconds("1.5min") == 90 == parse_seconds(90)
    assert parse_seconds("2D") == 172800 and parse_seconds(0) == 0 == parse_seconds("0")
    for wrong in ("1 week", "", "-1", "h", math.nan, math.inf):
        with pytest.raises(ValueError, match="is no length of time"):
            parse_seconds(wrong)


def test_limited_is_data() -> None:
    assert KeepLast(3).at_most("1kB") == Limited(KeepLast(3), 1000) and len({KeepLast(3), KeepLast(3)}) == 1
