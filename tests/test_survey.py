"""A survey tells what is there, estimates whether more data helps with an honest error, and disturbs nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.core.drawing import in_shares
from torchkeep.core.probing import ridge_scores
from torchkeep.core.survey import HELPS, LITTLE, OPEN, judged
from torchkeep.errors import DataError, SurgeryError


def small(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, classes))


def clouds(count: int, apart: float, seed: int = 0, classes: int = 4, width: int = 12) -> tk.Examples:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=draw)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)) * apart
    inputs = centres[labels] + torch.randn(count, width, generator=draw)
    return tk.Examples(inputs, labels, tuple("abcdefgh"[:classes]), "clouds")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> tk.Survey:
    examples = tk.read_examples("sklearn:digits", limit=200)
    return tk.survey(small(), examples, old_labels=[str(number) for number in range(10)])


def test_the_facts_of_a_data_set_beside_a_model(digits: tk.Survey) -> None:
    assert digits.examples == 200 == sum(digits.counts) and len(digits.classes) == 10
    assert digits.balance == min(digits.counts) / max(digits.counts) > 0.9
    assert digits.input == "float32[1, 8, 8]" and digits.channels == 1
    assert digits.stem is not None and (digits.stem.name, digits.stem.what, digits.stem.count) == ("0", "channels", 1)
    assert (digits.head, digits.outputs, digits.misfit) == ("4", 10, "")
    assert digits.parameters == 8 * 9 + 8 + 16 + 2890 and digits.parameters_per_example == digits.parameters / 200
    assert digits.overlap == {str(number): number for number in range(10)}
    assert digits.duplicates == 0 and digits.same == ()


def test_a_table_text_and_json(digits: tk.Survey) -> None:
    text = str(digits)
    for part in (
        "200 in 10 classes",
        "Conv2d of 1 channel",
        "10 of 10 classes are among them",
        "probe's accuracy",
        "40 ",
    ):
        assert part in text
    assert len(digits.table().rows) == 3
    facts = json.loads(json.dumps(tk.to_json(digits)))
    assert facts["growth"]["points"][2]["examples"] == 160 and facts["stem"]["kind"] == "Conv2d"
    assert facts["overlap"]["3"] == 3 and facts["parameters_per_example"] > 0


def test_the_same_call_gives_the_same_and_disturbs_nothing() -> None:
    model = TinyNet(classes=4).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examples = tk.Examples(torch.rand(60, 1, 5, 5), torch.arange(60) % 4, tuple("abcd"))
    state = torch.get_rng_state()
    first = tk.survey(model, examples)
    torch.manual_seed(5)
    assert tk.to_json(tk.survey(nn.DataParallel(model), examples)) == tk.to_json(first)
    torch.set_rng_state(state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()) and model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert first.parameters == sum(parameter.numel() for parameter in model.parameters()), "tied weights count once"


def test_it_reads_what_is_no_examples_yet() -> None:
    inputs = torch.rand(30, 5)
    seen = tk.survey(nn.Linear(5, 3), (inputs, torch.arange(30) % 3))
    assert seen.examples == 30 and seen.head == "" and seen.outputs == 3
    assert seen.growth is not None and "(itself)" in str(seen)


def test_duplicates_and_contradictions_are_counted_and_kept_out_of_the_probe() -> None:
    examples = clouds(40, 5.0)
    again = examples.take(torch.tensor([*range(40), 3, 3, 7]))
    labels = again.labels.clone()
    labels[42] = (labels[7] + 1) % 4
    doubled = tk.Examples(again.inputs, labels, again.classes)
    seen = tk.survey(nn.Linear(12, 4), doubled)
    assert (seen.duplicates, seen.contradictions) == (3, 1)
    assert seen.same == ((7, 42), (3, 40, 41))
    assert "1 groups of equals differ in label" in str(seen)
    assert seen.growth == tk.survey(nn.Linear(12, 4), examples).growth


def test_equal_tokens_under_another_mask_are_no_duplicates() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 6), nn.Linear(6, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.head((self.words(input_ids) * attention_mask[..., None]).sum(dim=1))

    ids = torch.arange(30).repeat(2)[:, None].expand(60, 4).contiguous()
    mask = torch.ones_like(ids)
    mask[30:, 1:] = 0
    examples = tk.Examples({"input_ids": ids, "attention_mask": mask}, torch.arange(60) % 2, ("no", "yes"))
    seen = tk.survey(Bag(), examples)
    assert seen.duplicates == 0 and seen.channels is None and seen.growth is not None
    assert seen.stem is not None and (seen.stem.name, seen.stem.what, seen.stem.count) == ("words", "tokens", 30)
    assert seen.input == "input_ids int64[4], attention_mask int64[4]"


def test_a_model_that_cannot_take_the_examples_yet_is_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))
    examples = tk.read_examples("sklearn:digits", limit=40)
    seen = tk.survey(model, examples, old_labels={0: "0", 999: "9"})
    assert "3 channels into Conv2d 0" in seen.misfit and seen.growth is None
    assert seen.channels == 1 and seen.stem is not None and seen.stem.count == 3
    assert (seen.head, seen.outputs) == ("3", 1000) and seen.overlap == {"0": 0, "9": 999}
    tk.surgery.adapt_input(model, channels=1)
    assert tk.survey(model, examples).misfit == "" and tk.survey(model, examples).growth is not None


def test_bad_examples_are_refused_before_anything_else() -> None:
    class Never(nn.Module):
        def forward(self, inputs: Any) -> Any:
            raise AssertionError("it was run")

    with pytest.raises(DataError, match="one class"):
        tk.survey(Never(), (torch.zeros(4, 2), [0, 0, 0, 0]))
    with pytest.raises(DataError, match="has NaN"):
        tk.survey(Never(), (torch.full((4, 2), float("nan")), [0, 1, 0, 1]))


class TestOldLabels:
    def names(self, classes: tuple[str, ...], old: Any, outputs: int = 4) -> tk.Survey:
        inputs = torch.rand(2 * len(classes), 3)
        examples = tk.Examples(inputs, torch.arange(2 * len(classes)) % len(classes), classes)
        return tk.survey(nn.Linear(3, outputs), examples, old_labels=old)

    def test_case_and_what_divides_words_do_not_count_and_synonyms_do(self) -> None:
        seen = self.names(
            ("Great_White-Shark", "tabby", "fish"), ["great white shark", "tabby, tabby cat", "dog", "ox"]
        )
        assert seen.overlap == {"Great_White-Shark": 0, "tabby": 1}
        assert "2 of 3 classes are among them" in str(seen)

    def test_two_outputs_of_one_name_count_as_none(self) -> None:
        seen = self.names(("crane", "ox"), ["crane", "crane", "ox", "dog"])
        assert seen.overlap == {"ox": 2} and any("crane" in note for note in seen.notes)

    @pytest.mark.parametrize("old", [["a"], ["a"] * 5, {4: "a"}, {-1: "a"}])
    def test_they_have_to_be_as_many_as_the_outputs(self, old: Any) -> None:
        with pytest.raises(DataError, match="4 outputs"):
            self.names(("a", "b"), old)

    def test_unknown_ones_are_not_none_in_common(self) -> None:
        assert self.names(("a", "b"), None).overlap is None
        assert self.names(("a", "b"), ["c", "d", "e", "f"]).overlap == {}


class TestHead:
    def test_a_name_is_taken_and_a_wrong_one_refused(self) -> None:
        examples = clouds(60, 3.0)
        model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 4))
        assert tk.survey(model, examples, head="0").head == "0"
        with pytest.raises(SurgeryError, match="no module 'fc'"):
            tk.survey(model, examples, head="fc")

    @pytest.mark.parametrize(
        "model",
        [
            nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(2), nn.Linear(36, 4), nn.Unflatten(1, (6, 1)), nn.Flatten(2),
                          nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Unflatten(1, (6, 4)), nn.AdaptiveAvgPool2d((1, 4)),
                          nn.Flatten()),
        ],
        ids=["convolution", "linear over places"],
    )  # fmt: skip
    def test_what_goes_into_it_is_pooled(self, model: nn.Module) -> None:
        examples = tk.Examples(torch.rand(40, 1, 8, 8), torch.arange(40) % 4, tuple("abcd"))
        seen = tk.survey(model, examples)
        assert seen.growth is not None and seen.outputs == 4

    def test_no_layer_that_learns_is_no_head(self) -> None:
        examples = tk.Examples(torch.rand(40, 4), torch.arange(40) % 4, tuple("abcd"))
        seen = tk.survey(nn.Softmax(dim=1), examples)
        assert seen.growth is None and seen.stem is None and seen.head is None and seen.parameters == 0
        assert any("cannot be estimated" in note for note in seen.notes)

    def test_features_that_are_no_numbers_say_so(self) -> None:
        class Masked(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(12, 4)

            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return torch.nan_to_num(self.head(inputs / 0))

        assert any("no finite features" in note for note in tk.survey(Masked(), clouds(60, 3.0)).notes)


class TestGrowth:
    """On clouds whose truth is known: with features as they are, any number of fresh examples can be drawn."""

    def grown(self, count: int, apart: float, seed: int = 0) -> Any:
        return tk.survey(nn.Linear(12, 4), clouds(count, apart, seed)).growth

    def test_few_hard_examples_want_more_and_many_easy_ones_do_not(self) -> None:
        assert self.grown(60, 0.8).says in {HELPS, OPEN}
        few, many = self.grown(60, 0.8), self.grown(2000, 5.0)
        assert few.gain > many.gain and many.says == LITTLE
        assert [point.examples for point in few.points] == [12, 24, 48]
        assert few.points[0].accuracy < few.points[2].accuracy and few.runs == 20

    def test_a_strong_gain_is_seen(self) -> None:
        growth = tk.survey(nn.Linear(100, 8), clouds(800, 0.3, classes=8, width=100)).growth
        assert growth is not None and growth.gain > 0.02 and growth.says == HELPS, growth
        assert "more data helps" in growth.message

    def test_labels_by_chance_are_at_chance_and_not_said_to_profit(self) -> None:
        examples = clouds(200, 3.0)
        drawn = tk.Examples(examples.inputs, examples.labels[torch.randperm(200)], examples.classes)
        growth = tk.survey(nn.Linear(12, 4), drawn).growth
        assert growth is not None and growth.says != HELPS
        assert abs(growth.points[2].accuracy - 0.27) < 3 * growth.points[2].stderr + 0.06

    def test_nothing_wrong_in_a_few_tests_is_no_certainty(self) -> None:
        growth = self.grown(40, 50.0)
        assert growth.points[2].accuracy == 1 and growth.points[2].stderr == 1 / 40 and growth.says == OPEN

    def test_two_standard_errors_hold_the_truth_most_of_the_time(self) -> None:
        fresh = clouds(4000, 0.8, seed=12345)
        held, held_gain = 0, 0
        for seed in range(16):
            examples = clouds(100, 0.8, seed)
            growth = tk.survey(nn.Linear(12, 4), examples).growth
            assert growth is not None
            order = in_shares(examples.labels, seed)
            half, whole = (
                float(
                    (ridge_scores(examples.inputs[order[:size]], examples.labels[order[:size]], fresh.inputs, 4)
                     .argmax(dim=1) == fresh.labels).double().mean()
                )
                for size in (40, 80)
            )  # fmt: skip
            held += abs(growth.points[2].accuracy - whole) <= 2 * growth.points[2].stderr
            held_gain += abs(growth.gain - (whole - half)) <= 2 * growth.stderr
        assert held >= 12 and held_gain >= 12, (held, held_gain)

    def test_too_few_examples_say_so(self) -> None:
        seen = tk.survey(nn.Linear(12, 4), clouds(19, 5.0))
        assert seen.growth is None and "19 different examples are too few" in seen.notes[-1]

    def test_many_examples_are_not_all_probed_and_that_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torchkeep.surveying._PROBED", 50)
        seen = tk.survey(nn.Linear(12, 4), clouds(90, 5.0))
        assert seen.growth is not None and seen.growth.points[2].examples == 40 and seen.growth.runs == 5
        assert "50 of the 90" in seen.notes[-1]

    def test_what_a_gain_says(self) -> None:
        assert judged(0.05, 0.01) == HELPS and judged(0.05, 0.03) == OPEN
        assert judged(0.003, 0.001) == LITTLE and judged(-0.02, 0.001) == LITTLE
