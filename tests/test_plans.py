"""Plans: printed, kept as files, edited and followed; what must be covered; what is left over; what comes out."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.core.plan import Pair, Specs
from torchkeep.errors import IncompatibleCheckpointError, LoadError, OutputsDifferError, SelectorError

FACTORY = f"{Path(__file__).parent / 'models.py'}:TinyNet"


def two(classes: int = 3) -> tuple[TinyNet, TinyNet]:
    torch.manual_seed(0)
    return TinyNet(), TinyNet(classes)


class InOrder:
    """A rule that pairs what is left over in order, and is not quite sure."""

    name = "in order"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> Mapping[str, str | Pair]:
        return {to: Pair(origin, 0.75) for to, origin in zip(target, source, strict=False)}


# -- one more rule, and what a report says ----------------------------------------------------------------------


def test_one_more_rule_comes_after_the_others_and_says_how_sure_it_is() -> None:
    a, b = two()
    state = {
        name if name.startswith("conv") else f"x.{i}": value for i, (name, value) in enumerate(a.state_dict().items())
    }
    report = tk.load_into(b, state, match=InOrder())
    assert state_bits(a) == state_bits(b)
    sure = {move.target: (move.rule, move.confidence) for move in report.moves}
    assert sure["conv.weight"] == ("exact", 1.0) and sure["head.bias"] == ("in order", 0.75)
    assert "in order, confidence 0.75" in str(report)
    assert tk.to_json(report)["moves"][-1]["confidence"] == 0.75
    report = tk.plan_load(b, state, rules=[tk.strip("x.")], match=InOrder())
    assert {move.rule for move in report.moves} == {"in order"}
    assert (
        tk.plan_load(b, state, match="exact").moves
        == tk.plan_load(b, state, rules=["exact", "prefixes", "exact"]).moves
    )
    with pytest.raises(ValueError, match="there is no rule 'fuzzy'"):
        tk.load_into(b, state, match="fuzzy")


def test_matches_are_all_pairs_whether_they_fit_or_not() -> None:
    a, b = two(5)
    report = tk.plan_load(b, a)
    assert [match.target for match in report.matches] == list(b.state_dict())
    assert {match.rule for match in report.matches} == {"exact"}
    assert {match.target for match in report.matches if not hasattr(match, "adapter")} == {"head.weight", "head.bias"}


def test_long_reports_fold_by_module_too() -> None:
    def layer() -> nn.Module:
        parts = {f"part{i}": nn.Linear(2, 2) for i in range(25)}
        return nn.ModuleDict({"attention": nn.ModuleDict(parts), "norm": nn.LayerNorm(2)})

    model = nn.ModuleDict({"layer": nn.ModuleList([layer() for _ in range(12)])})
    text = str(tk.plan_load(model, model))
    assert "layer.{0..11}.attention.part7.*" in text and "layer.{0..11}.norm.*" in text
    assert len(text.splitlines()) < 40
    small = str(
        tk.plan_load(
            nn.Sequential(*(nn.Linear(2, 3) for _ in range(4))), nn.Sequential(*(nn.Linear(2, 3) for _ in range(4)))
        )
    )
    assert "{0..3}.weight" in small and "4 x 6" in small


# -- coverage ---------------------------------------------------------------------------------------------------


def test_coverage_is_counted_for_each_module_and_can_be_required() -> None:
    a, b = two(5)
    before = state_bits(b)
    report = tk.plan_load(b, a)
    shares = report.coverage_by_module
    assert shares == {"conv": 1.0, "bn": 1.0, "fc": 1.0, "tied": 1.0, "head": 0.0, "scale": 1.0}
    assert "head 0.00 %" in str(report)
    assert tk.to_json(report)["coverage_by_module"]["head"] == 0.0
    for require, words in (
        (1.0, r"covers 76\.64 % of the model, and 100 % are required. Not covered: head\.weight, head\.bias"),
        ({"conv": 1.0, "head": 0.5}, r"covers 0\.00 % of head, and 50\.00 % are required"),
        ({("conv", "head.bias"): 1}, r"of conv, head\.bias"),
    ):
        with pytest.raises(IncompatibleCheckpointError, match=words) as caught:
            tk.load_into(b, a, allow="head", require=require)
        assert caught.value.report.coverage == report.coverage
    with pytest.raises(SelectorError, match="require='cnov' matches nothing") as wrong:
        tk.load_into(b, a, allow="head", require={"cnov": 1})
    assert "'conv'" in wrong.value.hint
    with pytest.raises(SelectorError, match="matches nothing"):
        tk.load_into(b, a, allow="head", require={"re:^head$": 1})
    for nonsense in (1.5, True, "all"):
        with pytest.raises(ValueError, match="is no share"):
            tk.load_into(b, a, allow="head", require=nonsense)
    assert state_bits(b) == before
    assert tk.load_into(b, a, allow="head", require={"conv": 1.0, "* but head": 1.0, "head": 0}).applied
    assert tk.load_into(nn.Identity(), a, allow="*", require=1.0).coverage == 1.0


# -- a plan as a file -------------------------------------------------------------------------------------------


def test_a_plan_is_written_edited_and_followed(tmp_path: Path) -> None:
    a, b = two(5)
    path = tmp_path / "plan.json"
    adapt = {"head": tk.adapters.rows({2: 4, 0: 1}), "bn.weight": "channels"}
    report = tk.plan_load(b, {f"net.{name}": value for name, value in a.state_dict().items()}, adapt=adapt)
    report.save_plan(path, allow=["scale", tk.Selector(["x.*", "y"])])
    document = json.loads(path.read_text())
    assert document["format"] == "torchkeep-plan" and document["allow"] == ["scale", "x.*", "y"]
    moves = {move["target"]: move for move in document["moves"]}
    assert moves["conv.weight"] == {"target": "conv.weight", "source": "net.conv.weight", "rule": "prefixes"}
    assert moves["head.bias"]["options"] == {"labels": [[2, 4], [0, 1]]} and moves["head.bias"]["adapter"] == "rows"
    assert len(path.read_text().splitlines()) == len(moves) + 9, "one move a line"

    moves["fc.weight"]["source"] = moves["tied.weight"]["source"] = "net.tied.weight"
    document["moves"] = [move for move in document["moves"] if move["target"] != "scale"]
    del document["unloaded"]
    path.write_text(json.dumps(document))
    state = {f"net.{name}": value.clone() for name, value in a.state_dict().items()}
    state["net.fc.weight"] += 1
    own = b.head.weight.detach().clone()
    with pytest.raises(IncompatibleCheckpointError, match=r"net\.fc\.weight"):
        tk.load_into(b, state, plan=path)
    scale = b.scale.clone().fill_(7)
    b.scale.fill_(7)
    report = tk.load_into(b, state, plan=path, allow=["net.fc.weight", "net.scale"])
    assert torch.equal(b.fc.weight, a.fc.weight) and torch.equal(b.scale, scale)
    assert torch.equal(b.head.weight[[4, 1]], a.head.weight[[2, 0]]) and torch.equal(b.head.weight[0], own[0])
    assert {move.rule for move in report.moves} == {"prefixes"} and report.adapted == ("head.weight", "head.bias")
    again = tmp_path / "again.json"
    report.save_plan(again)
    assert json.loads(again.read_text())["allow"] == ["net.fc.weight", "net.scale", "scale", "x.*", "y"]
    with pytest.raises(ValueError, match="leave rules= and match= out"):
        tk.load_into(b, state, plan=path, match="exact")


def test_a_plan_of_many_rules_comes_back_as_it_was(tmp_path: Path) -> None:
    a, b = two()
    state = {f"x.{i}": value for i, value in enumerate(a.state_dict().values())}
    report = tk.plan_load(b, state, match=InOrder())
    report.save_plan(tmp_path / "plan.json")
    again = tk.plan_load(b, state, plan=tmp_path / "plan.json")
    assert again.plan == report.plan
    again.save_plan(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


class Odd:
    name = "odd"
    options = {"a": 1}  # noqa: RUF012

    def fit(self, target: tk.TensorSpec, source: tk.TensorSpec) -> Any:
        from torchkeep.core.plan import Fit

        return None if target.shape == source.shape else Fit("odd")

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(current)


def test_names_with_odd_characters_and_adapters_of_ones_own_go_through_a_file(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self, *sizes: int) -> None:
            super().__init__()
            for name, size in zip(('a*b"\n', "ü é", "[x]{y}?"), sizes, strict=True):
                self._parameters[name] = nn.Parameter(torch.randn(size))

    a, b = Holder(2, 3, 4), Holder(2, 3, 5)
    adapt = {"re:x": Odd()}
    tk.plan_load(b, a, adapt=adapt).save_plan(tmp_path / "plan.json")
    with pytest.raises(LoadError, match="there is no adapter 'odd'") as caught:
        tk.load_into(b, a, plan=tmp_path / "plan.json")
    assert "moves[2]" in str(caught.value) and "instance" in caught.value.hint
    tk.load_into(b, a, plan=tmp_path / "plan.json", adapt=adapt)
    assert torch.equal(b._parameters['a*b"\n'], a._parameters['a*b"\n'])
    assert (b._parameters["[x]{y}?"] == 1).all()


def _move(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["moves"][2].update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_move(target="conv.bais"), r"moves\[2\]: the model has no 'conv.bais'.*nearest are 'conv.bias'"),
        (_move(source="conv.bais"), r"moves\[2\]: the source has no 'conv.bais'.*nearest are 'conv.bias'"),
        (_move(source=3), r"moves\[2\]: has no source"),
        (_move(target="conv.weight"), r"moves\[2\]: 'conv.weight' is the target of an earlier move too"),
        (_move(source="head.weight"), r"moves\[2\]: 'head.weight' does not fit 'conv.bias': shape \[3, 4\]"),
        (_move(adapter="row"), r"moves\[2\]: there is no adapter 'row'.*known are rows"),
        (_move(adapter=["rows"]), r"moves\[2\]: there is no adapter"),
        (_move(adapter="rows", options={"label": {}}), r"moves\[2\]: rows takes other options"),
        (_move(adapter="rows", options=[1]), r"moves\[2\]: rows takes other options"),
        (_move(adapter="rows", options={"labels": [[9, 0]]}), r"moves\[2\].*rows: row 9 of the source"),
        (_move(options={"a": 1}), r"moves\[2\]: there are options and no adapter"),
        (_move(confidence="high"), r"moves\[2\]: rule is a name and confidence a number"),
        (_move(sauce="x"), r"moves\[2\]: 'sauce' means nothing here.*'source'"),
        (lambda d: d.update(version=2), "plan of version 2, and this torchkeep reads 1"),
        (lambda d: d.update(format="x"), "is no plan"),
        (lambda d: d.update(alow=[]), "'alow' means nothing here"),
        (lambda d: d.update(allow=[3]), "allow is no list of names"),
        (lambda d: d.update(moves={}), "moves is no list of objects"),
        (lambda d: d["moves"].append(3), "moves is no list of objects"),
    ],
)
def test_a_wrong_plan_is_refused_with_file_and_entry(tmp_path: Path, change: Any, words: str) -> None:
    a, b = two()
    path = tmp_path / "plan.json"
    tk.plan_load(b, a).save_plan(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    before = state_bits(b)
    with pytest.raises(LoadError, match=f"(?s)plan.json: .*{words}"):
        tk.load_into(b, a, plan=path)
    assert state_bits(b) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"format": "torchkeep-plan"', b"[" * 10**5, b"null"])
def test_garbage_is_no_plan(tmp_path: Path, content: bytes) -> None:
    a, b = two()
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(LoadError, match=r"plan\.json: is no plan") as caught:
        tk.plan_load(b, a, plan=tmp_path / "plan.json")
    assert "save_plan" in caught.value.hint
    for missing in ("none.json", "."):
        with pytest.raises(LoadError, match=r"no such plan|cannot be read"):
            tk.plan_load(b, a, plan=tmp_path / missing)
    with pytest.raises(tk.errors.SaveError):
        tk.plan_load(b, a).save_plan(tmp_path / "no" / "plan.json")


# -- what has no values yet -------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Modules with and without an initialiser of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.LSTM(4, 4)
        self.data = Careless()
        self.token = nn.Parameter(torch.zeros(1, 4))
        self.register_buffer("angles", torch.arange(3.0), persistent=False)


class Careless(nn.Module):
    """Initialises through .data, as old code does, and forgets one of its two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.a.data.uniform_(1, 2)
        self.b.data[:2].fill_(3.0)


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_what_is_allowed_to_stay_unloaded_is_initialised_and_never_garbage(wrap: Any, device: Any) -> None:
    source = {"fc.weight": torch.eye(4)}
    with torch.device("meta"):
        model = Mixed()
    report = tk.load_into(wrap(model), source, allow="*", device=device)
    assert torch.equal(model.fc.weight, torch.eye(4))
    assert not model.fc.bias.is_meta and model.fc.bias.abs().max() <= 0.5
    assert torch.equal(model.norm.running_var, torch.ones(4)) and model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.weight, torch.ones(4)) and isinstance(model.norm.weight, nn.Parameter)
    assert model.attention.in_proj_weight.std() > 0 and not model.attention.in_proj_bias.any()
    assert model.rnn.weight_hh_l0.std() > 0 and model.rnn(torch.zeros(1, 4))[0].isfinite().all()
    assert bool(((model.data.a >= 1) & (model.data.a <= 2)).all())
    left = {name for name, tensor in tk.core.live.live_tensors(model).items() if tensor.is_meta}
    assert left == {"data.b", "token", "angles"}
    said = " ".join(report.notes)
    assert (
        "initialised by their modules" in said
        and "still on the meta device, without values: token, data.b, angles" in said
    )


