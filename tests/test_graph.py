"""A model saved with its graph: it runs and trains without its class, and nothing of the graph is read unasked."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.core.digests import digest_bytes
from torchkeep.core.facts import KEY
from torchkeep.errors import (
    CorruptCheckpointError,
    GraphWarning,
    RebuildError,
    SaveError,
    UnsafeCheckpointError,
)
from torchkeep.exporting import graph as graphs
from torchkeep.exporting.graph import load_graph

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

IMAGES = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A graph says that modes stay; the tests about that catch it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)
        yield


def saved(model: nn.Module, folder: Path, example: Any = IMAGES, **options: Any) -> Path:
    path = folder / "m.safetensors"
    tk.save(model, path, example_inputs=example, **options)
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the facts of a file and make its header's digest right again, as one who means harm would."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    facts = json.loads(header["__metadata__"][KEY])
    change(facts)
    facts["header"] = "0" * 64
    header["__metadata__"][KEY] = json.dumps(facts, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    text = text.replace(b"0" * 64, digest_bytes(text).encode(), 1)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any, **__: Any) -> Any:
        raise AssertionError("torch was asked to read the graph")

    monkeypatch.setattr(torch.export, "load", touched)


# -- what a graph gives back


def test_a_graph_computes_and_has_the_state_flags_and_ties_of_the_model(tmp_path: Path) -> None:
    model = TinyNet().eval()
    model.conv.requires_grad_(False)
    path = saved(model, tmp_path)
    made = load_graph(path)
    assert torch.equal(made(IMAGES), model(IMAGES))
    for rows in (1, 3, 9):
        images = torch.randn(rows, 1, 5, 5)
        torch.testing.assert_close(made(images), model(images))
    assert list(made.state_dict()) == list(model.state_dict())
    assert made.tied.weight is made.fc.weight
    assert {name: one.requires_grad for name, one in made.named_parameters()} == {
        name: one.requires_grad for name, one in model.named_parameters()
    }
    assert all(not module.training for module in made.modules())


def test_the_graph_has_no_weights_and_the_weights_are_an_ordinary_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    path = saved(model, tmp_path, torch.randn(2, 512))
    assert path.with_suffix(".pt2").stat().st_size < 40_000 and path.stat().st_size > 2_000_000
    fresh = copy.deepcopy(model)
    with torch.no_grad():
        fresh[0].weight.zero_()
    assert tk.load_into(fresh, path).coverage == 1
    assert state_bits(fresh) == state_bits(model)
    assert "m.pt2" in str(tk.open(path))


def test_no_values_of_the_example_and_no_paths_of_the_source_are_in_the_graph(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path, torch.full((4, 1, 5, 5), 1234.5))
    with zipfile.ZipFile(path.with_suffix(".pt2")) as archive:
        held = b"".join(archive.read(name) for name in archive.namelist())
    assert torch.tensor(1234.5).numpy().tobytes() not in held
    assert b"models.py" not in held and os.fsencode(Path(__file__).parent) not in held


def test_opening_a_graph_says_where_the_weights_are(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    ckpt = tk.open(path.with_suffix(".pt2"))
    assert [finding.code for finding in ckpt.findings] == ["no-weights"]
    assert ckpt["conv.weight"].shape == (4, 1, 3, 3) and ckpt.devices == ("meta",)
    with pytest.raises(tk.errors.TorchkeepError):
        tk.load_into(TinyNet(), path.with_suffix(".pt2"))


def test_torch_alone_opens_the_graph_and_computes_nothing_that_could_be_mistaken(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    program = torch.export.load(path.with_suffix(".pt2"))
    assert program.module()(IMAGES).isnan().all()


def test_another_dtype(tmp_path: Path) -> None:
    dtype = torch.bfloat16
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).to(dtype)
    example = torch.randn(3, 5).to(dtype)
    made = load_graph(saved(model, tmp_path, example))
    assert torch.equal(made(example), model(example)) and made(example).dtype is dtype


class Keeping(nn.Module):
    """Keeps things while it runs, which in an export are no tensors of this world."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.last = x * 2
        return self.last


