"""From a model and a data set to a plan: plans as text, plans on models, the textbook, and the whole way."""

from __future__ import annotations

import copy
import json
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.advising.planning import augmentation_for, candidate_for
from torchkeep.advising.scenario import Size, scenario_of
from torchkeep.cli.app import main
from torchkeep.core.transfer import Examples, Recipe
from torchkeep.core.transfer_plan import SCENARIOS, Step, TransferPlan

HEAD = tk.FreezeSpec([tk.Phase("head")])
THEN_ALL = tk.FreezeSpec([tk.Phase("head", epochs=2), tk.Phase("*", rates={"head": 1.0, "*": "lr*0.3"})])


def a_plan(**changed: Any) -> TransferPlan:
    given: dict[str, Any] = {
        "scenario": "feature-extractor", "name": "lp-ft", "freeze": THEN_ALL, "recipe": Recipe(epochs=6),
        "surgery": [Step("resize_head", "head", classes=5)], "why": ["it is small: 12 examples"],
    }  # fmt: skip
    return TransferPlan(**given | changed)


def bits(model: nn.Module) -> dict[str, Any]:
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"values": values, "flags": flags, "modes": [module.training for module in model.modules()]}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    alike = all(torch.equal(value, other["values"][name]) for name, value in one["values"].items())
    return alike and one["flags"] == other["flags"] and one["modes"] == other["modes"]


# -- plans as text --------------------------------------------------------------------------------------------


def test_a_plan_is_the_same_after_yaml(tmp_path: Path) -> None:
    plan = a_plan(start="scratch", augmentation=["shift: by 'ü'\n# no comment"], budget=["1 s"])
    assert TransferPlan.from_yaml(plan.to_yaml()) == plan
    tk.write_plan(plan, tmp_path / "plan.yaml")
    assert tk.read_plan(tmp_path / "plan.yaml") == plan
    assert (tmp_path / "plan.yaml").read_text().startswith("# torchkeep transfer plan\nscenario: feature-extractor\n")


def test_a_plan_prints_what_it_does() -> None:
    text = str(a_plan(augmentation=["shift them", "scale them"]))
    for part in (
        "lp-ft: train 'head', then everything, from the pretrained weights", "replace the head and use the rest",
        "resize_head head classes=5", "6 epochs, batches of 32, AdamW at 0.001", "shift them", "scale them", "lr*0.3",
        "it is small: 12 examples",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("scenario: textbook", "`$.scenario`"),
        ("start: nowhere", "`$.start`"),
        ("surgery: [{verb: resize_head}]", "needs classes, a whole number above 0, and has None - at `$.surgery[0]`"),
        ("surgery: [{verb: resize_head, classes: 0}]", "has 0 - at `$.surgery[0]`"),
        ("surgery: [{verb: resize_head, classes: 3, channels: 1}]", "takes no channels - at `$.surgery[0]`"),
        ("surgery: [{verb: amputate}]", "`$.surgery[0].verb`"),
        ("surgery: [{verb: reinitialise, nmae: head}]", "unknown field `nmae` - at `$.surgery[0]`"),
        ("recipe: {epochs: 0}", "recipe.epochs is 0"),
        ("recipe: {lr: .nan}", "recipe.lr is nan"),
        ("recipe: {batch: -1}", "recipe.batch is -1"),
        ("recipe: {weight_decay: -0.1}", "recipe.weight_decay is -0.1"),
        ("freeze: {phases: [{train: head, epochs: 20}, {train: '*'}]}", "begins in epoch 20, from 0, and there are 20"),
        ("freeze: {phases: []}", "phases is empty; a spec has at least one - at `$.freeze`"),
        ("freeze: {phases: [{train: head, rates: {head: -1}}]}", "`$.freeze.phases[0]`"),
        ("start: scratch", "fresh weights would never be trained"),
        ("sceanrio: scratch", "unknown field `sceanrio`"),
    ],
)
def test_nonsense_is_refused_with_its_place(tmp_path: Path, line: str, said: str) -> None:
    lines = {"scenario": "full-text", "freeze": "{phases: [{train: head}]}"} | {"scenario": "fine-tune-all"}
    key, _, value = line.partition(": ")
    path = tmp_path / "plan.yaml"
    path.write_text("".join(f"{name}: {text}\n" for name, text in (lines | {key: value}).items()))
    with pytest.raises(tk.errors.SelectorError) as caught:
        tk.read_plan(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_what_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tk.errors.SelectorError, match="is no YAML"):
        TransferPlan.from_yaml("scenario: [")
    with pytest.raises(tk.errors.CheckpointNotFoundError):
        tk.read_plan(tmp_path / "none.yaml")