def test_a_module_around_may_know_how_to_initialise() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.weight = nn.Parameter(torch.zeros(3))
            self.other = nn.Linear(3, 3)

        def reset_parameters(self) -> None:
            nn.init.constant_(self.inner.weight, 5)
            nn.init.constant_(self.other.weight, 5)

    with torch.device("meta"):
        model = Around()
    tk.load_into(model, {"other.weight": torch.zeros(3, 3), "other.bias": torch.zeros(3)}, allow="inner")
    assert (model.inner.weight == 5).all() and not model.other.weight.any()


def test_an_initialiser_that_fails_leaves_the_rest_of_the_world_alone() -> None:
    class Failing(nn.Linear):
        fail = False

        def reset_parameters(self) -> None:
            if Failing.fail:
                raise RuntimeError("not today")

    with torch.device("meta"):
        model = nn.Sequential(Failing(2, 2), nn.Linear(2, 2))
    Failing.fail = True
    report = tk.load_into(model, {"1.weight": torch.ones(2, 2)}, allow="*")
    assert model[0].weight.is_meta and not model[1].bias.is_meta
    assert "0.weight, 0.bias" in report.notes[-1]


def test_a_model_with_values_keeps_those_it_has() -> None:
    a, b = two(5)
    own = state_bits(b.head)
    report = tk.load_into(b, a, allow="head")
    assert state_bits(b.head) == own and not [note for note in report.notes if "initialised" in note]


