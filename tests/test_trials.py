"""Trials: candidates, the cache of frozen prefixes, comparing, racing, and the study that remembers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchkeep as tk
from architectures import ResNet, Text, Vit, VitNested
from architectures_surgery import ViT
from models import TinyNet, state_bits
from torchkeep.core.transfer import Candidate, Examples, Outcome, Recipe, Stage
from torchkeep.errors import DataError
from torchkeep.surgery import reinitialise
from torchkeep.sweeping import prepared
from torchkeep.trials.caching import Cache
from torchkeep.trials.candidates import candidates_for, cost_of, layers_of, stages_of
from torchkeep.trials.comparing import adjusted, choose, difference, seeds_of, standing, zone_of
from torchkeep.trials.racing import grid, race
from torchkeep.trials.rows import Rows, rows_on_disk
from torchkeep.trials.study import JOURNAL, NAME, Study, outcome_of, told
from torchkeep.trials.training import evaluate, fit, split, try_out
from torchkeep.trials.trying import fresh

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

RECIPE = Recipe(epochs=3, batch=8)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def some(count: int, *shape: int, classes: int = 3, high: int | None = None) -> Examples:
    generator = torch.Generator().manual_seed(0)
    if high is None:
        inputs = torch.randn(count, *shape, generator=generator)
    else:
        inputs = torch.randint(0, high, (count, *shape), generator=generator)
    return Examples(inputs, torch.arange(count) % classes, tuple(map(str, range(classes))), "made up")


# -- candidates -------------------------------------------------------------------------------------------------


def test_candidates_go_from_the_head_to_all() -> None:
    listed = candidates_for(EfficientNetLite0())
    assert [one.name for one in listed] == [
        "head", "lp-ft", "stage 4", "stages 3-4", "stages 2-4", "stage 1", "full", "scratch",
    ]  # fmt: skip
    assert listed[0].stages[0].train == ["_dropout", "_fc"]
    assert [one.start for one in listed] == ["pretrained"] * 7 + ["scratch"]
    costs = [cost_of(EfficientNetLite0(), one) for one in listed]
    assert costs[0] == (1 / 19, 1281000) or costs[0] == (round(1 / 19, 9), 1281000)
    assert costs[0] < costs[2] < costs[3] < costs[4] < costs[6] == costs[7]


@pytest.mark.parametrize("make", [TinyNet, Vit, Text, VitNested, lambda: nn.DataParallel(TinyNet())])
def test_candidates_can_be_carried_out(make: Callable[[], nn.Module]) -> None:
    for candidate in candidates_for(make()):
        model = make()
        tk.freeze(model, candidate.freeze_spec(6))
        assert any(one.requires_grad for one in model.parameters())


def test_layers_that_are_only_listed_are_steps() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()),
        nn.Sequential(nn.Dropout(), nn.Linear(2, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3)),
    )
    assert layers_of(model) == [("0.0", "0.1"), ("0.3",), ("1.0", "1.1"), ("1.3", "1.4")]
    assert layers_of(model, "0.3")[-1] == ("0.3",)


def test_odd_names_are_chosen_as_they_are() -> None:
    model = nn.ModuleDict({"a, b": nn.Linear(2, 2), "first 2": nn.Linear(2, 2), "x*": nn.Linear(2, 2)})
    full = dict(model.named_parameters())
    for candidate in candidates_for(model):
        if candidate.name == "stage 1":
            tk.freeze(model, candidate.freeze_spec(2))
            trained = {name for name, one in full.items() if one.requires_grad}
            assert trained == {"a, b.weight", "a, b.bias", "x*.weight", "x*.bias"}


def test_a_single_layer_has_nothing_to_freeze() -> None:
    assert [one.name for one in candidates_for(nn.Linear(2, 3))] == ["full", "scratch"]
    assert stages_of([], 4) == []
    assert stages_of([("a",), ("b",), ("c",)], 2) == [["a", "b"], ["c"]]


# -- training ---------------------------------------------------------------------------------------------------


def test_splits_are_drawn_from_each_class_and_differ_in_what_they_hold_out() -> None:
    examples = some(31, 2)
    held = [split(examples, seed)[1] for seed in range(3)]
    for seed, places in enumerate(held):
        kept, again = split(examples, seed)
        assert again.equal(places)
        assert sorted([*kept.tolist(), *places.tolist()]) == list(range(31))
        assert set(examples.labels[places].tolist()) == {0, 1, 2} == set(examples.labels[kept].tolist())
    assert len(set(torch.cat(held).tolist())) == sum(map(len, held))
    assert not split(examples, 3)[1].equal(held[0])


def test_a_single_example_of_a_class_is_trained_on() -> None:
    examples = Examples(torch.zeros(5, 2), torch.tensor([0, 0, 0, 0, 1]), ("a", "b"))
    kept, held = split(examples, 0)
    assert 4 in kept.tolist() and len(held) == 1


def test_what_is_no_number_is_wrong() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) * torch.where(x[:, :1] > 0, 1.0, torch.nan)

    examples = some(20, 2)
    hits, losses = evaluate(Broken(), examples)
    bad = examples.inputs[:, 0] <= 0  # type: ignore[index]
    assert bool(bad.any()) and not bool(hits[bad].any())
    assert losses[bad].isinf().all() and losses[~bad].isfinite().all()
    rows = fit(Broken(), examples, Candidate("all", [Stage("*")]), RECIPE, seed=0)
    assert len(rows) == 1


def test_rates_of_parts_are_part_of_a_stage() -> None:
    model = TinyNet()
    tk.freeze(model, Candidate("full", [Stage("*", rate=0.1, rates={"head": 1.0})]).freeze_spec(3))
    rates = {group["name"]: group["lr"] for group in tk.param_groups(model, lr=1.0)}
    assert rates["head"] == 1.0 and rates["conv"] == pytest.approx(0.1)


# -- the cache --------------------------------------------------------------------------------------------------


class Encoded(dict[str, Any]):
    """A dict with attributes, as text encoders give it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


