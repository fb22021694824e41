"""Every rule against the contract, and what each is for; renames, suffixes, weight norm, and advice."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.core.plan import Specs
from torchkeep.core.registry import make_part
from torchkeep.core.tensors import TensorSpec
from torchkeep.errors import AmbiguousMatchError, LoadError, SelectorError
from torchkeep.rules import RULES
from torchkeep.rules.exact import Exact
from torchkeep.rules.prefixes import Add, Prefixes, Strip
from torchkeep.rules.renames import Rename
from torchkeep.rules.structural import Structural
from torchkeep.rules.suffix import Suffix
from torchkeep.rules.suggesting import suggestions
from torchkeep.rules.weight_norm import WeightNorm
from torchkeep.testing import RuleSample, RuleTests

Shapes = dict[str, tuple[int, ...]]
NET: Shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (2, 4), "fc.bias": (2,)}


def under(prefix: str, shapes: Shapes = NET) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def specs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(torch.float32, shape) for name, shape in shapes.items()}


def to(target: Shapes, source: Shapes) -> dict[str, str]:
    return dict(zip(target, source, strict=True))


# -- the contract -------------------------------------------------------------------------------------------------


class TestExact(RuleTests):
    rule = Exact()

    def samples(self) -> list[RuleSample]:
        return [RuleSample(NET, NET, to(NET, NET)), RuleSample(NET, under("x."), {})]


class TestPrefixes(RuleTests):
    rule = Prefixes()

    def samples(self) -> list[RuleSample]:
        twice = {**under("student."), **under("teacher.")}
        wrapped = {name.replace("conv", "conv._fsdp_wrapped_module"): shape for name, shape in NET.items()}
        return [
            RuleSample(NET, under("module."), to(NET, under("module."))),
            RuleSample(under("backbone."), NET, to(under("backbone."), NET)),
            RuleSample(under("model.net."), under("_orig_mod."), to(under("model.net."), under("_orig_mod."))),
            RuleSample(NET, wrapped, to(NET, wrapped)),
            RuleSample(NET, twice, None),
            RuleSample({"fc.weight": (2, 4)}, {"aux.fc.weight": (2, 4)}, {}, {"conv.weight": "conv.weight"}),
        ]


class TestStrip(RuleTests):
    rule = Strip("a.")

    def samples(self) -> list[RuleSample]:
        return [RuleSample(NET, under("a."), to(NET, under("a."))), RuleSample(NET, NET, {})]


class TestAdd(RuleTests):
    rule = Add("a.")

    def samples(self) -> list[RuleSample]:
        return [RuleSample(under("a."), NET, to(under("a."), NET)), RuleSample(NET, NET, {})]


class TestRename(RuleTests):
    rule = Rename(r"^encoder\.(\d+)\.", r"blocks.\1.", "norm$", "scale")

    def samples(self) -> list[RuleSample]:
        target = {"blocks.0.weight": (2,), "blocks.1.weight": (2,), "scale": (3,), "blocks.2.weight": (2,)}
        source = {"encoder.0.weight": (2,), "encoder.1.weight": (2,), "norm": (3,), "other": (3,)}
        return [
            RuleSample(target, source, dict(zip(list(target)[:3], source, strict=False))),
            RuleSample(target, {"encoder.0.weight": (2,), "blocks.0.weight": (2,)}, None),
        ]


class TestSuffix(RuleTests):
    rule = Suffix()

    def samples(self) -> list[RuleSample]:
        target: Shapes = {"a.enc.fc.weight": (2, 3), "a.dec.fc.weight": (2, 3), "scale": ()}
        source: Shapes = {"x.y.enc.fc.weight": (2, 3), "z.dec.fc.weight": (2, 3), "net.scale": ()}
        return [
            RuleSample(target, source, to(target, source)),
            RuleSample({"a.fc.weight": (2,)}, {"b.fc.weight": (3,)}, {}),
            RuleSample({"a.fc.weight": (2,)}, {"b.conv.weight": (2,)}, {}),
            RuleSample({"a.fc.weight": (2,)}, {"b.fc.weight": (2,), "c.fc.weight": (2,)}, None),
            RuleSample({"a.fc.weight": (2,), "b.fc.weight": (2,)}, {"c.fc.weight": (2,)}, None),
            RuleSample(
                {"a.fc.weight": (2,)}, {"b.fc.weight": (2,), "c.fc.weight": (3,)}, {"a.fc.weight": "b.fc.weight"}
            ),
        ]


class TestWeightNorm(RuleTests):
    rule = WeightNorm()

    def samples(self) -> list[RuleSample]:
        new = {"fc.parametrizations.weight.original0": (2, 1), "fc.parametrizations.weight.original1": (2, 3)}
        old: Shapes = {"fc.weight_g": (2, 1), "fc.weight_v": (2, 3)}
        spectral: Shapes = {
            "parametrizations.weight.original": (2, 3),
            "parametrizations.weight.0._u": (2,),
            "parametrizations.weight.0._v": (3,),
        }
        before: Shapes = {"weight_orig": (2, 3), "weight_u": (2,), "weight_v": (3,)}
        return [
            RuleSample(new, old, to(new, old)),
            RuleSample(old, new, to(old, new)),
            RuleSample(spectral, before, to(spectral, before)),
            RuleSample(before, spectral, to(before, spectral)),
            RuleSample({"fc.parametrizations.weight.original1": (2, 3)}, {"fc.weight_v": (2, 3)}, {}),
            RuleSample(new, under("x.", old), {}),
        ]


class TestStructural(RuleTests):
    rule = Structural()

    def samples(self) -> list[RuleSample]:
        other: Shapes = {"0.weight": (4, 3, 3, 3), "0.bias": (4,), "3.weight": (2, 4), "3.bias": (2,)}
        head = {**other, "3.weight": (7, 4), "3.bias": (7,)}
        equal = {f"{n}.weight": (4, 4) for n in range(3)}
        return [
            RuleSample(NET, other, to(NET, other)),
            RuleSample({**NET, "x.weight": (9, 9)}, head, to(NET, head) | {}),
            RuleSample(equal, {f"x.{name}": shape for name, shape in list(equal.items())[:2]}, None),
        ]


def test_every_rule_of_the_table_is_held_to_the_contract() -> None:
    tested = {type(cls.rule) for cls in RuleTests.__subclasses__()}
    for name in RULES:
        rule = make_part(RULES, name, "rule")
        assert type(rule) in tested and rule.name == name


class Twice(Exact):
    """Gives one tensor to everybody."""

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        return dict.fromkeys(target, next(iter(source))) if source else {}


class Guessing(Suffix):
    """Takes the first of several."""

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        ends = {name.rpartition(".")[2]: name for name in source}
        return {name: ends[name.rpartition(".")[2]] for name in target if name.rpartition(".")[2] in ends}


class Remembering(Exact):
    """Pairs every name once in its life."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        found = {name: name for name in target if name in source and name not in self.seen}
        self.seen |= found.keys()
        return found