# -- plans on models ------------------------------------------------------------------------------------------


def test_a_plan_is_applied_and_stays_with_the_model() -> None:
    model, plan = TinyNet(), a_plan()
    before = model.conv.weight.clone()
    report = tk.apply(plan, model)
    assert model.head.out_features == 5 and torch.equal(model.conv.weight, before)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["head.weight", "head.bias"]
    assert not model.train().bn.training
    assert report.trainable == 25 and "resize_head" in str(report)
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.DataParallel(model)):
        assert tk.plan_of(one) == plan
    assert tk.plan_of(TinyNet()) is None
    assert tk.enter_phase(model, 2) is not None and model.conv.weight.requires_grad


def test_fresh_weights_are_decided_by_the_seed_and_leave_the_generator() -> None:
    plan = a_plan(start="scratch", freeze=tk.FreezeSpec([tk.Phase("*")]))
    one, two, three = (copy.deepcopy(model) for model in [TinyNet()] * 3)
    state = torch.get_rng_state()
    tk.apply(plan, one, seed=7)
    tk.apply(plan, two, seed=7)
    tk.apply(plan, three, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(bits(one), bits(two)) and not torch.equal(one.conv.weight, three.conv.weight)
    assert one.tied.weight is one.fc.weight and not torch.equal(one.conv.weight, TinyNet().conv.weight)


@pytest.mark.parametrize(
    "changed",
    [
        {"surgery": [Step("resize_head", "head", classes=5), Step("resize_head", "nowhere", classes=5)]},
        {"surgery": [Step("reinitialise", "head"), Step("adapt_input", "conv", channels=3), Step("adapt_input", "fc", channels=1)]},
        {"freeze": tk.FreezeSpec([tk.Phase("*", epochs=1), tk.Phase("nowhere")]), "start": "scratch"},
        {"freeze": tk.FreezeSpec([tk.Phase("*", rates={"nowhere": 0.1})]), "start": "scratch"},
    ],
)  # fmt: skip
def test_what_cannot_be_applied_leaves_the_model_as_it_was(changed: dict[str, Any]) -> None:
    model = TinyNet().eval()
    model.conv.weight.requires_grad = False
    tk.freeze(model, "bn")
    before, held = bits(model), {name: id(one) for name, one in model.named_modules()}
    with pytest.raises((tk.errors.SurgeryError, tk.errors.SelectorError)):
        tk.apply(a_plan(**changed), model)
    assert same(before, bits(model)) and held == {name: id(one) for name, one in model.named_modules()}
    assert tk.surgery.history(model) == () and tk.freeze_state(model) is None and tk.plan_of(model) is None


def test_a_second_plan_is_refused() -> None:
    model = TinyNet()
    tk.apply(a_plan(), model)
    with pytest.raises(tk.errors.SurgeryError, match="already"):
        tk.apply(a_plan(), model)
    with pytest.raises(tk.errors.SurgeryError, match="not a plan"):
        tk.apply(model, a_plan())  # type: ignore[arg-type]


def test_odd_models_take_plans() -> None:
    odd = nn.ModuleDict({"a, b": nn.Linear(3, 3), "first 2": nn.Linear(3, 2)}).bfloat16()
    before = odd["a, b"].weight.clone()
    steps = [Step("resize_head", classes=4), Step("reinitialise", "first 2")]
    tk.apply(a_plan(surgery=steps, freeze=tk.FreezeSpec([tk.Phase("re:first")])), odd)
    assert torch.equal(odd["a, b"].weight, before) and odd["first 2"].out_features == 4
    assert odd["first 2"].weight.dtype is torch.bfloat16 and not odd["a, b"].weight.requires_grad
    with torch.device("meta"):
        empty = TinyNet()
    tk.apply(a_plan(), empty)
    assert empty.head.weight.shape == (5, 4) and empty.head.weight.is_meta


def test_files_and_snapshots_keep_the_plan(tmp_path: Path) -> None:
    model, plan = TinyNet(), a_plan()
    tk.apply(plan, model)
    tk.save(model, tmp_path / "tiny.safetensors")
    assert tk.plan_of(tmp_path / "tiny.safetensors") == plan
    again = tk.load_model(tmp_path / "tiny.safetensors", classes={"models.TinyNet": TinyNet})
    assert tk.plan_of(again) == plan
    with tk.Run(tmp_path / "run") as run:
        run.resume(model=model)
        run.save(0)
    assert tk.plan_of(tmp_path / "run") == plan == tk.plan_of(tk.Run(tmp_path / "run"))


@pytest.mark.parametrize("how", ["bare", "by hand", "replayed", "applied"])
def test_a_run_goes_on_with_its_plan(tmp_path: Path, how: str) -> None:
    plan, first = a_plan(), TinyNet()
    tk.apply(plan, first)
    with tk.Run(tmp_path) as run:
        run.resume(model=first)
        run.save(0)
    model = TinyNet(5) if how == "bare" else TinyNet()
    if how == "by hand":
        tk.surgery.resize_head(model, 5)
    elif how == "replayed":
        tk.surgery.replay(model, tk.Run(tmp_path).open())
    elif how == "applied":
        tk.apply(plan, model)
    with tk.Run(tmp_path) as run:
        assert run.resume(model=model) == 1
        assert tk.plan_of(model) == plan and torch.equal(model.head.weight, first.head.weight)
        run.save(1)
    assert tk.plan_of(tmp_path) == plan


# -- the textbook ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "verdict", "scenario", "candidate"),
    [
        (Size(100, 10, 50), "similar", "feature-extractor", "head"),
        (Size(100, 10, 50), "different", "freeze-first", "stage 2"),
        (Size(5000, 500, 50), "different", "from-scratch", "scratch"),
        (Size(5000, 500, 50), "similar", "fine-tune-all", "full"),
        (Size(5000, 500, 50), "ambiguous", "ambiguous", "lp-ft"),
        (Size(100, 10, 50), "ambiguous", "ambiguous", "lp-ft"),
    ],
)
def test_the_textbook_has_four_cases(size: Size, verdict: str, scenario: str, candidate: str) -> None:
    found = scenario_of(size, verdict)
    assert found == scenario and found in SCENARIOS
    assert candidate_for(found, digits_net()).name == candidate


