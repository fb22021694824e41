"""Names: selectors choose what their text says, folding and joining lose nothing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchkeep.core.names import Selector, fold, is_under, name_paths, nearest
from torchkeep.errors import SelectorError

NAMES = [
    "stem.conv.weight",
    "stem.bn.weight",
    "layer1.0.conv.weight",
    "layer1.0.bn.bias",
    "layer10.conv.bias",
    "head.weight",
    "header",
]
BLOCKS = ["stem", "layer1", "layer10", "head"]


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        ("head", [5]),
        ("head.weight", [5]),
        ("hea", []),
        ("layer1", [2, 3]),
        ("layer1.*", [2, 3]),
        ("layer1*", [2, 3, 4]),
        ("layer?", [2, 3]),
        ("layer?.*.bias", [3]),
        ("*.bias", [3, 4]),
        ("*.bn", [1, 3]),
        ("*.c?nv", [0, 2, 4]),
        ("*", [0, 1, 2, 3, 4, 5, 6]),
        ("* but head", [0, 1, 2, 3, 4, 6]),
        ("* but head, header", [0, 1, 2, 3, 4]),
        ("* but head, header,", [0, 1, 2, 3, 4]),
        ("* but *.bn", [0, 2, 4, 5, 6]),
        ("* but stem but head but header", [2, 3, 4]),
        ("* but first 2", [4, 5, 6]),
        ("  head ", [5]),
        ("first 2", [0, 1, 2, 3]),
        ("first 99", [0, 1, 2, 3, 4, 5]),
        ("first 0", []),
        ("last 0", []),
        ("last 2", [4, 5]),
        ("first 2 but *.bn", [0, 2]),
        (r"re:\d\.", [2, 3, 4]),
        (r"re:^he", [5, 6]),
        ("* but re:^layer", [0, 1, 5, 6]),
        (re.compile("weight$"), [0, 1, 2, 5]),
        ([], []),
        (["head", "stem but *.bn"], [0, 5]),
        (("head", re.compile("^header")), [5, 6]),
        ((part for part in ["head", "header"]), [5, 6]),
        (Selector("head"), [5]),
        ([Selector(["head", "stem"]), "header"], [0, 1, 5, 6]),
    ],
)
def test_selector(selection: object, chosen: list[int]) -> None:
    selector = Selector.of(selection)
    assert selector.choose(NAMES, BLOCKS) == [NAMES[index] for index in chosen]
    assert [selector.matches(name, BLOCKS) for name in NAMES] == [index in chosen for index in range(len(NAMES))]


@pytest.mark.parametrize("selection", ["", "  ", 3, None, b"head", [None], ["head", ""], "re:(", "* but re:("])
def test_what_is_no_selector(selection: object) -> None:
    with pytest.raises(SelectorError):
        Selector.of(selection).matches("head")


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        ("* but head", "* but head"),
        (re.compile("^a"), "re:^a"),
        (["a", re.compile("b")], "a, re:b"),
        ([Selector(["a", "b"]), "c"], "a, b, c"),
        (Selector(Selector("a")), "a"),
        (3, "3"),
    ],
)
def test_a_selector_as_text(selection: object, text: str) -> None:
    assert str(Selector.of(selection)) == text


def test_special_characters_in_globs_are_themselves() -> None:
    assert Selector("a+b.*").choose(["a+b.c", "aab.c"]) == ["a+b.c"]
    assert Selector("*").matches("two\nlines")


def test_is_under() -> None:
    assert is_under("a.b", "a")
    assert is_under("a", "a")
    assert is_under("a", "")
    assert not is_under("ab", "a")


def test_nearest() -> None:
    assert nearest("haed", ["head", "stem"]) == ["head"]
    assert nearest("zzzz", ["head"]) == []


def test_names_that_collide_are_escaped_and_counted() -> None:
    assert name_paths([("a", "b"), ("c",)]) == ["a.b", "c"]
    assert name_paths([("a.b", "c"), ("a", "b", "c")]) == ["a\\.b.c", "a.b.c"]
    assert name_paths([("1",), ("1",), ("1~2",)]) == ["1", "1~3", "1~2"]


@given(st.lists(st.lists(st.text("ab.\\~2", max_size=3), min_size=1, max_size=3).map(tuple), max_size=12))
def test_no_name_is_dropped_or_doubled(paths: list[tuple[str, ...]]) -> None:
    names = name_paths(paths)
    assert len(names) == len(paths) == len(set(names))


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], ["a.{0..2}.w"]),
        (["a.0.w", "a.2.w"], ["a.{0,2}.w"]),
        (["a.0.w", "b.0.w"], ["a.0.w", "b.0.w"]),
        (["0", "1"], ["{0..1}"]),
        (["a.1.2.w", "a.1.3.w"], ["a.1.{2..3}.w"]),
        ([f"a.{n}" for n in (1, 3, 5, 7, 9, 11, 13)], ["a.{1,3,5,..,11,13}"]),
        (["conv1.w", "conv2.w"], ["conv1.w", "conv2.w"]),
        ([], []),
    ],
)
def test_fold(names: list[str], folded: list[str]) -> None:
    assert [text for text, _ in fold(names)] == folded


@given(st.lists(st.lists(st.sampled_from(["a", "b", "0", "1", "07"]), min_size=1).map(".".join), unique=True))
def test_folding_loses_no_name(names: list[str]) -> None:
    assert sorted(name for _, members in fold(names) for name in members) == sorted(names)