# -- what comes out ---------------------------------------------------------------------------------------------


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNet()
        self.drop = nn.Dropout(0.5)

    def forward(self, images: torch.Tensor, *, twice: bool = False) -> dict[str, Any]:
        out = self.drop(self.net(images))
        random.random(), np.random.rand(), torch.rand(1)
        return {"logits": out, "more": [(out * 2, 3, None, "text"), out.argmax(1)], "twice": twice}


def test_outputs_are_compared_and_nothing_is_moved_by_it() -> None:
    torch.manual_seed(0)
    a, b = Nested(), Nested()
    b.train()
    b.net.bn.eval()
    modes = [module.training for module in b.modules()]
    x = torch.randn(4, 1, 5, 5)
    a.train()(x)  # its statistics are no longer the first ones
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    report = tk.load_into(b, a, check=x, reference=a)
    assert report.checked == 0.0 and "at most 0 from the reference" in str(report)
    assert [module.training for module in b.modules()] == modes and a.training
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    assert np.random.get_state()[1].tolist() == drawn[2]
    assert all(parameter.grad is None for parameter in b.parameters())
    expected = a.eval()({"images": x}["images"], twice=True)
    assert tk.load_into(b, a, check={"images": x, "twice": True}, reference=expected).checked == 0.0
    assert tk.load_into(b, a, check=(x,), reference=a).checked == 0.0
    assert tk.load_into(b, a).checked is None