@pytest.mark.parametrize(
    ("counts", "parameters", "small"),
    [
        ([50] * 4, 10_000 * 200, False), ([49] * 4, 1, True), ([50] * 4, 10_000 * 200 + 1, True),
        ([1000, 10, 10], 1, True), ([], 1, True),
    ],
)  # fmt: skip
def test_small_is_by_class_and_by_parameter(counts: list[int], parameters: int, small: bool) -> None:
    assert Size.of(counts, parameters).small is small
    assert str(Size.of(counts, parameters)).startswith("small" if small else "large")


def test_the_frozen_half_lies_below() -> None:
    spec = candidate_for("freeze-first", digits_net()).freeze_spec(8)
    model = digits_net()
    tk.freeze(model, spec)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert flags[0] is False and flags[-1] is True and flags == sorted(flags)


def test_a_model_that_is_all_head_is_trained_whole() -> None:
    assert candidate_for("feature-extractor", nn.Sequential(nn.Linear(3, 2))).name == "full"


def test_hints_are_for_what_is_there() -> None:
    words = Examples(torch.zeros(9, 4, dtype=torch.int64), torch.tensor([0] * 7 + [1] * 2), ("a", "b"))
    assert augmentation_for(words, True) == [hint for hint in augmentation_for(words, True) if "4 times" in hint] != []
    images = Examples(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1] * 2), ("a", "b"))
    assert "shift" in augmentation_for(images, True)[0] and "shift" not in augmentation_for(images, False)[0]


# -- the whole way --------------------------------------------------------------------------------------------


def digits_net(classes: int = 5, channels: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 32), nn.ReLU(),
        nn.Linear(32, classes),
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> Examples:
    return tk.read_examples("sklearn:digits")