class Inventing(Exact):
    """Pairs names that are not there."""

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        return {**super().match(target, source, paired), "invented": "names"}


@pytest.mark.parametrize(
    ("broken", "checks", "test"),
    [
        (Twice(), TestExact(), "test_it_pairs_names_that_are_there_and_each_once"),
        (Guessing(), TestSuffix(), "test_it_pairs_what_it_should"),
        (Remembering(), TestExact(), "test_it_is_the_same_each_time"),
        (Inventing(), TestExact(), "test_it_pairs_nothing_with_nothing"),
        (Inventing(), TestExact(), "test_it_pairs_names_that_are_there_and_each_once"),
    ],
)
def test_a_rule_that_breaks_the_contract_fails(broken: Any, checks: RuleTests, test: str) -> None:
    checks.rule = broken
    with pytest.raises(AssertionError):
        getattr(checks, test)()


# -- renames ------------------------------------------------------------------------------------------------------


def two() -> tuple[TinyNet, TinyNet]:
    torch.manual_seed(0)
    return TinyNet(), TinyNet()


@pytest.mark.parametrize("how", ["dict", "json", "yaml", "regex"])
def test_renames_load(tmp_path: Path, how: str) -> None:
    a, b = two()
    state = {name.replace("conv.", "stem.0.").replace("head", "out"): tensor for name, tensor in a.state_dict().items()}
    names = {"stem.0": "conv", "out.weight": "head.weight", "out.bias": "head.bias"}
    (tmp_path / "names.json").write_text(json.dumps(names))
    (tmp_path / "names.yaml").write_text("".join(f"{old}: {new}\n" for old, new in names.items()))
    rule = {
        "dict": tk.rename(names),
        "json": tk.rename(tmp_path / "names.json"),
        "yaml": tk.rename(str(tmp_path / "names.yaml")),
        "regex": tk.rename(r"^stem\.(\d+)\.", "conv.", "^out", "head"),
    }[how]
    report = tk.load_into(b, state, rules=[rule, "exact"])
    assert state_bits(a) == state_bits(b)
    assert sum(move.rule.startswith("rename") for move in report.moves) == 4