def test_outputs_that_differ_are_an_error_that_says_where() -> None:
    torch.manual_seed(0)
    a, b = Nested().eval(), Nested().eval()
    x = torch.randn(4, 1, 5, 5)
    with torch.no_grad():
        right = a(x)
    wrong = right | {"more": [(right["logits"] * 2 + 0.25, 3, None, "text"), right["more"][1]]}
    with pytest.raises(
        OutputsDifferError, match=r"differ from the reference by 0\.25 at most.*first in \['more'\]\[0\]\[0\]"
    ) as caught:
        tk.load_into(b, a, check=x, reference=wrong)
    assert caught.value.difference == pytest.approx(0.25) and "holds the new values" in caught.value.hint
    assert state_bits(a) == state_bits(b)
    assert tk.load_into(b, a, check=x, reference=wrong, tolerance=0.3).checked == pytest.approx(0.25)
    for other in (
        {"logits": right["logits"]},
        right["logits"],
        right | {"logits": right["logits"][:2]},
        right | {"more": []},
    ):
        with pytest.raises(OutputsDifferError) as caught:
            tk.load_into(b, a, check=x, reference=other)
        assert caught.value.difference == float("inf")
    nan = right | {"logits": right["logits"] * float("nan")}
    with pytest.raises(OutputsDifferError):
        tk.load_into(b, a, check=x, reference=nan)
    with pytest.raises(LoadError, match="reference cannot be run"):
        tk.load_into(b, a, check=torch.randn(3), reference=a)
    with pytest.raises(OutputsDifferError, match="cannot be run on check"):
        tk.load_into(b, a, check=torch.randn(3), reference=right)
    for half in ({"check": x}, {"reference": a}):
        with pytest.raises(ValueError, match="give both"):
            tk.load_into(b, a, **half)


