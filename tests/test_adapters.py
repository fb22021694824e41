"""Adapters: each keeps what it says it keeps, refuses what it cannot do, and can be written into a plan."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.adapters.channels import Channels
from torchkeep.adapters.positions import Positions
from torchkeep.adapters.rows import Rows
from torchkeep.adapters.slicing import Slicing
from torchkeep.adapters.vocabulary import Vocabulary
from torchkeep.errors import IncompatibleCheckpointError, LoadError, SelectorError
from torchkeep.testing import AdapterTests

HEAD = {"fc": "rows"}


class TestRows(AdapterTests):
    fitting = (((3, 8), (5, 8)), ((3,), (5,)), ((7, 2, 1, 1), (5, 2, 1, 1)), ((5, 8), (5, 8)))
    refused = (((3, 8), (5, 9)), ((3, 8), (8,)), ((), ()), ((1, 8), (5, 8)), ((3, 8), (4, 8)))

    def adapter(self, **options: Any) -> Rows:
        return Rows(**options) if options else Rows({4: 0, 1: 2})


class TestNamedRows(AdapterTests):
    fitting = (((3, 8), (4, 8)), ((3,), (4,)))
    refused = (((2, 8), (4, 8)), ((3, 8), (2, 8)))

    def adapter(self, **options: Any) -> Rows:
        classes = {"old": ["cat", "dog", "tabby", "fox"], "new": ["dog", "feline", "fox"]}
        return Rows(**options) if options else Rows({"tabby": "feline"}, **classes)


class TestChannels(AdapterTests):
    fitting = (((4, 1, 3, 3), (4, 3, 3, 3)), ((4, 5, 3), (4, 3, 3)), ((4, 1, 1, 1, 1), (4, 2, 1, 1, 1)))
    refused = (
        ((4, 2, 3, 3), (4, 3, 3, 3)),
        ((4, 1, 5, 5), (4, 3, 3, 3)),
        ((4, 1), (4, 3)),
        ((5, 1, 3, 3), (4, 3, 3, 3)),
    )

    def adapter(self, **options: Any) -> Channels:
        return Channels(**options)


class TestGrid(AdapterTests):
    fitting = (((1, 26, 4), (1, 17, 4)), ((10, 4), (17, 4)))
    refused = (
        ((1, 25, 4), (1, 17, 4)),
        ((1, 26, 5), (1, 17, 4)),
        ((2, 26, 4), (2, 17, 4)),
        ((26,), (17,)),
        ((1, 1, 4), (1, 5, 4)),
    )

    def adapter(self, **options: Any) -> Positions:
        return Positions(**options) if options else Positions(1)


class TestOblongGrid(AdapterTests):
    fitting = (((1, 24, 4), (1, 6, 4)), ((24, 4), (6, 4)))
    refused = (((1, 25, 4), (1, 6, 4)), ((1, 24, 4), (1, 4, 4)))

    def adapter(self, **options: Any) -> Positions:
        return Positions(**options) if options else Positions(old=(2, 3), new=(4, 6))


class TestSequence(AdapterTests):
    fitting = (((1, 20, 4), (1, 12, 4)), ((7, 4), (12, 4)))
    refused = (((1, 2, 4), (1, 12, 4)),)

    def adapter(self, **options: Any) -> Positions:
        return Positions(**options) if options else Positions(2, dims=1)


class TestVocabulary(AdapterTests):
    fitting = (((9, 4), (7, 4)), ((9,), (7,)))
    refused = (((5, 4), (7, 4)), ((9, 5), (7, 4)), ((9,), (7, 4)))

    def adapter(self, **options: Any) -> Vocabulary:
        return Vocabulary(**options)


class TestSlicing(AdapterTests):
    fitting = (((3, 4), (5, 6)), ((5,), (7,)))
    refused = (((5, 6), (3, 4)), ((3, 8), (5, 6)), ((3,), (3, 4)))

    def adapter(self, **options: Any) -> Slicing:
        return Slicing(**options)


class TestPadding(AdapterTests):
    fitting = (((5, 6), (3, 4)), ((3, 8), (5, 6)))
    refused = (((3,), (3, 4)),)

    def adapter(self, **options: Any) -> Slicing:
        return Slicing(**options) if options else Slicing("own")


# -- what a model computes is kept ------------------------------------------------------------------------------


def head(classes: int, kind: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if kind == "linear":
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, classes))
    return nn.Sequential(nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, classes, 1))


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    "adapter",
    [
        tk.adapters.rows({4: 0, 1: 2}),
        tk.adapters.rows(old=["a", "b", "c", "d", "e"], new=["e", "x", "b"]),
        tk.adapters.rows({"e": "epsilon"}, old=list("abcde"), new=["epsilon", "x", "b"]),
    ],
)
def test_classes_on_both_sides_keep_their_scores(kind: str, adapter: Rows) -> None:
    old, new = head(5, kind, 0), head(3, kind, 1)
    own = copy.deepcopy(new)
    report = tk.load_into(new, old, adapt={"2": adapter})
    x = torch.randn(4, 6) if kind == "linear" else torch.randn(4, 6, 3, 3)
    scores, before = new(x), old(x)
    torch.testing.assert_close(scores[:, [0, 2]], before[:, [4, 1]])
    assert torch.equal(new[2].weight[[0, 2]], old[2].weight[[4, 1]])
    assert torch.equal(new[2].weight[1], own[2].weight[1]) and torch.equal(new[2].bias[1], own[2].bias[1])
    assert report.adapted == ("2.weight", "2.bias") and {m.adapter for m in report.moves} == {"", "rows"}
    assert report.coverage == pytest.approx(1 - 9 / sum(p.numel() for p in new.parameters()))
    assert "2 of 3 rows copied, 1 stay the model's own" in str(report)


def test_a_head_without_labels_stays_the_models_own() -> None:
    old, new = head(5, "linear", 0), head(5, "linear", 1)
    own = state_bits(new[2])
    report = tk.load_into(new, old, adapt={"2": "rows"})
    assert state_bits(new[2]) == own and torch.equal(new[0].weight, old[0].weight)
    assert report.adapted == ("2.weight", "2.bias") and "2.weight" not in report.loaded
    assert report.coverage_by_module == {"0": 1.0, "2": 0.0}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_stem_computes_what_it_did(dims: int, dtype: torch.dtype) -> None:
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(dims)
    old, grey, more = (nn.Sequential(kind(channels, 4, 3)).to(dtype) for channels in (3, 1, 5))
    image = torch.rand(2, 1, *[5] * dims, dtype=dtype)
    tk.load_into(grey, old, adapt={"0.weight": "channels"})
    exact = dtype is torch.float64
    torch.testing.assert_close(
        grey(image), old(image.expand(2, 3, *[5] * dims)), rtol=1e-12 if exact else 0.05, atol=1e-12 if exact else 0.05
    )
    report = tk.load_into(more, old, adapt={"0": "channels"})  # the bias fits as it is
    assert report.adapted == ("0.weight",)
    extra = torch.cat([image.expand(2, 3, *[5] * dims), torch.rand(2, 2, *[5] * dims, dtype=dtype)], 1)
    torch.testing.assert_close(
        more(extra), old(extra[:, :3]), rtol=1e-12 if exact else 0.05, atol=1e-12 if exact else 0.05
    )


class Places(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.pos = nn.Parameter(torch.randn(*shape))


def ramp(height: int, width: int) -> torch.Tensor:
    """Rows of (1, y, x), at the middles of the cells of a unit square."""
    y, x = ((torch.arange(size, dtype=torch.float64) + 0.5) / size for size in (height, width))
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    return torch.cat([torch.ones(len(grid), 1, dtype=torch.float64), grid], 1)


@pytest.mark.parametrize("lead", [(), (1,)])
def test_positions_on_a_grid_stay_where_they_are(lead: tuple[int, ...]) -> None:
    old, new = Places(*lead, 2 + 64, 3).double(), Places(*lead, 2 + 256, 3).double()
    tokens = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        old.pos.copy_(torch.cat([tokens, ramp(8, 8)]).reshape(old.pos.shape))
    report = tk.load_into(new, old, adapt={"pos": tk.adapters.positions(prefix=2)})
    rows = new.pos.detach().reshape(-1, 3)
    assert torch.equal(rows[:2], tokens)
    inner = rows[2:].reshape(16, 16, 3)[4:-4, 4:-4]
    wanted = ramp(16, 16).reshape(16, 16, 3)[4:-4, 4:-4]
    assert (inner - wanted).abs().max() < 0.1 / 16, "torch's cubic kernel moves a ramp by a tenth of a cell"
    torch.testing.assert_close(rows[2:, 0], torch.ones(256, dtype=torch.float64))
    assert "positions 8x8 -> 16x16, bicubic, 2 leading rows copied" in str(report) and report.coverage == 1.0


def test_positions_in_a_sequence_stay_where_they_are() -> None:
    old, new = Places(8, 3).double(), Places(32, 3).double()
    with torch.no_grad():
        old.pos.copy_(ramp(8, 1))
    report = tk.load_into(new, old, adapt={"pos": tk.adapters.positions(dims=1)})
    torch.testing.assert_close(new.pos.detach()[4:-4, :2], ramp(32, 1)[4:-4, :2])
    assert "8 -> 32, linear" in str(report)
    same = Places(8, 3).double()
    assert tk.load_into(same, old, adapt={"pos": tk.adapters.positions(dims=1)}).adapted == ()
    assert torch.equal(same.pos, old.pos)


class Language(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 6)
        self.inner = nn.Linear(6, 6)
        self.out = nn.Linear(6, words)
        self.out.weight = self.embed.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inner(self.embed(words))))


@pytest.mark.parametrize("both", [True, False])
def test_old_words_keep_their_scores_in_a_larger_vocabulary(both: bool) -> None:
    torch.manual_seed(0)
    old, new = Language(10), Language(13)
    own = new.embed.weight.detach()[10:].clone()
    state = old.state_dict()
    if not both:
        del state["out.weight"]
    report = tk.load_into(new, state, adapt={"embed": "vocabulary", "out.bias": "vocabulary"})
    words = torch.arange(10)
    assert torch.equal(new(words)[:, :10], old(words))
    assert torch.equal(new.embed.weight[10:], own) and new.out.weight is new.embed.weight
    assert "10 rows kept, 3 new" in str(report)
    with pytest.raises(IncompatibleCheckpointError, match="3 rows more than the model"):
        tk.load_into(old, new, adapt={"*": "vocabulary"})


def test_what_is_cut_and_filled_is_where_it_was() -> None:
    torch.manual_seed(0)
    old, small, large = nn.Linear(6, 4), nn.Linear(3, 2), nn.Linear(8, 5)
    tk.load_into(small, old, adapt={"*": "slicing"})
    x = torch.cat([torch.randn(5, 3), torch.zeros(5, 3)], 1)
    torch.testing.assert_close(small(x[:, :3]), old(x)[:, :2])
    own = large.weight.detach().clone()
    with pytest.raises(IncompatibleCheckpointError, match="pad= does not say"):
        tk.load_into(large, old, adapt={"*": "slicing"})
    tk.load_into(large, old, adapt={"*": tk.adapters.slicing(pad=0)})
    x = torch.randn(5, 8)
    torch.testing.assert_close(large(x)[:, :4], old(x[:, :6]))
    assert not large(x)[:, 4].any()
    with torch.no_grad():
        large.weight.copy_(own)
    tk.load_into(large, old, adapt={"*": tk.adapters.slicing(pad="own")})
    assert torch.equal(large.weight[:4, :6], old.weight) and torch.equal(large.weight[4:], own[4:])


# -- asking for them ---------------------------------------------------------------------------------------------


def test_nothing_is_adapted_that_was_not_asked_for() -> None:
    old, new = head(5, "linear", 0), head(3, "linear", 1)
    before = state_bits(new)
    for adapt in (None, {"2.weight": tk.adapters.rows({4: 0})}):
        with pytest.raises(IncompatibleCheckpointError, match=r"2\.bias"):
            tk.load_into(new, old, adapt=adapt)
    with pytest.raises(IncompatibleCheckpointError, match="rows: row 3 of the model is asked for, and it has 3"):
        tk.load_into(new, old, adapt={"2": tk.adapters.rows({0: 3})})
    assert state_bits(new) == before
    report = tk.load_into(new, old, adapt={"2": tk.adapters.rows({4: 0}), "0": "channels"})
    assert any("adapt='0' had nothing to do" in note for note in report.notes)


def test_wrong_requests_are_named() -> None:
    old, new = TinyNet(5), TinyNet(3)
    with pytest.raises(SelectorError, match="matches nothing") as caught:
        tk.load_into(new, old, adapt={"haed": "rows"})
    assert "'head'" in caught.value.hint
    with pytest.raises(ValueError, match="there is no adapter 'row'; known are rows, channels"):
        tk.load_into(new, old, adapt={"head": "row"})
    with pytest.raises(TypeError, match="adapt= is a dict"):
        tk.load_into(new, old, adapt="rows")
    for wrong in (
        lambda: Rows({0: 1, 2: 1}),
        lambda: Rows({-1: 0}),
        lambda: Rows({"cat": 0}),
        lambda: Rows(old=["a", "a"]),
        lambda: Rows({True: 0}),
        lambda: Positions(-1),
        lambda: Positions(dims=3),
        lambda: Positions(dims=1, old=(2, 2)),
        lambda: Positions(old=(0, 2)),
        lambda: Slicing("zeros"),
        lambda: Slicing(True),
    ):
        with pytest.raises(ValueError):
            wrong()


class Doubled:
    """An adapter of somebody else's: it is for every tensor, of equal shape too."""

    name = "doubled"
    options: dict[str, Any] = {}  # noqa: RUF012

    def fit(self, target: tk.TensorSpec, source: tk.TensorSpec) -> Any:
        from torchkeep.core.plan import Fit

        return Fit("twice the values", selects=False)

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        return value * 2