class Odd(nn.Module):
    """A tensor without elements, a buffer that is not saved, a plain tensor, an empty module, and an unused one."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(0, 3))
        self.table = nn.Embedding(7, 3)
        self.empty = nn.ModuleDict()
        self.unused = nn.Linear(2, 2)
        self.twin = self.table
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 2.0]), persistent=False)
        self.register_buffer("count", torch.tensor(3, dtype=torch.int64))
        self.plain = torch.tensor([5.0, 6.0, 7.0])

    def forward(self, ids: torch.Tensor, *, scale: torch.Tensor | None = None, options: Any = None) -> Any:
        rows = self.twin(ids) * self.mask + self.plain
        rows = rows if scale is None else rows * scale[:, None, None]
        if options is not None:
            rows = rows + options["shift"][0] + len(options["name"])
        return {"rows": rows, "pair": (torch.cat([self.none, rows[:, 0]]), self.count)}


def test_odd_modules_and_named_and_nested_inputs(tmp_path: Path) -> None:
    model = Odd().eval()
    example = {
        "ids": torch.tensor([[0, 1], [2, 3], [4, 6]]),
        "options": {"shift": [torch.ones(3, 2, 3)], "name": "abc"},
        "scale": torch.tensor([1.0, 2.0, 3.0]),
    }
    made = load_graph(saved(model, tmp_path, example))
    got, wanted = pytree.tree_leaves(made(**example)), pytree.tree_leaves(model(**example))
    assert len(got) == 3 and all(map(torch.equal, got, wanted))
    assert list(made.state_dict()) == list(model.state_dict())
    assert made.twin.weight is made.table.weight
    assert made.none.shape == (0, 3) and made.none.requires_grad
    assert sorted(name for name, _ in made.named_buffers()) == ["count", "mask"]


def test_names_with_odd_characters(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("größe-1 x", nn.Linear(3, 3))
    model.add_module("0", nn.Linear(3, 2))
    made = load_graph(saved(model, tmp_path, torch.ones(2, 3)))
    assert list(made.state_dict()) == list(model.state_dict())
    assert torch.equal(made(torch.ones(5, 3)), model(torch.ones(5, 3)))


def test_a_name_that_torch_cannot_say_is_found_before_anything_is_written(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("class", nn.Linear(3, 2))
    with pytest.raises(SaveError, match="SyntaxError"):
        saved(model, tmp_path, torch.ones(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_the_inputs_stay_as_they_are(tmp_path: Path) -> None:
    example = torch.ones(4, 3)
    before = dict(vars(example))
    saved(nn.Linear(3, 2), tmp_path, example)
    assert vars(example) == before and torch.equal(example, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.LSTM(3, 4, num_layers=2, batch_first=True), (2, 5, 3)),
        (lambda: nn.TransformerEncoderLayer(8, 2, batch_first=True).eval().requires_grad_(False), (2, 5, 8)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (2, 3)),
        (lambda: nn.DataParallel(nn.Linear(3, 4)), (2, 3)),
    ],
    ids=["lstm", "transformer", "weight_norm", "data_parallel"],
)
def test_layers_that_are_not_like_others(make: Callable[[], nn.Module], shape: Any, tmp_path: Path) -> None:
    model, example = make(), torch.randn(*shape)
    before, modes = state_bits(model), [module.training for module in model.modules()]
    made = load_graph(saved(model, tmp_path, example))
    longer = torch.cat([example, example])
    for got, wanted in zip(pytree.tree_leaves(made(longer)), pytree.tree_leaves(model(longer)), strict=True):
        torch.testing.assert_close(got, wanted)
    assert state_bits(model) == before and [module.training for module in model.modules()] == modes


def test_a_compiled_model_is_looked_through(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    made = load_graph(saved(torch.compile(model, backend="eager"), tmp_path, torch.ones(2, 3)))
    assert list(made.state_dict()) == ["weight", "bias"]


def test_saving_disturbs_neither_the_model_nor_the_generators(tmp_path: Path) -> None:
    model = TinyNet()
    model.bn.eval()
    before, modes = state_bits(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    saved(model, tmp_path)
    assert state_bits(model) == before and torch.equal(torch.get_rng_state(), generator)
    keeping = Keeping()
    saved(keeping, tmp_path, torch.ones(2, 3))
    assert keeping.calls == 0 and not hasattr(keeping, "last")
    assert [module.training for module in model.modules()] == modes
    model(IMAGES).sum().backward()
    assert all(one.grad is not None for one in model.parameters())


def test_a_single_row_is_example_enough(tmp_path: Path) -> None:
    model = TinyNet().eval()
    made = load_graph(saved(model, tmp_path, IMAGES[:1]))
    assert torch.equal(made(IMAGES), model(IMAGES))
    assert tk.open(tmp_path / "m.safetensors").facts.graph.inputs == ["float32[1, 1, 5, 5]"]


def test_a_graph_model_is_saved_loaded_and_copied_like_any_other(tmp_path: Path) -> None:
    model = TinyNet().eval()
    made = load_graph(saved(model, tmp_path))
    report = tk.save(made, tmp_path / "again.safetensors")
    assert [note for note in report.notes if "load_model" in note] == [report.notes[-1]]
    assert "its graph is not saved" in report.notes[-1]
    fresh = TinyNet().eval()
    assert tk.load_into(fresh, tmp_path / "again.safetensors").coverage == 1
    assert torch.equal(fresh(IMAGES), model(IMAGES))
    tk.load_into(made, TinyNet().state_dict())
    assert not torch.equal(made(IMAGES), model(IMAGES))
    tk.load_into(made, model.state_dict())
    tk.save(made, tmp_path / "third.safetensors", example_inputs=IMAGES)
    assert torch.equal(load_graph(tmp_path / "third.safetensors")(IMAGES), model(IMAGES))
    copied = copy.deepcopy(made)
    assert copied.tied.weight is copied.fc.weight and copied.fc.weight is not made.fc.weight
    with torch.no_grad():
        copied.head.bias.add_(1)
    assert torch.equal(copied(IMAGES), made(IMAGES) + 1) or torch.allclose(copied(IMAGES), made(IMAGES) + 1)
    copied.double()
    assert copied(IMAGES.double()).dtype is torch.float64 and made(IMAGES).dtype is torch.float32
    with pytest.raises(TypeError, match="cannot be pickled"):
        torch.save(made, tmp_path / "x.pth")


# -- modes


def test_modes_stay_and_that_is_said(tmp_path: Path) -> None:
    model = TinyNet().eval()
    report = tk.save(model, tmp_path / "m.safetensors", example_inputs=IMAGES)
    assert any("in eval mode: batch_norm, dropout" in note for note in report.notes)
    with pytest.warns(GraphWarning, match="exported in eval mode, and stays so .*: batch_norm, dropout"):
        made = load_graph(tmp_path / "m.safetensors")
    with pytest.warns(GraphWarning) as said:
        tk.load_model(tmp_path / "m.safetensors", trust_graph=True)
    assert [one.filename for one in said] == [__file__]
    with pytest.warns(GraphWarning, match="exported in eval mode: train\\(\\) changes nothing"):
        assert made.train() is made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.Sequential(made).train().eval()
    assert not made.training and torch.equal(made(IMAGES), model(IMAGES))


def test_a_graph_exported_in_train_mode_drops_and_normalises_batches(tmp_path: Path) -> None:
    made = load_graph(saved(TinyNet(), tmp_path))
    assert made.training and made.bn.training
    torch.manual_seed(0)
    before = made.bn.running_mean.clone()
    assert not torch.equal(made(IMAGES), made(IMAGES))
    assert not torch.equal(made.bn.running_mean, before) and made.bn.num_batches_tracked == 2
    with pytest.warns(GraphWarning, match="exported in train mode: eval\\(\\) changes nothing"):
        made.eval()


def test_the_extra_state_of_modules_is_in_the_file_and_that_the_graph_has_none_is_said(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"seen": torch.ones(2), "steps": 3}

        def set_extra_state(self, state: Any) -> None:
            self.state = state

    report = tk.save(Extra(3, 2), tmp_path / "m.safetensors", example_inputs=torch.ones(2, 3))
    assert any("extra state" in note for note in report.notes)
    assert sorted(dict(load_graph(tmp_path / "m.safetensors").named_parameters())) == ["bias", "weight"]
    fresh = Extra(3, 2)
    tk.load_into(fresh, tmp_path / "m.safetensors")
    assert fresh.state["steps"] == 3


def test_a_frozen_part_keeps_its_mode_and_flags(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, "* but head")
    made = load_graph(saved(model, tmp_path))
    assert [name for name, one in made.named_parameters() if one.requires_grad] == ["head.weight", "head.bias"]
    assert made.head.training and not made.bn.training
    made(IMAGES)
    assert made.bn.num_batches_tracked == 0


class Placed(nn.Module):
    """Makes tensors of its own, and has one that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.plain = torch.ones(3)
        self.register_buffer("mask", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) + torch.arange(3, device=x.device) + self.plain * self.mask