# -- the command ------------------------------------------------------------------------------------------------


def test_a_model_that_writes_into_its_input_is_compared_all_the_same() -> None:
    torch.manual_seed(0)
    one, two = (nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)) for _ in range(2))
    x = torch.full((1, 4), -1.0)

    def doubled(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].mul_(2).add_(3)

    for model in (one, two):
        model.register_forward_pre_hook(doubled)
    assert tk.load_into(two, one, check=x, reference=one).checked == 0.0
    assert torch.equal(x, torch.full((1, 4), -1.0))


@pytest.mark.parametrize("tolerance", [float("nan"), -1.0])
def test_a_tolerance_that_is_none_is_refused_before_anything_is_touched(tolerance: float) -> None:
    model = nn.Linear(2, 2)
    before = state_bits(model)
    with pytest.raises(ValueError, match="tolerance is"):
        tk.load_into(model, nn.Linear(2, 2), check=torch.ones(1, 2), reference=torch.zeros(1, 2), tolerance=tolerance)
    assert state_bits(model) == before


def test_the_command_line_plans_requires_and_adapts(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from torchkeep.cli import app

    def call(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(
            "sys.argv", ["torchkeep", "load", str(tmp_path / "a.pth"), "--into", FACTORY, *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as left:
            app.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out + said.err

    torch.save(TinyNet(5).state_dict(), tmp_path / "a.pth")
    plan = tmp_path / "plan.json"
    assert call()[0] == 21
    code, out = call("--adapt", "head=slicing", "--require", "0.9", "--require", "conv=1", "--save-plan", plan)
    assert code == 0 and "slicing: [3, 4] of [5, 4]" in out
    assert call("--plan", plan)[0] == 0
    code, out = call("--plan", plan, "--dry-run", "--json")
    assert code == 0 and json.loads(out)["adapted"] == ["head.weight", "head.bias"]
    code, out = call("--allow", "head", "--require", "head=0.5", "--dry-run")
    assert code == 21 and "50.00 % are required" in out
    assert call("--match", "exact", "--allow", "head")[0] == 0
    for wrong in (
        ("--adapt", "head"),
        ("--adapt", "head=row"),
        ("--require", "much"),
        ("--require", "2"),
        ("--plan", plan, "--match", "exact"),
    ):
        assert call(*wrong)[0] == 2, wrong
    plan.write_text("{}")
    code, out = call("--plan", plan)
    assert code == LoadError.exit_code and "plan.json: is no plan" in out
    assert call("--save-plan", tmp_path / "other.json", "--dry-run", "--allow", "head")[0] == 0
    assert json.loads((tmp_path / "other.json").read_text())["allow"] == ["head"]


def test_a_hint_proposes_what_is_not_in_force_and_what_would_adapt(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self, channels: int, places: int) -> None:
            super().__init__()
            self.stem = nn.Conv2d(channels, 4, 3)
            self.pos_embed = nn.Parameter(torch.randn(1, places, 4))

    old, new = Net(3, 17), Net(1, 10)
    with pytest.raises(IncompatibleCheckpointError) as refused:
        tk.load_into(new, old.state_dict())
    hint = str(refused.value.hint)
    assert "adapt={'pos_embed': tk.adapters.positions(prefix=1), 'stem.weight': 'channels'}" in hint
    assert "allow=" in hint
    found = re.search(r"adapt=(\{.*?\})", hint)
    assert found is not None
    adapt = eval(found[1], {"tk": tk})  # noqa: S307 - torchkeep's own words
    assert tk.load_into(new, old.state_dict(), adapt=adapt).coverage == 1
    with pytest.raises(IncompatibleCheckpointError) as refused:
        tk.load_into(nn.ModuleDict({"x": nn.Linear(2, 2)}), {"a.weight": torch.randn(2, 2)}, match="structural")
    assert "structural" not in str(refused.value.hint) and "allow=['x.bias']" in str(refused.value.hint)


def test_which_of_several_models_in_a_file_was_taken_is_said(tmp_path: Path) -> None:
    one, other, model = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"state_dict": one.state_dict(), "state_dict_ema": other.state_dict()}, tmp_path / "both.pth")
    report = tk.load_into(model, tmp_path / "both.pth")
    assert torch.equal(model.weight, one.weight)
    assert any("'state_dict' of" in note and "'state_dict_ema'" in note for note in report.notes)
    report = tk.load_into(model, (tmp_path / "both.pth", "state_dict_ema"))
    assert torch.equal(model.weight, other.weight) and report.notes == ()
    torch.save({"state_dict": one.state_dict(), "optimizer": {}}, tmp_path / "one.pth")
    assert tk.load_into(model, tmp_path / "one.pth").notes == ()
