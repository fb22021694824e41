"""The probe: right where a line divides the classes, at chance where nothing does, and equal to leaving one out by hand."""

from __future__ import annotations

import pytest
import torch

from torchkeep.core.probing import fold_numbers, probe_accuracy, ridge_scores


def clouds(count: int, width: int, apart: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.randn(3, width, generator=draw) * apart
    return centres[labels] + torch.randn(count, width, generator=draw), labels


@pytest.mark.parametrize("width", [4, 300])
def test_what_a_line_divides_is_found_with_few_and_with_many_features(width: int) -> None:
    features, labels = clouds(90, width, 4.0)
    assert probe_accuracy(features, labels).float().mean() > 0.95
    assert torch.equal(probe_accuracy(features, labels), probe_accuracy(features.half(), labels))


def test_noise_is_at_chance_though_there_are_more_features_than_examples() -> None:
    features, labels = clouds(300, 400, 0.0)
    assert 0.2 < probe_accuracy(features, labels).float().mean() < 0.47


def test_labels_that_lie_are_not_learned() -> None:
    features, labels = clouds(300, 5, 4.0)
    drawn = labels[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert probe_accuracy(features, drawn).float().mean() < 0.5 < probe_accuracy(features, labels).float().mean()


def test_the_scale_and_the_place_of_a_feature_do_not_matter() -> None:
    features, labels = clouds(60, 6, 1.0)
    moved = features.double() * torch.tensor([1e-6, 1, 1e6, 1, -3, 1]) + torch.tensor([5e-6, 1e3, 0, -7, 0, 0])
    ours, theirs = ridge_scores(features, labels, features, 3), ridge_scores(moved, labels, moved, 3)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_penalty_is_the_one_that_leaving_out_by_hand_chooses() -> None:
    features, labels = clouds(30, 8, 0.7)
    wide, wanted = features.double(), torch.eye(3, dtype=torch.float64)[labels]
    inputs = (wide - wide.mean(0)) / wide.std(0, correction=0)
    mean_square = torch.linalg.svdvals(inputs).square().mean()

    def solved(places: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, y = inputs[places], wanted[places]
        centre, mean = x.mean(0), y.mean(0)
        gram = (x - centre).T @ (x - centre) + penalty * torch.eye(8, dtype=torch.float64)
        return centre, mean, torch.linalg.solve(gram, (x - centre).T @ (y - mean))

    def error(penalty: float) -> float:
        total = 0.0
        for place in range(30):
            centre, mean, weights = solved(torch.arange(30) != place, penalty)
            total += float((wanted[place] - mean - (inputs[place] - centre) @ weights).square().sum())
        return total

    penalties = [float(10**power * mean_square) for power in torch.linspace(-6, 3, 19).tolist()]
    _, mean, weights = solved(torch.ones(30, dtype=torch.bool), min(penalties, key=error))
    assert torch.allclose(ridge_scores(features, labels, features, 3), mean + inputs @ weights, atol=1e-6)


def test_folds_have_each_class_in_its_share_and_depend_on_the_seed_alone() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10)
    number = fold_numbers(labels, folds=5, seed=3)
    assert torch.bincount(number[:50]).tolist() == [10] * 5 and torch.bincount(number[50:]).tolist() == [2] * 5
    assert torch.equal(number, fold_numbers(labels, folds=5, seed=3))
    assert not torch.equal(number, fold_numbers(labels, folds=5, seed=4))


@pytest.mark.parametrize(
    "features",
    [torch.zeros(6, 0), torch.zeros(6, 3), torch.ones(6, 1), torch.full((6, 2), 0.1)],
    ids=["none", "zeros", "ones", "tenths"],
)
def test_features_that_say_nothing_give_the_commonest_class(features: torch.Tensor) -> None:
    assert ridge_scores(features, torch.tensor([0, 1, 1, 1, 1, 0]), features, 3).argmax(dim=1).tolist() == [1] * 6


def test_a_class_that_nobody_has_seen_is_never_right() -> None:
    hits = probe_accuracy(torch.randn(7, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2]))
    assert not hits[6] and hits.dtype is torch.bool


def test_the_number_of_threads_is_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    probe_accuracy(*clouds(30, 4, 1.0))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_one_example_is_too_few() -> None:
    with pytest.raises(ValueError, match="1 examples cannot be divided into 5 folds"):
        probe_accuracy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
