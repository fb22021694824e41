"""Similarity: networks whose worth on the new data is known by construction, and everything that a model may be."""

from __future__ import annotations

import copy
import json
from collections import namedtuple
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import torchkeep as tk
from models import TinyNet
from torchkeep.core.similarity import Glimpse, Norm, Seen, compact, even, gain, verdict_of
from torchkeep.core.transfer import Examples, Signal
from torchkeep.errors import DataError, SelectorError
from torchkeep.sensing import see
from torchkeep.signals import SIGNALS
from torchkeep.signals.batch_norm import BatchNormShift
from torchkeep.signals.logme import evidence
from torchkeep.signals.zero_shot import ZeroShot

TEN = tuple("0123456789")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Small networks."""


def digits(count: int = 200, start: int = 0) -> Examples:
    given = load_digits()
    images = torch.tensor(given.images, dtype=torch.float32)[:, None] / 16
    return Examples(images[start : start + count], torch.tensor(given.target)[start : start + count], TEN)


def normed_net() -> nn.Module:
    stages = [(1, 16), (16, 32)]
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)) for a, b in stages]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network that knows digits: trained on other ones than `digits()` gives."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, train = normed_net(), digits(700, 700)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(10):
        for places in torch.randperm(len(train)).split(64):
            loss = functional.cross_entropy(model(train.inputs[places]), train.labels[places])  # type: ignore[index]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def by_code(found: tk.Similarity) -> dict[str, Signal]:
    return {one.code: one for one in found.signals}


def cloud(count: int = 60, width: int = 6, classes: int = 3, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return Examples(
        torch.randn(count, width, generator=generator) + 2 * functional.one_hot(labels, width),
        labels,
        tuple(f"class {number}" for number in range(classes)),
    )


def test_the_same_task_is_similar_and_the_report_says_why(trained: nn.Module) -> None:
    found = tk.similarity(trained, digits(), old_labels=TEN)
    signals = by_code(found)
    assert found.verdict == "similar"
    assert [one.code for one in found.signals] == list(SIGNALS)
    assert signals["zero-shot"].value > 0.9 and signals["zero-shot"].says == "similar"
    assert signals["knn"].low > 0 and signals["old-answers"].low > 0.1
    assert signals["batch-norm"].says == "similar"
    assert signals["probe-depth"].details["block"] != "input"
    for one in found.signals:
        assert one.low <= one.value <= one.high or one.code == "probe-depth", one
        assert one.message and one.says in ("similar", "different", "ambiguous")
    text = str(found)
    assert "start from them" in text and "zero-shot" in text
    assert json.loads(json.dumps(tk.to_json(found)))["signals"][0]["code"] == "zero-shot"


def test_weights_that_were_shuffled_are_different(trained: nn.Module) -> None:
    broken, generator = copy.deepcopy(trained), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in broken.parameters():
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    found = tk.similarity(broken, digits(), old_labels=TEN)
    assert found.verdict == "different", str(found)
    assert by_code(found)["zero-shot"].says == "different"


def test_fresh_weights_are_worth_what_fresh_weights_are_worth() -> None:
    verdicts = []
    for seed in range(4):
        torch.manual_seed(seed)
        verdicts.append(
            tk.similarity(normed_net(), digits(150), signals=["linear-probe", "knn", "old-answers"]).verdict
        )
    assert verdicts.count("ambiguous") >= 3, verdicts


def test_labels_that_mean_nothing_leave_it_open(trained: nn.Module) -> None:
    examples = digits()
    shuffled = examples.labels[torch.randperm(len(examples), generator=torch.Generator().manual_seed(1))]
    found = tk.similarity(trained, Examples(examples.inputs, shuffled, TEN))
    assert found.verdict == "ambiguous", str(found)


def test_the_same_seed_gives_the_same_figures_and_nothing_else_changes(trained: nn.Module) -> None:
    trained.train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    torch.manual_seed(3)
    first = tk.similarity(trained, digits(100), seed=5)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1)), "the global generator was drawn from"
    assert first == tk.similarity(trained, digits(100), seed=5)
    assert first != tk.similarity(trained, digits(100), seed=6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert all(module.training for module in trained.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in trained.modules())
    trained.eval()


def test_a_gain_is_paired_and_its_error_is_right() -> None:
    """95 % of intervals have the truth in them, when the copies are all there is."""
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        easy = torch.rand(200, generator=generator)
        ours = (easy < 0.8).double()
        fresh = (easy < 0.6).double()
        value, error = gain(torch.stack([ours, fresh]))
        inside += abs(value - 0.2) < 1.96 * error
    assert 0.91 < inside / 300 < 0.98
    assert gain(torch.ones(3, 10, dtype=torch.float64)) == (0.0, 0.0)
    spread = torch.stack([torch.ones(50), torch.ones(50), torch.zeros(50)]).double()
    assert gain(spread)[1] > 0.4, "copies that differ leave it open"


@pytest.mark.parametrize(
    ("says", "verdict"),
    [
        ([], "ambiguous"),
        ([("similar", 0.5)], "ambiguous"),
        ([("similar", 1.0)], "similar"),
        ([("similar", 1.0), ("different", 1.0)], "ambiguous"),
        ([("similar", 2.0), ("different", 1.0)], "similar"),
        ([("similar", 1.0), ("different", 2.0), ("ambiguous", 9.0)], "different"),
        ([("different", 1.0)], "different"),
    ],
)
def test_the_verdict_needs_weight_and_agreement(says: list[tuple[str, float]], verdict: str) -> None:
    assert verdict_of(Signal("x", 0, 0, 0, side, weight, "") for side, weight in says) == verdict


def seen_with(answers: Tensor, labels: Tensor, classes: tuple[str, ...], old: tuple[str, ...]) -> Seen:
    return Seen(labels, classes, ("input",), Glimpse((answers,), answers), (), old)


def test_zero_shot_maps_by_name_whatever_the_order_and_the_marks() -> None:
    labels = torch.arange(60) % 2
    answers = functional.one_hot(2 - 2 * labels, 3).double()  # "b" is index 0 of the old head, "a" is index 2
    signal = ZeroShot().measure(seen_with(answers, labels, ("A", "big_dog"), ("Big Dog", "other", "a")))
    assert signal is not None and signal.value == 1.0 and signal.says == "similar" and signal.weight == 2
    wrong = ZeroShot().measure(seen_with(answers, 1 - labels, ("A", "big_dog"), ("Big Dog", "other", "a")))
    assert wrong is not None and wrong.value == 0.0 and wrong.says == "different"
    hint = ZeroShot().measure(seen_with(answers, 1 - labels, ("x", "y"), ("Big Dog", "other", "a")))
    assert hint is not None and hint.value == 1.0 and hint.weight == 0 and hint.says == "ambiguous"


def test_a_hint_by_majority_does_not_count_an_example_for_itself() -> None:
    labels = torch.randint(0, 2, (400,), generator=torch.Generator().manual_seed(0))
    own = torch.eye(400, dtype=torch.float64)  # every example has an old class of its own
    signal = ZeroShot().measure(seen_with(own, labels, ("x", "y"), ()))
    assert signal is not None and signal.value < 0.6


def test_batch_normalisation_tells_a_shift_from_chance() -> None:
    torch.manual_seed(0)

    def norm(shift: float, count: int) -> Norm:
        drawn = torch.randn(2, count, 64, dtype=torch.float64) * 2 + 5 + shift * 2
        halves = torch.stack([drawn.mean(dim=1), drawn.var(dim=1)], dim=1)
        return Norm("bn", torch.full((64,), 5.0).double(), torch.full((64,), 4.0).double(), halves)

    def measured(one: Norm) -> Signal:
        empty = torch.zeros(4, 1)
        seen = Seen(torch.zeros(4, dtype=torch.int64), ("a",), ("input",), Glimpse((empty,), None), (), norms=(one,))
        signal = BatchNormShift().measure(seen)
        assert signal is not None
        return signal

    assert measured(norm(0.0, 10)).value < 0.15  # sampling alone is 0.22
    assert measured(norm(1.0, 50)).value == pytest.approx(1.0, abs=0.1)
    assert measured(norm(0.2, 50)).says == "similar"
    assert measured(norm(1.0, 50)).says == "ambiguous"
    far = measured(norm(9.0, 50))
    assert far.says == "different" and "scaled" in far.message


def test_logme_agrees_with_the_evidence_by_brute_force() -> None:
    torch.manual_seed(0)
    features = torch.randn(12, 3, dtype=torch.float64)
    labels = (features[:, 0] > 0).long()
    found = []
    for label in (0, 1):
        wanted = (labels == label).double()
        best = -torch.inf
        for prior in torch.logspace(-2, 2, 33, dtype=torch.float64):
            for noise in torch.logspace(0, 2, 33, dtype=torch.float64):
                cover = features @ features.T / prior + torch.eye(12, dtype=torch.float64) / noise
                normal = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.float64), cover)
                best = max(best, float(normal.log_prob(wanted)))
        found.append(best / 12)
    assert evidence(features, labels) == pytest.approx(sum(found) / 2, abs=0.02)


def test_compact_keeps_all_distances() -> None:
    torch.manual_seed(0)
    for shape in ((20, 5), (20, 300), (20, 20), (6, 1)):
        rows = torch.randn(*shape) * torch.logspace(-3, 3, shape[1])
        small = compact(rows)
        assert small.shape[1] <= max(20, 5) and small.dtype is torch.float64
        torch.testing.assert_close(
            torch.cdist(small, small), torch.cdist(rows.double(), rows.double()), rtol=1e-3, atol=1e-3
        )


def test_even_has_the_first_and_the_last() -> None:
    names = [str(number) for number in range(50)]
    assert even(names, 8)[0] == "0" and even(names, 8)[-1] == "49" and len(set(even(names, 8))) == 8
    assert even(names[:3], 8) == names[:3]


class Encoder(nn.Module):
    """Text: numbers of words in, tokens [examples, tokens, channels] between the blocks, an object out."""

    Output = namedtuple("Output", ["logits", "hidden"])

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        self.first = batch_first
        self.words = nn.Embedding(30, 16)
        layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first, dropout=0.5) for _ in range(2)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Any:
        x = self.words(ids) if self.first else self.words(ids).transpose(0, 1)
        mask = attention_mask == 0
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        x = x if self.first else x.transpose(0, 1)
        weights = attention_mask[..., None].to(x.dtype)
        return self.Output(self.head((x * weights).sum(dim=1) / weights.sum(dim=1)), x)


def texts(count: int = 48, length: int = 7) -> Examples:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    ids = torch.randint(0, 15, (count, length), generator=generator) + 15 * labels[:, None]
    mask = torch.ones(count, length)
    mask[:, 5:] = 0
    return Examples({"ids": ids, "attention_mask": mask}, labels, ("low", "high"))


@pytest.mark.parametrize("first", [True, False])
def test_text_goes_through_the_same_code(first: bool) -> None:
    torch.manual_seed(0)
    model, examples = Encoder(batch_first=first), texts()
    seen, notes = see(model, examples)
    assert notes == [] and seen.model.answers is not None
    assert seen.blocks == ("words", "layers.0", "layers.1")
    assert tk.similarity(model, examples).verdict in ("similar", "different", "ambiguous")


def test_what_is_masked_is_not_in_the_mean() -> None:
    torch.manual_seed(0)
    model, examples = Encoder(), texts()
    changed = dict(examples.inputs)  # type: ignore[arg-type]
    changed["ids"] = changed["ids"].clone()
    changed["ids"][:, 5:] = 29 - changed["ids"][:, 5:]
    same = see(model, Examples(changed, examples.labels, examples.classes))[0]
    for ours, theirs in zip(see(model, examples)[0].model.features, same.model.features, strict=True):
        torch.testing.assert_close(torch.cdist(ours, ours), torch.cdist(theirs, theirs), rtol=1e-4, atol=1e-4)


class LateStem(nn.Module):
    """Registered the other way round, with a layer that is never called and one that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.first = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.second(torch.relu(self.first(x)))))))