def test_the_longest_name_of_a_mapping_counts() -> None:
    rule = tk.rename({"a": "x", "a.b": "y", "a.b.c": "z", "q": "a"})
    names = ["a.b.c", "a.b.d", "a.e", "a", "ab.c", "b.a", "q.b.c"]
    assert [rule.renamed(name) for name in names] == ["z", "y.d", "x.e", "x", "ab.c", "b.a", "a.b.c"]


def test_names_may_change_places() -> None:
    rule = tk.rename({"a": "b", "b": "a"})
    assert rule.match(specs({"a": (), "b": ()}), specs({"a": (), "b": ()}), {}) == {"b": "a", "a": "b"}


def test_two_names_that_end_at_one_are_both_named() -> None:
    target, source = specs({"fc.weight": (2,)}), specs({"a.weight": (2,), "b.weight": (2,)})
    for rule in (tk.rename({"a": "fc", "b": "fc"}), tk.rename("^[ab]", "fc")):
        with pytest.raises(AmbiguousMatchError, match=r"'a\.weight' and 'b\.weight' .*'fc\.weight'") as caught:
            rule.match(target, source, {})
        assert caught.value.candidates == ("a.weight", "b.weight")
    assert tk.rename("^[ab]", "other").match(target, source, {}) == {}


def test_renames_that_cannot_be_read(tmp_path: Path) -> None:
    for content in ("[1, 2]", '{"a": 1}', '{"a": null}', "{", '{"": "b"}', "\xff"):
        (tmp_path / "names.json").write_bytes(content.encode("latin1"))
        with pytest.raises(LoadError):
            tk.rename(tmp_path / "names.json")
    (tmp_path / "names.yaml").write_text("a: [b")
    for where in (tmp_path / "names.yaml", tmp_path / "nothing.json", r"^old\."):
        with pytest.raises(LoadError, match="cannot be read") as caught:
            tk.rename(where)
        assert "tk.rename(" in caught.value.hint
    with pytest.raises(LoadError, match=r"tk.strip\("):
        tk.rename({"model": ""})
    with pytest.raises(LoadError, match="3 is none"):
        tk.rename({"a": 3})
    for parts in (("(", "x"), ("a", "b", "c"), (Path("a"), "b")):
        with pytest.raises(SelectorError):
            tk.rename(*parts)
    with pytest.raises(SelectorError, match="cannot replace"):
        tk.rename("a(b)", r"\2").renamed("ab")


# -- weight norm --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", ["weight", "spectral"])
def test_old_and_new_norms_of_weights_compute_the_same(kind: str, turned: bool) -> None:
    old_way, new_way = {
        "weight": (weight_norm, parametrizations.weight_norm),
        "spectral": (spectral_norm, parametrizations.spectral_norm),
    }[kind]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5))
    old, new = copy.deepcopy(plain), copy.deepcopy(plain)
    for index in (0, 2):
        old_way(old[index])
        new_way(new[index])
    source, model = (new, old) if turned else (old, new)
    with torch.no_grad():
        [parameter.mul_(1.5) for parameter in source.parameters()]
    report = tk.load_into(
        model, {name: tensor.clone() for name, tensor in source.state_dict().items()}, rules=["exact", "weight-norm"]
    )
    assert report.coverage == 1 and not report.unexpected
    x = torch.randn(2, 3, 6)
    assert torch.equal(model.eval()(x), source.eval()(x))


# -- suffixes and prefixes in a load ------------------------------------------------------------------------------


