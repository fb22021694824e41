"""What every rule promises: it pairs what it should, by names and specs alone, and never a name that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from ..core.plan import Mismatch, Move, Pair, Specs, make_plan
from ..core.tensors import TensorSpec
from ..errors import AmbiguousMatchError, LoadError

_ODD = (
    "",
    ".",
    "..",
    "a..b",
    ".weight",
    "weight",
    "0",
    "0.0.weight",
    "a\\.b.weight",
    "ä.🙂.bias",
    "a b\n.weight",
    "*",
    "re:x",
)


@dataclass(frozen=True)
class RuleSample:
    """Names of both sides and what a rule has to make of them.

    Attributes:
        target, source: shapes by name, of float32.
        pairs: target -> source; None where the rule has to refuse.
        paired: what earlier rules have paired.
    """

    target: Mapping[str, tuple[int, ...]]
    source: Mapping[str, tuple[int, ...]]
    pairs: Mapping[str, str] | None
    paired: Mapping[str, str] = field(default_factory=dict)


class RuleTests:
    """Inherit this in a test module, fill in `rule` and `samples`, and pytest runs what every rule has to pass.

    >>> class TestUpper(RuleTests):                                     # doctest: +SKIP
    ...     rule = Upper()
    ...     def samples(self): return [RuleSample({"fc": (2,)}, {"FC": (2,)}, {"fc": "FC"})]

    Attributes:
        rule: an instance of the rule.
    """

    rule: Any

    def samples(self) -> list[RuleSample]:
        """Names and what is to be paired; at least one in which something is.

        Raises:
            NotImplementedError: it was not filled in.
        """
        raise NotImplementedError

    def _match(self, sample: RuleSample) -> dict[str, Pair]:
        """What the rule finds, from mappings that cannot be written to."""
        target, source = (MappingProxyType(_specs(side)) for side in (sample.target, sample.source))
        return _pairs(self.rule.match(target, source, MappingProxyType(dict(sample.paired))))

    def test_it_has_a_name(self) -> None:
        """Reports say it, in one line."""
        assert isinstance(self.rule.name, str)
        assert self.rule.name.isprintable()
        assert self.rule.name

    def test_it_pairs_what_it_should(self) -> None:
        """Exactly that; and refuses, with what it cannot choose between and what to do, where it has to."""
        assert any(sample.pairs for sample in self.samples())
        for sample in self.samples():
            if sample.pairs is not None:
                found = {to: pair.source for to, pair in self._match(sample).items()}
                assert found == dict(sample.pairs)
                continue
            try:
                found = {to: pair.source for to, pair in self._match(sample).items()}
            except AmbiguousMatchError as error:
                assert error.candidates, str(error)
                assert error.hint, str(error)
            else:
                raise AssertionError(f"it guesses {found}")

    def test_it_pairs_names_that_are_there_and_each_once(self) -> None:
        """Whatever it was given, with a confidence from 0 to 1."""
        for sample in self._all():
            try:
                found = self._match(sample)
            except LoadError:
                continue
            assert found.keys() <= sample.target.keys()
            origins = [pair.source for pair in found.values()]
            assert set(origins) <= sample.source.keys()
            assert len(origins) == len(set(origins)), "a tensor of the source was given twice"
            assert all(0 <= pair.confidence <= 1 for pair in found.values())

    def test_it_is_the_same_each_time(self) -> None:
        """The same question has the same answer, and a rule remembers nothing."""
        for sample in self.samples():
            if sample.pairs is not None:
                first = self._match(sample)
                for other in self._all():
                    try:
                        self._match(other)
                    except LoadError:
                        continue
                assert self._match(sample) == first

    def test_it_pairs_nothing_with_nothing(self) -> None:
        """An empty side is no error."""
        for sample in self.samples():
            assert self._match(RuleSample({}, sample.source, {})) == {}
            assert self._match(RuleSample(sample.target, {}, {})) == {}
        assert self._match(RuleSample({}, {}, {})) == {}

    def test_it_looks_at_nothing_but_names_and_specs(self) -> None:
        """Of another dtype it pairs the same: whether a tensor fits is for the plan to say."""
        for sample in self.samples():
            if sample.pairs is not None:
                half = {name: TensorSpec(torch.float16, shape) for name, shape in sample.source.items()}
                found = _pairs(self.rule.match(_specs(sample.target), half, sample.paired))
                assert {to: pair.source for to, pair in found.items()} == dict(sample.pairs)

    def test_a_plan_is_made_of_it(self) -> None:
        """What it pairs is moved or mismatched, under its name, and nothing gets lost."""
        for sample in self.samples():
            if sample.pairs is None or sample.paired:
                continue
            plan = make_plan(_specs(sample.target), _specs(sample.source), [self.rule])
            made: list[Move | Mismatch] = [*plan.moves, *plan.mismatched]
            done = {one.target: one.source for one in made}
            assert done == dict(sample.pairs)
            assert all(one.rule == self.rule.name for one in made)
            assert sorted([*done, *plan.missing]) == sorted(sample.target)
            assert sorted([*done.values(), *plan.unexpected]) == sorted(sample.source)

    def _all(self) -> list[RuleSample]:
        """The samples, each the other way round and among odd names too."""
        odd: dict[str, tuple[int, ...]] = {name: (2,) * (place % 3) for place, name in enumerate(_ODD)}
        samples = self.samples()
        turned = [RuleSample(one.source, one.target, None) for one in samples]
        among = [RuleSample({**odd, **one.target}, {**one.source, **odd}, None) for one in samples]
        empty = RuleSample({"a.weight": (0, 3), "b": ()}, {"c.weight": (0, 3), "d": ()}, None)
        return [*samples, *turned, *among, RuleSample(odd, odd, None), empty]


def _specs(shapes: Mapping[str, tuple[int, ...]]) -> Specs:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def _pairs(found: Mapping[str, Any]) -> dict[str, Pair]:
    return {to: Pair(origin, 1.0) if isinstance(origin, str) else Pair(*origin) for to, origin in found.items()}