class Bert(nn.Module):
    """A text encoder that takes its inputs by name and gives a dict with attributes; its pooler is a tuple's member."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(30, 16, padding_idx=0)
        layer = {"nhead": 2, "dim_feedforward": 32, "batch_first": True, "dropout": 0.1}
        self.layers = nn.ModuleList(Masked(nn.TransformerEncoderLayer(16, **layer)) for _ in range(3))
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(16, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        given = Encoded(hidden=self.embeddings(input_ids), mask=attention_mask == 0)
        for layer in self.layers:
            given = layer(given)
        kept = attention_mask[:, :, None].float()
        pooled = (given.hidden * kept).sum(1) / kept.sum(1)
        return SimpleNamespace(logits=self.classifier(self.dropout(pooled)))


class Masked(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: Encoded) -> Encoded:
        hidden = self.layer(given.hidden, src_key_padding_mask=given.mask)
        return Encoded(hidden=hidden, mask=given.mask, extra=(hidden[:, 0], None, "text"))


class Skipping(nn.Module):
    """What an early layer gives is used again after the last frozen one, and written to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        early = self.first(x)
        early *= 2
        late = self.second(early).relu_()
        return self.head(self.third(late + early).relu_() + early)


def texts() -> Examples:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 30, (26, 7), generator=generator)
    mask = (torch.arange(7) < torch.randint(3, 8, (26, 1), generator=generator)).long()
    return Examples({"input_ids": ids * mask, "attention_mask": mask}, torch.arange(26) % 3, ("a", "b", "c"))


def pretrained() -> nn.Module:
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(imagenet_weights(), weights_only=True))
    return model


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Examples]]] = {
    "conv": (TinyNet, lambda: some(27, 1, 5, 5)),
    "resnet": (ResNet, lambda: some(27, 3, 16, 16)),
    "vit": (ViT, lambda: some(27, 3, 32, 32)),
    "vit-without-blocks": (Vit, lambda: some(27, 3, 32, 32)),
    "text": (Text, lambda: some(27, 16, high=50)),
    "bert": (Bert, texts),
    "skipping": (Skipping, lambda: some(27, 4)),
    "efficientnet": (pretrained, lambda: some(21, 3, 32, 32)),
}