def test_blocks_come_in_the_order_of_the_forward() -> None:
    seen, _ = see(LateStem(), cloud())
    assert seen.blocks == ("input", "first", "second")
    named, _ = see(LateStem(), cloud(), blocks=["second", "first"])
    assert named.blocks == ("first", "second", "before head")


def test_channels_of_images_are_averaged_over_the_places() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 10)
    )
    examples = digits(40)
    seen, _ = see(model, examples)
    assert seen.blocks == ("input", "0", "2")
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    wanted = torch.relu(model[0](examples.inputs[order])).mean(dim=(2, 3)).double()  # type: ignore[index]
    found = seen.model.features[1]
    torch.testing.assert_close(torch.cdist(found, found), torch.cdist(wanted, wanted), rtol=1e-4, atol=1e-5)
    assert torch.equal(seen.labels, examples.labels[order])


def test_wrappers_tied_weights_and_dropout_are_no_matter() -> None:
    torch.manual_seed(0)
    model = TinyNet()
    examples = Examples(digits(60).inputs, digits(60).labels % 3, ("a", "b", "c"))
    plain = tk.similarity(model, examples)
    assert tk.similarity(nn.DataParallel(model), examples) == plain
    assert tk.similarity(copy.deepcopy(model).train(), examples) == plain
    tk.freeze(model, "* but head")
    assert tk.similarity(model, examples) == plain
    assert tk.similarity(copy.deepcopy(model), examples) == plain