def test_names_that_end_alike_load() -> None:
    a, b = two()
    source = {f"stage{place % 3}.{name}": tensor for place, (name, tensor) in enumerate(a.state_dict().items())}
    with torch.no_grad():
        b.scale.copy_(a.scale)  # one segment alone says too little
    report = tk.load_into(nn.ModuleDict({"net": b}), source, rules=["suffix"], allow=["net.scale", "stage0.scale"])
    assert state_bits(a) == state_bits(b) and {move.rule for move in report.moves} == {"suffix"}


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.", "_orig_mod.", "net.module.", "a.b.c."])
def test_prefixes_on_either_side(prefix: str) -> None:
    for target, source in ((NET, under(prefix)), (under(prefix), NET)):
        assert Prefixes().match(specs(target), specs(source), {}) == to(target, source)


@pytest.mark.parametrize("wrapper", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_in_the_middle(wrapper: str) -> None:
    inner = {f"layers.0.{wrapper}.{name}": shape for name, shape in NET.items()}
    plain = under("layers.0.")
    for target, source in ((plain, inner), (inner, plain), (inner, under("module.", plain))):
        assert Prefixes().match(specs(target), specs(source), {}) == to(target, source)


# -- advice -------------------------------------------------------------------------------------------------------


def test_advice_says_what_would_have_worked_and_how_well() -> None:
    source = {**under("encoder."), "pooler.weight": (9, 9)}
    assert suggestions(specs(NET), specs(source))[0] == (
        "4 of 4 names match after stripping `encoder.`: rules=['exact', tk.strip('encoder.')]"
    )
    assert "after adding `net.`: rules=['exact', tk.add('net.')]" in suggestions(specs(under("net.")), specs(NET))[0]
    both = suggestions(specs(NET), specs({**under("student."), **under("teacher.")}))
    assert [line.partition("rules=")[2] for line in both[:2]] == [
        "['exact', tk.strip('student.')]",
        "['exact', tk.strip('teacher.')]",
    ]


def test_advice_on_structure_on_suffixes_and_on_weight_norm() -> None:
    a = {f"block{n}.fc.weight": (3 + n, 3) for n in range(6)}
    other = {f"x.{n}.weight": shape for n, shape in enumerate(a.values())}
    assert suggestions(specs(a), specs(other)) == (
        'match="structural" would pair 6 of 6 tensors, with a confidence of 0.99',
    )
    ends = {f"s{n}.{name}": shape for n, (name, shape) in enumerate(a.items())}
    assert suggestions(specs(a), specs(ends)) == ("6 of 6 names end alike: rules=['exact', 'suffix']",)
    new = {"fc.parametrizations.weight.original0": (2, 1), "fc.parametrizations.weight.original1": (2, 3)}
    old = suggestions(specs(new), specs({"fc.weight_g": (2, 1), "fc.weight_v": (2, 3)}))
    assert "rules=['exact', 'weight-norm']" in old[0]


def test_advice_on_what_is_ambiguous_leaves_that_out() -> None:
    ends: Shapes = {f"{name}.weight": (n, 7) for n, name in enumerate("abcdef", 8)}
    target = {**ends, **{f"s.{n}.weight": (4, 4) for n in range(3)}, "end.weight": (2, 5)}
    source = under("x.", {**ends, **{f"t.{n}.weight": (4, 4) for n in range(2)}, "last.weight": (2, 5)})
    source = {name.replace("x.", "yz", 1): shape for name, shape in source.items()}
    (said,) = suggestions(specs(target), specs(source))
    assert "ambiguous='leave'" in said and "7 of 10" in said


def test_advice_is_silent_where_nothing_would_have_worked_and_never_raises() -> None:
    assert suggestions({}, {}) == suggestions(specs(NET), {}) == suggestions({}, specs(NET)) == ()
    assert suggestions(specs(NET), specs({"a.b": (7,), "c": (1, 2)})) == ()
    odd: Any = {"": None, ".": TensorSpec(torch.float32, ()), "x.y": 3}
    assert suggestions(odd, odd) == suggestions(specs(NET), odd) == ()


def test_what_is_advised_works() -> None:
    a, b = two()
    state = {"encoder." + name: tensor for name, tensor in a.state_dict().items()} | {"other.fc.weight": torch.ones(2)}
    names = specs({name: tuple(tensor.shape) for name, tensor in b.state_dict().items()})
    advice = suggestions(names, specs({name: tuple(tensor.shape) for name, tensor in state.items()}))[0]
    rules = eval(advice.partition("rules=")[2], {"tk": tk})  # noqa: S307 - our own words
    tk.load_into(b, state, rules=rules, allow=["other"])
    assert state_bits(a) == state_bits(b)