def trained(
    model: nn.Module, head: str, examples: Examples, candidate: Candidate, cache: Cache | None
) -> tuple[Any, Outcome]:
    model = copy.deepcopy(model)
    reinitialise(model, head, seed=3)
    scores = None if cache is None else cache.scores(model)
    outcome = try_out(model, examples, candidate, RECIPE, seed=1, scores=scores)
    return state_bits(model), outcome


@pytest.mark.parametrize("name", NETS)
def test_training_with_the_cache_is_the_same_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    make, data = NETS[name]
    model, head = prepared(make, data())
    cache = Cache(data(), RECIPE.batch)
    wanted = {"head", "lp-ft", "stage 4", "stage 2"} - ({"lp-ft"} if name == "efficientnet" else set())
    for candidate in candidates_for(model):
        if candidate.name not in wanted:
            continue
        plain, without = trained(model, head, data(), candidate, None)
        first, made = trained(model, head, data(), candidate, cache)
        second, again = trained(model, head, data(), candidate, cache)
        assert plain == first == second, candidate.name
        for outcome in (made, again):
            assert outcome.losses.equal(without.losses) and outcome.hits.equal(without.hits)
            assert outcome.rows == without.rows and outcome.train_loss == without.train_loss
    assert cache.notes == [] and cache._used > 0


class Slow(nn.Module):
    """Counts how often its first layer is really run."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Stem(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


class Stem(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, input: Tensor) -> Tensor:
        Slow.runs += len(input)
        return super().forward(input)


HEAD = Candidate("head", [Stage("head")])


def test_what_is_frozen_is_run_once_for_all_trainings() -> None:
    examples, cache = some(40, 4), Cache(some(40, 4), 8)
    model, _ = prepared(Slow, examples)
    Slow.runs = 0
    trained(model, "head", examples, HEAD, cache)
    first = Slow.runs
    for seed in range(4):
        other = copy.deepcopy(model)
        try_out(other, examples, HEAD, Recipe(epochs=30, batch=8), seed=seed, scores=cache.scores(other))
    assert first < 280 and Slow.runs - first < 60  # a look at all for each size of a batch, and nothing in 120 epochs
    assert "forward" not in other.stem.__dict__


class Fickle(nn.Linear):
    """In batches of another size than 8 a single example gives other bits, as kernels of matrices may do it."""

    def forward(self, input: Tensor) -> Tensor:
        given = super().forward(input)
        return given if len(input) == 8 else given + (input[:, :1] > 1.5) * 1e-4


class Lucky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Fickle(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


def test_bits_that_differ_for_one_example_only_are_found() -> None:
    examples = some(40, 4)
    assert int((examples.tensors[""][:, 0] > 1.5).sum()) == 1
    model, _ = prepared(Lucky, examples)
    cache = Cache(examples, 8)
    for seed in range(3):
        plain, kept = (
            try_out(other := copy.deepcopy(model), examples, HEAD, RECIPE, seed=seed, scores=scores and scores(other))
            for scores in (None, cache.scores)
        )
        assert plain.losses.equal(kept.losses) and plain.train_loss == kept.train_loss


def test_a_full_cache_goes_to_the_disk_or_is_not_made(tmp_path: Path) -> None:
    examples = some(40, 4)
    model, head = prepared(Slow, examples)
    plain, _ = trained(model, head, examples, HEAD, None)
    on_disk = Cache(examples, 8, limit=0, folder=tmp_path / "cache")
    assert trained(model, head, examples, HEAD, on_disk)[0] == plain
    assert on_disk.notes == [] and on_disk._used == 0 and list((tmp_path / "cache").iterdir()) == []
    none = Cache(examples, 8, limit=10)
    assert trained(model, head, examples, HEAD, none)[0] == plain
    assert len(none.notes) == 1 and "cache_limit" in none.notes[0] and "'stem'" in none.notes[0]


class Moody(nn.Module):
    """Frozen parts that are no function of their input: nothing of them can be kept."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        given = self.stem(x)
        if self.kind == "dropout":
            given = functional.dropout(given, 0.5, self.training)
        if self.kind == "batch":
            given = given - given.mean(0)
        if self.kind == "input":
            given = given + x
        return self.head(given)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(input)