class Halved(Doubled):
    name = "halved"

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        return value[: len(value) // 2]


def test_an_instance_needs_no_row_in_the_table() -> None:
    torch.manual_seed(0)
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    report = tk.load_into(nn.DataParallel(new), old, adapt={"bias": Doubled()})
    assert torch.equal(new.bias, old.bias * 2) and report.adapted == ("bias",)
    with pytest.raises(tk.errors.PartialLoadError, match="halved made"):
        tk.load_into(new, old, adapt={"weight": Halved()})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("half", [False, True])
def test_files_are_adapted_and_cast_like_anything_else(tmp_path: Path, suffix: str, half: bool) -> None:
    old, new = TinyNet(5), TinyNet(3)
    saved = copy.deepcopy(old).half() if half else old
    path = tmp_path / f"old{suffix}"
    if suffix == ".pth":
        torch.save(saved.state_dict(), path)
    else:
        tk.save(saved, path)
    report = tk.load_into(new, path, adapt={"head": tk.adapters.rows({4: 0, 0: 1, 1: 2})}, assign=True)
    assert torch.equal(new.head.weight, saved.head.weight[[4, 0, 1]].float())
    assert report.coverage == 1.0 and new.head.weight.requires_grad


def test_on_the_meta_device_rows_that_stay_are_initialised() -> None:
    old = TinyNet(5)
    with torch.device("meta"):
        new = TinyNet(3)
    torch.manual_seed(3)
    tk.load_into(new, old, adapt={"head": tk.adapters.rows({4: 0})})
    torch.manual_seed(3)
    nn.Linear(4, 3)  # the same initialiser with the same numbers
    assert torch.equal(new.head.weight[0], old.head.weight[4])
    assert new.head.weight[1:].isfinite().all() and new.head.weight[1:].abs().max() <= 0.5
    assert new.head.weight[1:].std() > 0
    with torch.device("meta"):
        bare = Places(9, 3)
    with pytest.raises(LoadError, match="vocabulary keeps values of the model in pos"):
        tk.load_into(bare, Places(4, 3), adapt={"pos": "vocabulary"})
    assert bare.pos.is_meta
    tk.load_into(bare, Places(4, 3), adapt={"pos": tk.adapters.positions()})
    assert bare.pos.isfinite().all()


def test_a_sum_that_half_precision_cannot_hold_is_refused() -> None:
    old = nn.Conv2d(3, 1, 1, bias=False).half()
    with torch.no_grad():
        old.weight.fill_(40_000)
    new = nn.Conv2d(1, 1, 1, bias=False).half()
    before = state_bits(new)
    with pytest.raises(IncompatibleCheckpointError, match="too large"):
        tk.load_into(new, old, adapt={"weight": "channels"})
    assert state_bits(new) == before


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.tensor([70_000, 1]), torch.float16),
        (torch.tensor([1e300 + 0j], dtype=torch.complex128), torch.complex64),
        (torch.tensor([1e6]), torch.float8_e5m2),
        (torch.tensor([1e6]), torch.float8_e4m3fn),
        (torch.tensor([1e300], dtype=torch.float64), torch.float32),
    ],
)
def test_no_cast_makes_a_finite_number_infinite(value: torch.Tensor, dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("x", torch.zeros(len(value)).to(dtype))
    with pytest.raises(IncompatibleCheckpointError, match="too large"):
        tk.load_into(model, {"x": value})
    assert not model.x.to(torch.complex128).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_floats_of_eight_bits_are_cast_either_way(dtype: torch.dtype) -> None:
    small = torch.tensor([448.0, -0.5, float("nan")]).to(torch.float8_e4m3fn)
    model = nn.Module()
    model.register_buffer("x", torch.zeros(3, dtype=dtype))
    tk.load_into(model, {"x": small})
    assert model.x[:2].tolist() == [448.0, -0.5] and model.x[2].isnan()
    model.x = torch.zeros(3).to(torch.float8_e4m3fn)
    tk.load_into(model, {"x": torch.tensor([448.0, -0.5, 2.0], dtype=dtype)})
    assert model.x.float().tolist() == [448.0, -0.5, 2.0]