@pytest.fixture(scope="module")
def weights(digits: Examples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the digits from 0 to 4."""
    low = digits.take((digits.labels < 5).nonzero().flatten())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = digits_net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(3):
            for inputs, labels in low.batches(32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "low.safetensors"
    tk.save(model, path, about={"classes": list("01234")})
    return path


@pytest.fixture(scope="module")
def high(digits: Examples) -> Examples:
    """The digits from 5 to 9, 24 of each."""
    places = torch.cat([(digits.labels == label).nonzero().flatten()[:24] for label in range(5, 10)])
    return Examples(digits.inputs[places], digits.labels[places] - 5, tuple("56789"), "high digits")


@pytest.fixture(scope="module")
def measured(weights: Path, high: Examples) -> tk.Advice:
    return tk.advise(digits_net, high, weights=weights, sweep=True, seeds=2, epochs=4)


def test_without_a_sweep_it_is_the_textbook(weights: Path, high: Examples) -> None:
    advice = tk.advise(digits_net, high, weights=weights)
    assert advice.sweep is None and advice.scenario == advice.plan.scenario
    assert advice.scenario == scenario_of(Size.of(high.counts, 12_000), advice.similarity.verdict)
    text = str(advice)
    assert "small: 24 examples in the median class" in text and "nothing was trained" in text
    assert f"tk.load_into(model, {str(weights)!r})" in text
    assert advice.facts.overlap == {}  # the file names the old classes
    with pytest.raises(ValueError, match="sweep=True"):
        tk.advise(digits_net, high, folder="trials")
    with pytest.raises(tk.errors.DataError, match="nothing was measured"):
        tk.plot(advice, weights.with_suffix(".png"))


def test_advice_leaves_the_model_and_the_generator(weights: Path, high: Examples) -> None:
    model = nn.DataParallel(digits_net(classes=7)).eval()
    tk.freeze(model, "0")
    before, state = bits(model), torch.get_rng_state()
    one = tk.advise(model, high)
    assert same(before, bits(model)) and torch.equal(torch.get_rng_state(), state)
    assert tk.to_json(one) == tk.to_json(tk.advise(model, high))


def test_json_is_what_other_programs_rely_on(measured: tk.Advice) -> None:
    said = json.loads(json.dumps(tk.to_json(measured)))
    assert list(said) == ["facts", "similarity", "scenario", "plan", "sweep"]
    assert list(said["similarity"]) == ["verdict", "signals"] and said["similarity"]["signals"]
    assert list(said["sweep"]) == ["candidates", "chosen"]
    assert all(list(one) == ["name", "score", "stderr", "seconds"] for one in said["sweep"]["candidates"])
    assert said["sweep"]["chosen"] in {one["name"] for one in said["sweep"]["candidates"]}
    assert said["scenario"] in SCENARIOS and TransferPlan.from_yaml(json.dumps(said["plan"])) == measured.plan


def test_the_measured_plan_is_the_chosen_candidate(measured: tk.Advice) -> None:
    assert measured.sweep is not None
    assert measured.plan.name == measured.sweep.chosen and measured.plan.start == measured.sweep.plan.start
    assert measured.plan.freeze == measured.sweep.plan.freeze_spec(4) and measured.plan.recipe.epochs == 4
    assert any(line.startswith("measured: ") for line in measured.plan.why)
    zones = {one.zone for one in measured.sweep.candidates if one.gain is not None}
    text = str(measured.table())
    assert all(f"transfer {zone}" in text for zone in ("helps", "does not matter", "hurts")) and zones


def test_pictures(measured: tk.Advice, tmp_path: Path) -> None:
    drawn = tk.plot(measured, tmp_path / "sweep.png")
    left, right = drawn.axes
    assert len(left.containers) == len(measured.sweep.candidates) == len(right.patches)
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    tk.plot(measured, tmp_path / "sweep.html")
    page = (tmp_path / "sweep.html").read_text()
    assert (
        "<svg" in page
        and "tk.apply(plan, model)" in page
        and not any(part in page for part in ("<script", "<link", " src="))
    )
    with pytest.raises(tk.errors.SaveError):
        tk.plot(measured, tmp_path / "sweep.txt")


def test_the_lines_to_go_on_run(
    measured: tk.Advice, high: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train_one_epoch(model: nn.Module, optimizer: Any) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(high.inputs), high.labels).backward()
        optimizer.step()

    space = {"tk": tk, "torch": torch, "make_model": digits_net, "advice": measured, "train_one_epoch": train_one_epoch}
    exec("\n".join(measured.go_on()), space)  # noqa: S102 - our own lines
    assert tk.plan_of("runs/transfer") == measured.plan == tk.plan_of(space["model"])
    assert len(tk.Run("runs/transfer").snapshots) == 4


def test_the_stem_is_adapted_to_the_channels(high: Examples) -> None:
    advice = tk.advise(lambda: digits_net(channels=3), high)
    assert str(advice.plan.surgery[0]) == "adapt_input 0 channels=1"
    model = digits_net(channels=3)
    tk.apply(advice.plan, model)
    assert model(high.inputs[:2]).shape == (2, 5)


def vit() -> nn.Module:
    class Vit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(1, 16, 2, 2)
            self.place = nn.Parameter(torch.zeros(16, 16))
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
            self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(16, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.patch(images).flatten(2).transpose(1, 2) + self.place).mean(1))

    return Vit()


def encoder() -> nn.Module:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(50, 16)
            self.body = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.head = nn.Linear(16, 2)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.words(input_ids)).mean(1))

    return Encoder()


def words() -> Examples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    tokens = torch.randint(0, 15, (60, 6), generator=generator) + 15 * labels[:, None]
    return Examples({"input_ids": tokens}, labels, ("a", "b", "c"), "words")


@pytest.mark.parametrize("what", ["vit", "text", "table"])
def test_what_is_no_conv_net_goes_the_same_way(what: str, high: Examples) -> None:
    makers: dict[str, tuple[Callable[[], nn.Module], Any]] = {
        "vit": (vit, high),
        "text": (encoder, words()),
        "table": (lambda: nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 4)), "sklearn:wine"),
    }
    make, data = makers[what]
    advice = tk.advise(make, data)
    report = tk.apply(advice.plan, make())
    assert report.trainable and advice.plan.freeze.phases


# -- what cannot be -------------------------------------------------------------------------------------------


def broken(high: Examples, how: str) -> Any:
    inputs, labels = high.inputs.clone(), high.labels.clone()
    if how == "NaN":
        inputs[3, 0, 2, 2] = float("nan")
    elif how == "one class":
        labels[:] = 0
        return inputs, labels
    elif how == "a single example":
        keep = torch.cat([(labels != 4).nonzero().flatten(), (labels == 4).nonzero().flatten()[:1]])
        return inputs[keep], labels[keep]
    elif how == "labels":
        labels[0] = -1
    elif how == "empty":
        return inputs[:0], labels[:0]
    elif how == "shape":
        inputs = inputs.flatten(1)
    elif how == "channels":
        inputs = inputs.repeat(1, 2, 1, 1)
    return inputs, labels


@pytest.mark.parametrize("how", ["NaN", "one class", "a single example", "labels", "empty", "shape", "channels"])
def test_bad_input_ends_with_55_before_any_training(
    how: str, high: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, labels = broken(high, how)
    np.savez("bad.npz", x=inputs.numpy(), y=labels.numpy())
    never = mock.Mock(side_effect=AssertionError("trained"))
    with mock.patch("torchkeep.trials.training.fit", never), pytest.raises(SystemExit) as left:
        command("--model", "test_advising:three_channels", "--data", "bad.npz", "--sweep")
    assert left.value.code == 55 and "DataError" in capsys.readouterr().err


def three_channels() -> nn.Module:
    return digits_net(channels=3)


def test_weights_that_do_not_fit_are_refused(weights: Path, high: Examples) -> None:
    with pytest.raises(tk.errors.IncompatibleCheckpointError):
        tk.advise(lambda: digits_net(classes=7), high, weights=weights)
    with pytest.raises(tk.errors.DataError, match="not a model"):
        tk.advise(lambda: 3, high)  # type: ignore[arg-type,return-value]


# -- the command line -----------------------------------------------------------------------------------------


def command(*words: str) -> None:
    with mock.patch("sys.argv", ["torchkeep", "advise", *words]), mock.patch("sys.path", list(sys.path)):
        main()


def test_the_command_answers_and_writes(
    weights: Path, high: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("high.npz", x=high.inputs.numpy(), y=high.labels.numpy())
    Path("advised_net.py").write_text("from test_advising import digits_net\n\ndef make():\n    return digits_net()\n")
    given = ["--model", "advised_net:make", "--weights", str(weights), "--data", "high.npz"]
    with pytest.raises(SystemExit) as left:
        command(*given, "--plan", "plan.yaml", "--html", "report.html")
    out = capsys.readouterr().out
    assert left.value.code == 0 and "to measure:\n  torchkeep advise --model" in out and "--sweep" in out
    assert "import advised_net" in out and "tk.read_plan('plan.yaml')" in out
    assert "<h2>To go on</h2>" in Path("report.html").read_text()
    with pytest.raises(SystemExit):
        command(*given, "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["sweep"] is None
    assert TransferPlan.from_yaml(json.dumps(said["plan"])) == tk.read_plan("plan.yaml")


@pytest.mark.parametrize("words", [["--plot", "f.png"], ["--folder", "trials"], ["--model", "nowhere"]])
def test_a_wrong_command_line_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command("--model", "test_advising:digits_net", "--data", "sklearn:iris", *words)
    assert left.value.code == 2 and words[0] in capsys.readouterr().err


def test_what_the_code_of_the_user_prints_is_not_in_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "loud_net.py").write_text(
        "from torch import nn\nprint('loud')\ndef make():\n    print('louder')\n    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))\n"
    )
    given = ["--model", "far/loud_net.py:make", "--data", "sklearn:iris"]
    with pytest.raises(SystemExit):
        command(*given, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["sweep"] is None and "louder" in err
    with pytest.raises(SystemExit):
        command(*given)
    lines = capsys.readouterr().out.partition("to go on:")[2].splitlines()
    made: dict[str, Any] = {}
    with mock.patch("sys.path", list(sys.path)):
        exec("\n".join(line.strip() for line in lines[1:5] if "read_plan" not in line), made)  # noqa: S102 - our own lines
    assert isinstance(made["model"], nn.Sequential)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--model", "broken.py:make"], 2), (["--html", "a.txt"], 2), (["--sweep", "--plot", "a.gif"], 2),
        (["--plan", "no/plan.yaml"], 30), (["--html", "no/page.html"], 30), (["--data", "broken:x"], 55),
    ],
)  # fmt: skip
def test_what_cannot_end_well_is_not_begun(
    words: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(SystemExit) as left, mock.patch("torchkeep.sensing.similarity", side_effect=AssertionError):
        command("--model", "test_advising:digits_net", "--data", "sklearn:iris", *words)
    assert left.value.code == code


def test_a_function_makes_the_same_model_each_time_and_leaves_the_generators(high: Examples) -> None:
    def make() -> nn.Module:
        random.random()
        np.random.rand()
        return digits_net()

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first, again = (tk.advise(make, high) for _ in range(2))
    assert str(first) == str(again)
    assert before[0].equal(torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_old_labels_come_by_number_too(high: Examples) -> None:
    by_number = {number: f"digit {number}" for number in range(5)}
    named = Examples(high.inputs, high.labels, tuple(f"digit {label}" for label in range(len(high.classes))))
    model = digits_net()
    first, again = (tk.advise(model, named, old_labels=old) for old in (by_number, list(by_number.values())))
    assert first.facts.overlap == again.facts.overlap and str(first.similarity) == str(again.similarity)


def test_names_are_no_formulas_in_a_picture(high: Examples, tmp_path: Path) -> None:
    ways = [tk.Candidate("$x^{$", [tk.Stage("*")]), tk.Candidate("<b>", [tk.Stage("*")], start="scratch")]
    advice = tk.advise(digits_net(), high, sweep=True, epochs=1, seeds=1, candidates=ways)
    tk.plot(advice, tmp_path / "a.png")
    tk.plot(advice, tmp_path / "a.html")
    assert "<b>" not in (tmp_path / "a.html").read_text()


def test_what_was_hardly_trained_is_no_verdict(weights: Path, high: Examples) -> None:
    lines: list[str] = []
    advice = tk.advise(digits_net, high, weights=weights, sweep=True, seeds=1, epochs=1, lr=1e-6, progress=lines.append)
    assert advice.sweep is not None and advice.plan.recipe.lr == 1e-6
    assert advice.sweep["head"].zone == "undertrained"
    assert any("too few or too slow" in note for note in advice.sweep.notes)
    assert "undertrained" in str(advice.table())
    assert len(lines) == sum(one.trials for one in advice.sweep.candidates) and lines[0].startswith("head, seed 0: ")


def test_weights_that_were_not_given_are_said(high: Examples) -> None:
    assert any("no weights were given" in one for one in tk.advise(digits_net, high).plan.why)