class Whole(nn.Linear):
    """Each row depends on the others of the batch."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) - input.mean()


@pytest.mark.parametrize("kind", ["dropout", "batch", "input"])
def test_what_comes_after_the_cut_is_run_as_ever(kind: str) -> None:
    examples = some(40, 4)
    model, head = prepared(lambda: Moody(kind), examples)
    cache = Cache(examples, 8)
    assert trained(model, head, examples, HEAD, cache)[0] == trained(model, head, examples, HEAD, None)[0]
    assert cache.notes == []


@pytest.mark.parametrize("stem", [Counting, lambda: Whole(4, 4)])
def test_what_is_more_than_a_function_of_an_example_is_not_kept(stem: Callable[[], nn.Module]) -> None:
    examples = some(40, 4)
    model, head = prepared(lambda: nn.Sequential(stem(), nn.ReLU(), nn.Linear(4, 3)), examples)
    candidate = Candidate("head", [Stage(head)])
    cache = Cache(examples, 8)
    assert trained(model, head, examples, candidate, cache)[0] == trained(model, head, examples, candidate, None)[0]
    assert len(cache.notes) == 1


@pytest.mark.parametrize(
    ("shape", "order", "dim"), [((4, 3, 2, 2), torch.channels_last, 0), ((3, 4, 5), None, 1), ((4,), None, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_rows_come_out_as_they_went_in(
    shape: tuple[int, ...], order: Any, dim: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = [size if place != dim else 6 for place, size in enumerate(shape)]
    values = (torch.randn(whole, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    if order is not None:
        values = values.to(memory_format=order)
    first, last = values.narrow(dim, 0, 4), torch.cat([values.narrow(dim, 4, 2), values.narrow(dim, 0, 2)], dim)
    for rows in (Rows(first, dim, 6), rows_on_disk(tmp_path, [(first, dim)], 6)[0]):
        assert rows.put(0, first) and rows.put(4, last)
        places = torch.tensor([5, 0, 0, 3])
        taken = rows.take(places)
        assert taken.equal(values.index_select(dim, places)) and taken.dtype is dtype
        if order is not None:
            assert taken.is_contiguous(memory_format=order)
    constant = Rows(first, None, 6)
    assert constant.put(0, first) and constant.take(torch.tensor([1])).equal(first)
    if dtype is not torch.bool:
        assert not constant.put(4, first + 1)


def test_an_empty_row_is_kept_too(tmp_path: Path) -> None:
    empty = torch.zeros(4, 0)
    for rows in (Rows(empty, 0, 4), rows_on_disk(tmp_path, [(empty, 0)], 4)[0]):
        assert rows.put(0, empty) and rows.take(torch.tensor([1, 1])).shape == (2, 0)


def test_fresh_weights_keep_nothing_of_the_pretrained() -> None:
    model = ViT()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    with torch.no_grad():
        for one in model.parameters():
            one.add_(1.5)
    left = fresh(model, 0)
    assert left == ["cls_token", "pos_embed"]
    for name, one in model.named_parameters():
        assert not one.equal(before[name] + 1.5), name
        assert float(one.detach().abs().mean()) < 1.01, name
    other = ViT()
    fresh(other, 0)
    assert state_bits(other) == state_bits(model)


# -- comparing and racing ---------------------------------------------------------------------------------------


def gave(candidate: str, seed: int, hits: Sequence[int], sure: float = 0.9) -> Outcome:
    right = torch.tensor(hits, dtype=torch.bool)
    losses = -torch.where(right, torch.tensor(sure), torch.tensor(0.1)).log()
    places = torch.arange(len(hits)) + seed * len(hits)
    return Outcome(candidate, seed, places, right, losses, 0.1, 1.0, 2.0)


def test_differences_are_paired() -> None:
    found = {
        ("a", 0): gave("a", 0, [1, 1, 1, 0]),
        ("b", 0): gave("b", 0, [1, 1, 0, 0]),
        ("a", 1): gave("a", 1, [0, 0, 0, 0]),
    }
    apart = difference(found, "a", "b")
    assert apart.mean == 0.25 and apart.stderr == pytest.approx(0.25) and apart.seeds == 1
    assert difference(found, "b", "a").mean == -0.25
    assert difference(found, "a", "c").seeds == 0
    assert seeds_of(found, "a") == [0, 1]


def test_a_hard_seed_is_not_held_against_a_candidate() -> None:
    figures = {("a", 0): 0.9, ("b", 0): 0.8, ("a", 1): 0.5, ("b", 1): 0.4, ("c", 0): 0.85}
    found: Any = dict.fromkeys(figures)
    means = adjusted(found, ["a", "b", "c"], figures)
    assert means == pytest.approx({"a": 0.7, "b": 0.6, "c": 0.65})


def test_ties_of_accuracy_are_decided_by_how_sure_it_is() -> None:
    found = {("a", 0): gave("a", 0, [1, 1, 0], 0.6), ("b", 0): gave("b", 0, [1, 0, 1], 0.9)}
    assert standing(found, ["a", "b"]) == ["b", "a"]


def test_the_cheaper_one_is_chosen_where_it_costs_no_more_than_a_point() -> None:
    costs = {"head": (0.1, 10), "full": (1.0, 99)}
    same = {("head", 0): gave("head", 0, [1, 1, 0]), ("full", 0): gave("full", 0, [1, 1, 0])}
    assert choose(same, ["head", "full"], costs)[:2] == ("head", "head")
    worse = {("head", 0): gave("head", 0, [1, 1, 0] * 9), ("full", 0): gave("full", 0, [1, 1, 1] + [1, 1, 0] * 8)}
    assert choose(worse, ["head", "full"], costs)[:2] == ("full", "full")  # within a standard error, and 3.7 points
    near = {("head", 0): gave("head", 0, [1] * 198 + [0, 0]), ("full", 0): gave("full", 0, [1] * 199 + [0])}
    chosen, best, why = choose(near, ["head", "full"], costs)
    assert (chosen, best) == ("head", "full") and "0.5 ± 0.5 points" in why


def test_fresh_weights_have_to_be_clearly_better() -> None:
    costs = {"full": (1.0, 9), "scratch": (1.0, 9)}
    less = {("full", 0): gave("full", 0, [1, 0] * 10), ("scratch", 0): gave("scratch", 0, [0, 1] * 10, 0.99)}
    assert standing(less, ["full", "scratch"])[0] == "scratch"
    chosen, best, why = choose(less, ["full", "scratch"], costs, "scratch")
    assert (chosen, best) == ("full", "scratch") and why.startswith("fresh weights")
    more = less | {("scratch", 0): gave("scratch", 0, [1, 1] * 9 + [1, 0])}
    assert choose(more, ["full", "scratch"], costs, "scratch")[0] == "scratch"


def test_zones() -> None:
    found = {("a", 0): gave("a", 0, [1] * 20), ("s", 0): gave("s", 0, [1, 0] * 10)}
    assert zone_of(difference(found, "a", "s")) == "helps"
    assert zone_of(difference(found, "s", "a")) == "hurts"
    assert zone_of(difference(found, "a", "a")) == "does not matter"
    once = replace(difference(found, "a", "s"), mean=0.25, stderr=0.1)
    assert zone_of(once) == "does not matter" and zone_of(replace(once, seeds=2)) == "helps"
    assert zone_of(None) == zone_of(difference(found, "a", "x")) == "not compared"


def asked(quality: Mapping[str, float]) -> tuple[Callable[[Sequence[tuple[str, int]]], Any], list[tuple[str, int]]]:
    log: list[tuple[str, int]] = []

    def ask(pairs: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Outcome]:
        log.extend(pairs)
        generator = torch.Generator().manual_seed(1)
        draw = torch.rand(50, generator=generator)
        return {(name, seed): gave(name, seed, (draw < quality[name]).int().tolist()) for name, seed in pairs}

    return ask, log


def test_a_race_costs_a_third_and_finds_the_best() -> None:
    quality = {name: 0.5 + 0.06 * place for place, name in enumerate("abcdefgh")}
    names, costs = list(quality), {name: 0.2 + 0.1 * place for place, name in enumerate("abcdefgh")}
    for seeds in (5, 6, 10, 20):
        ask, log = asked(quality)
        found = race(names, range(seeds), costs, ask)
        assert len(log) == len(set(log)) == len(found) <= max(8, len(names) * seeds // 3)
        assert sum(costs[name] for name, _ in log) <= sum(costs.values()) * seeds / 3 + 1e-9
        assert choose(found, names, dict.fromkeys(names, (1.0, 1)))[0] == "h"
        assert seeds_of(found, "h") == list(range(max(seed for _, seed in log) + 1))
        assert len(seeds_of(found, "g")) >= 2
    ask, log = asked(quality)
    assert len(grid(names, range(3), ask)) == 24 == len(log)


def test_a_race_with_one_seed_is_a_grid() -> None:
    ask, log = asked({"a": 0.5, "b": 0.6})
    race(["a", "b"], [7], {"a": 1, "b": 1}, ask)
    assert log == [("a", 7), ("b", 7)]


# -- the study --------------------------------------------------------------------------------------------------

MADE_OF = {"weights": "1", "recipe": "2"}


def test_a_study_remembers_to_the_bit(tmp_path: Path) -> None:
    outcome = gave("a, b", 3, [1, 0, 1])
    outcome = Outcome(
        **{**outcome.__dict__, "losses": torch.tensor([0.1, float("inf"), 1e-30]), "rows": ({"epoch": 0.0},)}
    )
    assert outcome_of("a, b", 3, told(outcome)).losses.equal(outcome.losses)
    study = Study(tmp_path, ["a, b", "c"], MADE_OF)
    study.finish(study.begin("a, b", 3), outcome)
    study.begin("c", 0)
    again = Study(tmp_path, ["a, b", "c"], MADE_OF)
    ((pair, kept),) = again.finished().items()
    assert pair == ("a, b", 3) and kept.losses.equal(outcome.losses) and kept.hits.equal(outcome.hits)
    assert kept.places.equal(outcome.places) and kept.rows == outcome.rows


def test_a_trial_left_undone_has_failed_when_it_is_begun_again(tmp_path: Path) -> None:
    import optuna

    Study(tmp_path, ["a"], MADE_OF).begin("a", 0)
    study = Study(tmp_path, ["a"], MADE_OF)
    study.finish(study.begin("a", 0), gave("a", 0, [1, 0]))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    seen = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in seen.trials] == ["FAIL", "COMPLETE"]
    assert seen.best_value == 0.5 and seen.best_params == {"candidate": "a", "seed": 0}


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    study = Study(tmp_path, ["a"], MADE_OF)
    study.finish(study.begin("a", 0), gave("a", 0, [1, 0]))
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole + b'{"op_code":4,"wor')
    again = Study(tmp_path, ["a"], MADE_OF)
    assert list(again.finished()) == [("a", 0)]
    again.finish(again.begin("a", 1), gave("a", 1, [1, 1]))
    assert list(Study(tmp_path, ["a"], MADE_OF).finished()) == [("a", 0), ("a", 1)]


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    Study(tmp_path, ["a"], MADE_OF)
    with pytest.raises(DataError, match="with other recipe"):
        Study(tmp_path, ["a"], {**MADE_OF, "recipe": "3"})


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(tk.errors.MissingDependencyError, match=r"torchkeep\[trials\]"):
        Study(None, ["a"], MADE_OF)