def test_everything_goes_to_the_device(tmp_path: Path) -> None:
    path = saved(Placed(), tmp_path, torch.ones(2, 3))
    made = load_graph(path, device="meta")  # the one other device that is everywhere
    assert made(torch.ones(5, 3, device="meta")).device.type == "meta"
    assert {one.device.type for one in (*made.parameters(), *made.buffers())} == {"meta"}


def test_a_model_without_modal_layers_is_loaded_without_a_word(tmp_path: Path) -> None:
    path = saved(nn.Linear(3, 2).eval(), tmp_path, torch.ones(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_graph(path).eval()


# -- what cannot be exported is said before anything is written


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(4, 3) + 1


def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SaveError, match="data-dependent expression") as caught:
        saved(Branching(), tmp_path, torch.ones(4, 3))
    assert "nothing was written" in str(caught.value) and "without example_inputs" in caught.value.hint
    assert len(caught.value.message) < 600 and "\n" not in caught.value.message
    assert f"at test_graph.py:{Branching.forward.__code__.co_firstlineno + 1}: return x if x.sum() > 0" in str(
        caught.value
    )
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_a_batch_that_cannot_be_free_is_said_and_can_be_fixed(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="constant \\(4\\)") as caught:
        saved(Fixed(), tmp_path, torch.ones(4, 3))
    assert "dynamic_shapes=None" in caught.value.hint and list(tmp_path.iterdir()) == []
    made = load_graph(saved(Fixed(), tmp_path, torch.ones(4, 3), dynamic_shapes=None))
    assert torch.equal(made(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    with pytest.raises(AssertionError, match="Guard failed"):
        made(torch.ones(2, 6))
    assert not tk.open(tmp_path / "m.safetensors").facts.graph.batch


def test_other_sizes_can_be_free(tmp_path: Path) -> None:
    model = nn.Conv1d(2, 3, 3)
    free = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim("length", min=8)},)
    made = load_graph(saved(model, tmp_path, torch.ones(2, 2, 10), dynamic_shapes=free))
    torch.testing.assert_close(made(torch.ones(3, 2, 17)), model(torch.ones(3, 2, 17)))


@pytest.mark.parametrize(
    ("obj", "options", "message"),
    [
        (nn.Linear(3, 2), {"example_inputs": 5}, "no tensor in it"),
        (nn.Linear(3, 2), {"example_inputs": (torch.ones(2, 3), torch.ones(2))}, "cannot be called"),
        (nn.Linear(3, 2), {"example_inputs": torch.ones(2, 3), "dynamic_shapes": "sequence"}, "none of the words"),
        (nn.Linear(3, 2), {"example_inputs": torch.ones(2, 4)}, "cannot be exported"),
        (nn.Linear(3, 2), {"example_inputs": torch.ones(2, 3), "max_shard_size": 8}, "beside the one file"),
        (nn.Linear(3, 2, device="meta"), {"example_inputs": torch.ones(2, 3)}, "on the meta device"),
        ({"a": torch.ones(1)}, {"example_inputs": torch.ones(2, 3)}, "of a live model"),
        (nn.Sequential(nn.DataParallel(nn.Linear(3, 2))), {"example_inputs": torch.ones(2, 3)}, "name tensors"),
    ],
)
def test_refusals(obj: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=message):
        tk.save(obj, tmp_path / "m.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_objects_among_the_inputs_are_refused(tmp_path: Path) -> None:
    class Takes(nn.Module):
        def forward(self, x: torch.Tensor, how: Any) -> torch.Tensor:
            return x + 1

    with pytest.raises(SaveError):
        saved(Takes(), tmp_path, (torch.ones(2, 3), object()))
    assert list(tmp_path.iterdir()) == []


# -- crashes and full disks


def test_a_failed_save_leaves_the_old_weights_with_the_old_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TinyNet().eval()
    path = saved(model, tmp_path)
    there = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> Any:
        raise tk.errors.NoSpaceError("the disk is full")

    monkeypatch.setattr("torchkeep.saving.write_contents", full)
    with pytest.raises(tk.errors.NoSpaceError, match="the disk is full"):
        tk.save(TinyNet(5).eval(), path, example_inputs=IMAGES)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == there
    assert torch.equal(load_graph(path)(IMAGES), model(IMAGES))


def test_a_crash_between_the_two_files_leaves_weights_and_a_graph_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(TinyNet().eval(), tmp_path)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(graphs, "_put", killed)
    other = TinyNet(5).eval()
    with pytest.raises(KeyboardInterrupt):
        tk.save(other, path, example_inputs=IMAGES)
    fresh = TinyNet(5)
    assert tk.load_into(fresh, path).coverage == 1 and state_bits(fresh) == state_bits(other)
    with pytest.raises(RebuildError, match="not the graph that was saved with"):
        load_graph(path)
    assert not tk.verify(path).ok


# -- files that were moved, mixed up, damaged or made to do harm


def test_the_files_are_moved_and_renamed_together_or_not_at_all(tmp_path: Path) -> None:
    model = TinyNet().eval()
    path = saved(model, tmp_path)
    assert tk.verify(path).ok
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(path, folder / "new.safetensors")
    with pytest.raises(RebuildError, match=r"m\.pt2, which is not beside it") as caught:
        load_graph(folder / "new.safetensors")
    assert "move both files" in caught.value.hint
    report = tk.verify(folder / "new.safetensors")
    assert not report.damaged and report.unchecked == ("its graph, m.pt2, is not beside it",)
    shutil.copy(path.with_suffix(".pt2"), folder / "new.pt2")
    assert torch.equal(load_graph(folder / "new.safetensors")(IMAGES), model(IMAGES))


def test_a_converted_file_has_no_graph_and_that_is_said(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    report = tk.convert(path, tmp_path / "n.safetensors")
    assert "the graph in m.pt2 belongs to" in str(report)
    with pytest.raises(RebuildError, match="saved without a graph"):
        load_graph(tmp_path / "n.safetensors")


def test_without_a_graph_that_is_said(tmp_path: Path) -> None:
    tk.save(TinyNet(), tmp_path / "m.safetensors")
    with pytest.raises(RebuildError, match="saved without a graph"):
        load_graph(tmp_path / "m.safetensors")


def test_the_graph_alone_is_no_model_and_that_is_said(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    with pytest.raises(RebuildError, match="is a program") as caught:
        tk.load_model(path.with_suffix(".pt2"))
    assert "trust_graph=True" in caught.value.hint


def test_a_graph_of_another_save_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    tk.save(nn.Linear(3, 2), tmp_path / "other.safetensors", example_inputs=torch.ones(2, 3))
    shutil.copy(tmp_path / "other.pt2", path.with_suffix(".pt2"))
    refuse_reading(monkeypatch)
    with pytest.raises(RebuildError, match="another size"):
        load_graph(path)


def test_a_flipped_bit_is_found_before_torch_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    data = bytearray(path.with_suffix(".pt2").read_bytes())
    refuse_reading(monkeypatch)
    for place in range(0, len(data), len(data) // 7):
        data[place] ^= 1
        path.with_suffix(".pt2").write_bytes(data)
        with pytest.raises(RebuildError, match="another digest"):
            load_graph(path)
        data[place] ^= 1
    path.with_suffix(".pt2").write_bytes(data[:-5])
    with pytest.raises(RebuildError, match="another size"):
        load_graph(path)


@pytest.mark.parametrize("name", ["../m.pt2", "/etc/m.pt2", "a/../m.pt2", "..\\m.pt2", "m.pt2\0"])
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = saved(TinyNet().eval(), folder)
    shutil.move(folder / "m.pt2", tmp_path / "m.pt2")
    rewritten(path, lambda facts: facts["graph"].update(name=name))
    refuse_reading(monkeypatch)
    with pytest.raises((CorruptCheckpointError, UnsafeCheckpointError)):
        load_graph(path)


def test_a_name_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    for name in ("m.safetensors", "\x1b[2Jm.pt2", ""):
        rewritten(path, lambda facts, name=name: facts["graph"].update(name=name))
        with pytest.raises(UnsafeCheckpointError, match=r"no \.pt2 file") as caught:
            load_graph(path)
        assert "\x1b" not in str(caught.value)


def replaced(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write another graph and make the file of the weights vouch for it."""
    beside = path.with_suffix(".pt2")
    with zipfile.ZipFile(beside) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(beside, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    data = beside.read_bytes()
    rewritten(path, lambda facts: facts["graph"].update(digest=digest_bytes(data), nbytes=len(data)))


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def pickled(mark: Path, folder: Path) -> bytes:
    torch.save(((Harm(mark),), {}), folder / "harm.pt")
    data = (folder / "harm.pt").read_bytes()
    (folder / "harm.pt").unlink()
    return data


def first(records: dict[str, bytes], ending: str) -> str:
    return next(name for name in records if name.endswith(ending))


def test_more_than_a_program_is_refused_even_with_the_right_digest(tmp_path: Path) -> None:
    mark = tmp_path / "harmed"
    harm = pickled(mark, tmp_path)

    def inputs(records: dict[str, bytes]) -> None:
        records[first(records, "sample_inputs/model.pt")] = harm

    def native(records: dict[str, bytes]) -> None:
        records["archive/data/aotinductor/model/model.so"] = b"\x7fELF"

    def custom(records: dict[str, bytes]) -> None:
        records["archive/data/constants/opaque_obj_0"] = harm

    def subclass(records: dict[str, bytes]) -> None:
        config = first(records, "model_weights_config.json")
        parsed = json.loads(records[config])
        row = parsed["config"]["conv.weight"]
        row["use_pickle"] = True
        records["archive/data/weights/" + row["path_name"]] = harm
        records[config] = json.dumps(parsed).encode()

    def legacy(records: dict[str, bytes]) -> None:
        records["archive/data/weights/model.pt"] = harm

    path = saved(TinyNet().eval(), tmp_path)
    whole = path.read_bytes(), path.with_suffix(".pt2").read_bytes()
    for change in (inputs, native, custom, subclass, legacy):
        path.write_bytes(whole[0])
        path.with_suffix(".pt2").write_bytes(whole[1])
        replaced(path, change)
        with pytest.raises(UnsafeCheckpointError, match="a graph that torchkeep writes has none"):
            load_graph(path)
        assert not mark.exists()


def test_a_broken_program_with_the_right_digest_is_an_error_of_torchkeep(tmp_path: Path) -> None:
    def emptied(records: dict[str, bytes]) -> None:
        records[first(records, "models/model.json")] = b"{}"

    path = saved(TinyNet().eval(), tmp_path)
    replaced(path, emptied)
    with pytest.raises(RebuildError, match=r"cannot load m\.pt2"):
        load_graph(path)
    path.with_suffix(".pt2").write_bytes(b"no archive at all")
    rewritten(
        path,
        lambda facts: facts["graph"].update(
            digest=digest_bytes(b"no archive at all"), nbytes=len(b"no archive at all")
        ),
    )
    with pytest.raises(RebuildError, match="cannot be read"):
        load_graph(path)


def test_weights_that_do_not_fit_their_graph_are_named(tmp_path: Path) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    graph = msgspec.to_builtins(tk.open(path).facts.graph)
    tk.save(TinyNet(5).eval(), path)
    rewritten(path, lambda facts: facts.update(graph=graph))
    with pytest.raises(
        RebuildError, match=r"'head.weight', float32\[5, 4\] in the file and float32\[3, 4\] in the graph"
    ):
        load_graph(path)
    tk.save(TinyNet().eval(), path)
    other = list(tk.open(path)).index("head.bias")

    def demoted(facts: dict[str, Any]) -> None:
        facts["graph"] = graph
        facts["runs"]["parameters"] = [at for at in places(facts["runs"]["parameters"]) if at[0] != other]
        facts["runs"]["parameters"] = [number for at in facts["runs"]["parameters"] for number in at]
        facts["runs"]["buffers"] = [
            number for at in sorted([*places(facts["runs"]["buffers"]), (other, 1)]) for number in at
        ]

    rewritten(path, demoted)
    with pytest.raises(RebuildError, match=r"'head\.bias', which is a parameter on one side only"):
        load_graph(path)
    tk.save(nn.Linear(2, 2), path)
    rewritten(path, lambda facts: facts.update(graph=graph))
    with pytest.raises(RebuildError, match="on one side only"):
        load_graph(path)


def places(runs: list[int]) -> list[tuple[int, int]]:
    """Runs [first, count, ...] as one (place, 1) for each place."""
    pairs = zip(runs[::2], runs[1::2], strict=True)
    return [(at, 1) for first, count in pairs for at in range(first, first + count)]


def test_opening_and_loading_weights_never_touches_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(TinyNet().eval(), tmp_path)
    refuse_reading(monkeypatch)
    tk.open(path)
    tk.load(path)
    tk.load_into(TinyNet(), path)
    tk.open(path.with_suffix(".pt2"))
    assert tk.verify(path).ok and tk.scan(tmp_path).severity in {"none", "info", "warning"}


# -- the real network, in a process that does not have its class


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EfficientNet-Lite0 with its ImageNet weights, saved with its graph."""
    model = EfficientNetLite0().eval()
    assert tk.load_into(model, imagenet_weights()).coverage == 1
    folder = tmp_path_factory.mktemp("real")
    example = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tk.save(model, folder / "lite0.safetensors", example_inputs=example)
    torch.save(
        [(images, model(images).detach()) for images in (example, example.repeat(3, 1, 1, 1)[:5] * 0.5)],
        folder / "outputs.pth",
    )
    return folder / "lite0.safetensors"


WITHOUT_CLASS = """
import sys, warnings
import torch
warnings.simplefilter("ignore")
import torchkeep as tk
torch.set_num_threads(1)
try:
    import network
    sys.exit("the class is here")
except ImportError:
    pass
model = tk.load_model(sys.argv[1], trust_graph=True)
model.eval()
for images, expected in torch.load(sys.argv[2]):
    worst = float((model(images) - expected).abs().max())
    assert worst <= 1e-5 * float(expected.abs().max()), worst  # the bits depend on the number of threads
torch.manual_seed(0)
images, classes = torch.randn(4, 3, 32, 32), torch.arange(4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model.train()
losses = []
for _ in range(20):
    loss = torch.nn.functional.cross_entropy(model(images), classes)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert "network" not in sys.modules
print(*losses)
"""


def test_a_real_network_runs_and_trains_where_its_class_does_not_exist(real: Path) -> None:
    path = real
    assert path.with_suffix(".pt2").stat().st_size < path.stat().st_size / 20
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_CLASS, str(path), str(path.with_name("outputs.pth"))],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(Path(tk.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    losses = [float(word) for word in done.stdout.split()]
    assert len(losses) == 20 and losses[-1] < 0.5 * losses[0]
    assert sum(later < earlier for earlier, later in pairwise(losses)) > 12