def test_half_precision_and_odd_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    examples = cloud()
    halved = Examples(examples.inputs.bfloat16(), examples.labels, examples.classes)  # type: ignore[union-attr]
    assert len(tk.similarity(model, halved).signals) == 6

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.top = nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Any:
            return [self.top(self.body(x))[:, None]]  # no scores: [examples, 1, 4]

    found = by_code(tk.similarity(Pair(), examples))
    assert "zero-shot" not in found and "old-answers" not in found and "linear-probe" in found


def test_many_examples_are_sampled_and_it_is_said() -> None:
    found = tk.similarity(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), cloud(700), signals=["knn"])
    assert "600 of 700" in found.notes[0]


def test_parameters_that_cannot_be_fresh_are_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.top = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.top(x * self.scale)

    assert any("scale" in note for note in tk.similarity(Scaled(), cloud()).notes)


def test_a_model_with_broken_weights_is_measured_and_it_is_said() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight[1] = torch.nan
    found = tk.similarity(model, cloud())
    assert any("not finite" in note for note in found.notes)
    assert all(torch.tensor(one.value).isfinite() for one in found.signals)


def test_signals_are_chosen_by_name_or_given() -> None:
    class Always:
        code = "always"

        def measure(self, seen: Seen) -> Signal:
            return Signal("always", 1.0, 1.0, 1.0, "similar", 5.0, f"{len(seen.labels)} examples")

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    found = tk.similarity(model, cloud(), signals=["knn", Always()])
    assert [one.code for one in found.signals] == ["knn", "always"] and found.verdict == "similar"
    with pytest.raises(ValueError, match="there is no signal 'nope'; known are zero-shot"):
        tk.similarity(model, cloud(), signals=["nope"])


def test_bad_input_is_refused_with_a_reason() -> None:
    model, good = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), cloud()
    inputs: Any = good.inputs
    with pytest.raises(DataError, match="1 classes"):
        tk.similarity(model, Examples(inputs, good.labels * 0, good.classes))
    for label in (-1, 9):
        labels = good.labels.clone()
        labels[2] = label
        with pytest.raises(DataError, match=f"example 2 is {label}"):
            tk.similarity(model, Examples(inputs, labels, good.classes))
    for labels in (good.labels[:, None], good.labels.tolist(), good.labels[:5], good.labels.int()):
        with pytest.raises(DataError, match="labels"):
            tk.similarity(model, Examples(inputs, labels, good.classes))
    with pytest.raises(DataError, match="a str, not Examples"):
        tk.similarity(model, "sklearn:digits")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="4 examples"):
        tk.similarity(model, good.take(torch.arange(4)))
    with pytest.raises(DataError, match="no finite numbers"):
        tk.similarity(model, Examples(inputs / 0, good.labels, good.classes))
    with pytest.raises(DataError, match=r"cannot take .*\[\d+, 5\]"):
        tk.similarity(model, Examples(inputs[:, :5], good.labels, good.classes))
    with pytest.raises(SelectorError, match="no block 'bone'"):
        tk.similarity(model, good, blocks=["bone"])
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    with pytest.raises(DataError, match="meta device"):
        tk.similarity(empty, good)


def test_nothing_is_trained() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    with torch.enable_grad():
        tk.similarity(model, cloud())
    assert all(parameter.grad is None for parameter in model.parameters())
