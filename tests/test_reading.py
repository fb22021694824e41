"""How bytes come from a file: straight into parameters, as views of the file, mapped or by large reads side by side."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep import applying
from torchkeep.core.tensors import LazyTensor
from torchkeep.engines import mounts, reader_for
from torchkeep.engines.filling import Job, bytes_of, fill, is_dense, place_of
from torchkeep.engines.local import LocalFile
from torchkeep.engines.mapped import MappedSource
from torchkeep.engines.parallel import ParallelSource
from torchkeep.engines.staging import HostLane, Sending, send_all
from torchkeep.errors import CorruptCheckpointError, OpenError, PartialLoadError

SAVES: dict[str, Callable[[nn.Module, Path], object]] = {
    "safetensors": tk.save,
    "torch_zip": lambda model, path: torch.save(model.state_dict(), path),
    "torch_legacy": lambda model, path: torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False),
}


class Wide(nn.Module):
    """A large tensor, many small ones, two that are tied, a buffer, and one of another order of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.big = nn.Parameter(torch.randn(1500, 1501))
        self.many = nn.ParameterList([nn.Parameter(torch.randn(3, 5)) for _ in range(300)])
        self.fc = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.fc.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.register_buffer("count", torch.tensor(7))


def two(kind: str, folder: Path) -> tuple[nn.Module, nn.Module, Path]:
    """A model, its file, and another model of its kind."""
    torch.manual_seed(0)
    a, b = Wide(), Wide()
    b.count.zero_()
    path = folder / f"a.{kind}"
    SAVES[kind](a, path)
    return a, b, path


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every tensor whose values do not go straight from the file into the model."""
    seen: list[Any] = []
    original = applying.value_of

    def counted(tensor: Any) -> torch.Tensor:
        seen.append(tensor)
        return original(tensor)

    monkeypatch.setattr(applying, "value_of", counted)
    return seen


# -- straight into the parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["mapped", "parallel"])
@pytest.mark.parametrize("kind", SAVES)
def test_bytes_go_straight_into_the_parameters(tmp_path: Path, one_by_one: list[Any], kind: str, engine: str) -> None:
    a, b, path = two(kind, tmp_path)
    before = {name: parameter.data_ptr() for name, parameter in b.named_parameters()}
    report = tk.load_into(b, tk.open(path, engine=engine))
    assert state_bits(a) == state_bits(b) and report.coverage == 1 and report.applied
    assert {name: parameter.data_ptr() for name, parameter in b.named_parameters()} == before
    # torchkeep's own files are row-major; torch keeps the order of the dimensions that the weight has.
    assert [lazy.shape for lazy in one_by_one] == ([(4, 3, 3, 3)] if kind == "safetensors" else [])


def test_thousands_of_small_tensors_take_a_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ParameterList([nn.Parameter(torch.full((9,), float(i))) for i in range(3000)])
    torch.save(model.state_dict(), tmp_path / "a.pth")  # between two of them lies the header of a record
    ckpt = tk.open(tmp_path / "a.pth")
    for parameter in model:
        nn.init.zeros_(parameter)
    calls = []
    original = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        calls.append(offset)
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    tk.load_into(model, ckpt)
    assert all((parameter == i).all() for i, parameter in enumerate(model))
    assert 1 <= len(calls) < 30


def test_large_tensors_are_read_by_several_threads_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, path = two("safetensors", tmp_path)
    ckpt = tk.open(path)
    monkeypatch.setattr(MappedSource, "threads", 2)
    together = threading.Barrier(2, timeout=60)  # breaks unless two are inside at once
    original, waited = LocalFile.read_into, threading.local()

    def meeting(self: LocalFile, offset: int, buffers: Any) -> None:
        if not hasattr(waited, "yes"):
            waited.yes = together.wait()
        original(self, offset, buffers)

    monkeypatch.setattr(LocalFile, "read_into", meeting)
    tk.load_into(b, ckpt)
    assert state_bits(a) == state_bits(b)


def test_what_lies_otherwise_is_copied_as_ever(tmp_path: Path, one_by_one: list[Any]) -> None:
    base = torch.randn(6, 8)
    state = {
        "cast": torch.randn(3).half(),
        "turned": base.T,
        "slice": base[1:3],
        "gaps": base[:, ::2],
        "conj": torch.randn(2, dtype=torch.complex64).conj(),
        "spread": torch.ones(1).expand(4),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(2.0),
    }
    torch.save(state, tmp_path / "a.pth")
    model = nn.Module()
    for name, value in state.items():
        like = torch.zeros(value.shape, dtype=torch.float32 if name == "cast" else value.dtype)
        model.register_buffer(name, like)
    model.register_buffer("odd", torch.zeros(8, 6).T)
    torch.save(state | {"odd": base}, tmp_path / "a.pth")
    tk.load_into(model, tmp_path / "a.pth")
    for name, value in (state | {"odd": base}).items():
        assert torch.equal(getattr(model, name), value.to(getattr(model, name).dtype)), name
    assert len(one_by_one) == len(state) + 1 - 2, "the slice and the scalar went straight"


def test_autograd_notices_that_a_parameter_was_read_into(tmp_path: Path) -> None:
    _, b, path = two("safetensors", tmp_path)
    versions = {name: parameter._version for name, parameter in b.named_parameters()}
    out = (b.fc.weight * b.fc.weight).sum()
    tk.load_into(b, path)
    assert all(parameter._version > versions[name] for name, parameter in b.named_parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_memory_that_parameters_share_gets_the_last_value_in_order(tmp_path: Path) -> None:
    flat = torch.zeros(8)
    model = nn.Module()
    model.register_buffer("one", flat[:6])
    model.register_buffer("two", flat[3:])
    torch.save({"two": torch.full((5,), 2.0), "one": torch.ones(6)}, tmp_path / "a.pth")  # the other order
    tk.load_into(model, tmp_path / "a.pth")
    assert flat.tolist() == [1.0] * 3 + [2.0] * 5


def test_tensors_of_inference_mode_are_refused_as_copying_refuses_them(tmp_path: Path) -> None:
    with torch.inference_mode():
        model = nn.Linear(2, 2)
    tk.save({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(PartialLoadError, match="inference"):
        tk.load_into(model, tmp_path / "a.safetensors")
    with torch.inference_mode():
        tk.load_into(model, tmp_path / "a.safetensors")
    assert (model.weight == 1).all()


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("engine", ["mapped", "parallel"])
def test_a_file_that_was_shortened_leaves_the_model_untouched(tmp_path: Path, engine: str, assign: bool) -> None:
    _, b, path = two("safetensors", tmp_path)
    ckpt, before = tk.open(path, engine=engine), state_bits(b)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptCheckpointError, match="shortened while it was open"):
        tk.load_into(b, ckpt, assign=assign)
    assert state_bits(b) == before


@pytest.mark.parametrize("lane", [False, True])
def test_a_read_that_fails_half_way_names_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lane: bool
) -> None:
    a, b, path = two("torch_legacy", tmp_path)
    ckpt = tk.open(path)
    big = place_of(ckpt["big"])
    assert big is not None
    original = LocalFile.read_into

    def failing(self: LocalFile, offset: int, buffers: Any) -> None:
        if offset + sum(map(len, buffers)) > big.offset + big.nbytes - 8 > offset:
            os.truncate(path, big.offset + big.nbytes - 8)
        original(self, offset, buffers)

    monkeypatch.setattr(LocalFile, "read_into", failing)
    if lane:
        monkeypatch.setitem(applying._LANES, "cpu", lambda device: HostLane())
    with pytest.raises(PartialLoadError, match="shortened") as caught:
        tk.load_into(b, ckpt)
    applied = caught.value.applied
    assert isinstance(caught.value.__cause__, CorruptCheckpointError) and "big" not in applied
    assert applied or lane, "one buffer holds all of this file"
    assert all(torch.equal(b.state_dict()[name], a.state_dict()[name]) for name in applied)


def test_a_disk_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, b, path = two("torch_zip", tmp_path)
    ckpt = tk.open(path)

    def broken(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(PartialLoadError, match="Input/output error") as caught:
        tk.load_into(b, ckpt)
    assert isinstance(caught.value.__cause__, OpenError) and str(path) in str(caught.value)


def test_systems_without_preadv_read_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, path = two("torch_zip", tmp_path)
    monkeypatch.delattr(os, "preadv")
    tk.load_into(b, path)
    assert state_bits(a) == state_bits(b)


def test_order_and_gaps_of_elements_are_told_apart() -> None:
    assert is_dense((2, 3), (3, 1)) and is_dense((2, 3), (1, 2)) and is_dense((1, 4), (99, 1)) and is_dense((), ())
    assert not is_dense((2, 3), (4, 1)) and not is_dense((2, 2, 2), (1, 1, 5)) and not is_dense((4,), (0,))


def test_pieces_of_every_size_arrive_where_they_belong(tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "x").write_bytes(data)
    source = MappedSource(tmp_path / "x")
    spans = [(0, 1), (1, 3_000_000), (3_000_001, 5), (3_000_100, 40_000), (2_999_990, 50), (4_999_999, 1), (7, 0)]
    targets = [torch.zeros(nbytes, dtype=torch.uint8) for _, nbytes in spans]
    finished = bytearray(len(spans))
    fill([Job(source, start, bytes_of(to)) for (start, _), to in zip(spans, targets, strict=True) if len(to)])
    fill([Job(source, at, bytes_of(to)) for (at, _), to in zip(spans[:-1], targets, strict=False)], finished[:-1])
    for (start, nbytes), target in zip(spans, targets, strict=True):
        assert bytes(target.numpy()) == data[start : start + nbytes]


# -- to devices, through a lane that ends in memory of the processor ----------------------------------------------


class LateLane(HostLane):
    """Copies at the last moment: what was overwritten in the buffer by then is seen in the target."""

    def __init__(self) -> None:
        self.queued: list[tuple[torch.Tensor, torch.Tensor]] = []

    def send(self, host: torch.Tensor, target: torch.Tensor) -> None:
        self.queued.append((host, target))

    def settle(self) -> None:
        for host, target in self.queued:
            target.copy_(host)
        self.queued.clear()


@pytest.mark.parametrize("lane", [HostLane, LateLane])
@pytest.mark.parametrize("nbytes", [64, 1000, 1 << 20])
def test_buffers_are_filled_again_only_when_they_were_sent(tmp_path: Path, lane: type[HostLane], nbytes: int) -> None:
    data = os.urandom(50_000)
    (tmp_path / "x").write_bytes(data)
    source = MappedSource(tmp_path / "x")
    spans = [(0, 1), (1, 20_000), (20_001, 5), (20_010, 4000), (19_000, 50), (49_999, 1)]
    targets = [torch.zeros(size, dtype=torch.uint8) for _, size in spans]
    finished = bytearray(len(spans))
    jobs = [Sending(source, start, target) for (start, _), target in zip(spans, targets, strict=True)]
    send_all(jobs, lane(), finished, nbytes=nbytes)
    assert all(finished)
    for (start, size), target in zip(spans, targets, strict=True):
        assert bytes(target.numpy()) == data[start : start + size]


@pytest.mark.parametrize("kind", SAVES)
def test_a_model_is_loaded_through_a_lane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    a, b, path = two(kind, tmp_path)
    versions = {name: parameter._version for name, parameter in b.named_parameters()}
    monkeypatch.setitem(applying._LANES, "cpu", lambda device: LateLane())
    tk.load_into(b, path)
    assert state_bits(a) == state_bits(b)
    assert all(parameter._version > versions[name] for name, parameter in b.named_parameters())


# -- views of the file --------------------------------------------------------------------------------------------


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the memory of a tensor is a mapping of a file, as the system sees it."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, rest = line.partition("-")
        stop = rest.partition(" ")[0]
        if int(start, 16) <= tensor.data_ptr() < int(stop, 16):
            return line.endswith(str(path))
    return False


@pytest.mark.parametrize("kind", ["safetensors", "torch_zip"])
def test_parameters_become_views_of_the_file_and_stay_what_they_are(tmp_path: Path, kind: str) -> None:
    a, b, path = two(kind, tmp_path)
    tk.freeze(b, "big")
    data = path.read_bytes()
    objects = {name: id(parameter) for name, parameter in b.named_parameters()}
    optimizer = torch.optim.SGD(b.parameters(), lr=0.5)
    report = tk.load_into(b, path, assign=True)
    assert state_bits(a) == state_bits(b)
    assert is_mapped(b.big, path) and is_mapped(b.many[7], path) and is_mapped(b.fc.weight, path)
    assert {name: id(parameter) for name, parameter in b.named_parameters()} == objects
    assert b.tied.weight is b.fc.weight and not b.big.requires_grad and b.fc.weight.requires_grad
    assert any("are views of" in note and str(path) in note and "overwritten" in note for note in report.notes)
    b.fc(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(a.fc.weight, b.fc.weight), "an optimizer that was made before reaches the parameters"
    assert path.read_bytes() == data, "what is written stays in this process"
    assert torch.equal(tk.open(path)["fc.weight"].load(), a.fc.weight)


def test_a_model_without_memory_gets_that_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    a = nn.ModuleDict({"net": TinyNet(), "rnn": nn.LSTM(3, 2)})
    a["net"].fc.weight.requires_grad = False
    torch.save(a.state_dict(), tmp_path / "a.pth")
    with torch.device("meta"):
        b = nn.ModuleDict({"net": TinyNet(), "rnn": nn.LSTM(3, 2)})
    b["net"].fc.weight.requires_grad = False
    report = tk.load_into(b, tmp_path / "a.pth", assign=True)
    assert state_bits(a) == state_bits(b)
    assert all(is_mapped(parameter, tmp_path / "a.pth") for parameter in b.parameters())
    assert b["net"].tied.weight is b["net"].fc.weight and not b["net"].fc.weight.requires_grad
    assert type(b["rnn"].weight_ih_l0) is nn.Parameter and b["rnn"].weight_ih_l0.requires_grad
    inputs = torch.ones(1, 3)
    assert torch.equal(b["rnn"](inputs)[0], a["rnn"](inputs)[0]), "a recurrent layer uses the new weights"
    assert any("are views of" in note for note in report.notes)


def test_a_recurrent_layer_on_the_meta_device_uses_what_was_copied() -> None:
    a = nn.LSTM(3, 2)
    with torch.device("meta"):
        b = nn.LSTM(3, 2)
    tk.load_into(b, a)
    assert b._flat_weights[0] is b.weight_ih_l0
    assert torch.equal(b(torch.ones(1, 3))[0], a(torch.ones(1, 3))[0])


def test_no_two_models_share_what_is_written(tmp_path: Path) -> None:
    """One checkpoint twice, and one tensor of the file in two places of a model that does not tie them."""
    weight = torch.randn(4, 4)
    torch.save({"one.weight": weight, "two.weight": weight}, tmp_path / "a.pth")
    ckpt = tk.open(tmp_path / "a.pth")
    first, second = (nn.ModuleDict({"one": nn.Linear(4, 4, False), "two": nn.Linear(4, 4, False)}) for _ in range(2))
    for model in (first, second):
        report = tk.load_into(model, ckpt, assign=True)
        assert any("1 tensors could not become views" in note for note in report.notes)
    with torch.no_grad():
        first["one"].weight.zero_()
        ckpt["one.weight"].load().fill_(3)
    for other in (first["two"], second["one"], second["two"]):
        assert torch.equal(other.weight, weight)


def test_what_cannot_be_a_view_is_copied_and_the_report_says_so(tmp_path: Path) -> None:
    a = TinyNet()
    state = a.state_dict() | {"conv.weight": a.conv.weight.detach().half()}
    torch.save(state, tmp_path / "a.pth")
    b = TinyNet()
    shared = TinyNet()
    shared.share_memory()
    for model, source in [(b, tmp_path / "a.pth"), (shared, tk.open(tmp_path / "a.pth")), (TinyNet(), a.state_dict())]:
        pointer = model.conv.weight.data_ptr()
        report = tk.load_into(model, source, assign=True)
        assert torch.allclose(model.conv.weight, a.conv.weight, atol=1e-3)
        assert model.conv.weight.data_ptr() == pointer and model.conv.weight.dtype == torch.float32
        assert any("were copied" in note and "conv.weight" in note for note in report.notes)
        assert torch.equal(model.fc.weight, a.fc.weight)
    assert is_mapped(b.fc.weight, tmp_path / "a.pth") and shared.fc.weight.is_shared()
    parallel = TinyNet()
    report = tk.load_into(parallel, tk.open(tmp_path / "a.pth", engine="parallel"), assign=True)
    assert torch.equal(parallel.fc.weight, a.fc.weight) and not any("are views of" in note for note in report.notes)
    with torch.device("meta"):
        empty = TinyNet()
    tk.load_into(empty, tmp_path / "a.pth", assign=True)
    assert empty.conv.weight.dtype == torch.float32 and torch.equal(empty.conv.weight, state["conv.weight"].float())


def test_views_outlive_the_checkpoint_and_the_name_of_the_file(tmp_path: Path) -> None:
    a, b, path = two("safetensors", tmp_path)
    tk.load_into(b, path, assign=True)
    tk.save(Wide(), path)
    assert state_bits(a) == state_bits(b), "torchkeep replaces files and never writes into them"
    path.unlink()
    assert state_bits(a) == state_bits(b)


# -- engines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAVES)
def test_both_engines_read_the_same(tmp_path: Path, kind: str) -> None:
    a, _, path = two(kind, tmp_path)
    ckpts = {engine: tk.open(path, engine=engine) for engine in ("mapped", "parallel")}
    for name, lazy in ckpts["parallel"].items():
        assert lazy.source.engine == "parallel" and ckpts["mapped"][name].source.engine == "mapped"
        assert torch.equal(lazy.load(), ckpts["mapped"][name].load()) and torch.equal(lazy.load(), a.state_dict()[name])
    assert torch.equal(ckpts["parallel"]["big"][3:5], a.big[3:5])
    assert tk.load(path, engine="parallel").keys() == tk.load(path, engine="mapped").keys()


@pytest.mark.parametrize("name", ["big", "fc.bias"])
def test_a_tensor_of_the_parallel_engine_belongs_to_the_caller(tmp_path: Path, name: str) -> None:
    a, _, path = two("torch_zip", tmp_path)
    ckpt = tk.open(path, engine="parallel")
    loaded = ckpt[name].load()
    assert not is_mapped(loaded, path)
    loaded.fill_(5)
    assert torch.equal(ckpt[name].load(), a.state_dict()[name])
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert (loaded == 5).all()


def test_opening_in_parallel_reads_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 1_000_000_000
    header = json.dumps({"a": {"dtype": "F32", "shape": [gigabyte // 4], "data_offsets": [0, gigabyte]}}).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + gigabyte)
    read = []
    original = LocalFile.read_into

    def counted(self: LocalFile, offset: int, buffers: Any) -> None:
        read.append(sum(map(len, buffers)))
        original(self, offset, buffers)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    ckpt = tk.open(tmp_path / "a.safetensors", engine="parallel")
    assert sum(read) < 300_000
    read.clear()
    assert ckpt["a"][10:20].shape == (10,) and sum(read) < 2_000_000


def test_small_reads_in_a_row_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    source = ParallelSource(tmp_path / "x")
    calls = []
    original = LocalFile.read_into

    def counted(self: LocalFile, offset: int, buffers: Any) -> None:
        calls.append(offset)
        original(self, offset, buffers)

    monkeypatch.setattr(LocalFile, "read_into", counted)
    for at in range(0, len(data), 1000):
        assert bytes(source.read(at, 1000)) == data[at : at + 1000]
    assert len(calls) < 12
    calls.clear()
    for at in (5, 2_000_000, 17, 2_999_999, 0):
        assert bytes(source.read(at, 1)) == data[at : at + 1]
    assert len(calls) == 5 and bytes(source.read(0, len(data))) == data and len(source.read(9, 0)) == 0
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        source.read(len(data), 1)


@pytest.mark.parametrize("engine", ["mapped", "parallel"])
def test_a_file_that_shrinks_is_noticed_by_each_engine(tmp_path: Path, engine: str) -> None:
    _, _, path = two("safetensors", tmp_path)
    ckpt = tk.open(path, engine=engine)
    ckpt["fc.bias"].load()
    os.truncate(path, 500)
    for name in ("big", "fc.bias", "many.3"):
        with pytest.raises(CorruptCheckpointError, match="shortened while it was open"):
            ckpt[name].load()


@pytest.mark.parametrize("engine", ["mapped", "parallel"])
def test_shards_are_read_by_the_engine_of_their_index(tmp_path: Path, engine: str) -> None:
    tk.save({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    tk.save({"b": torch.ones(3)}, tmp_path / "two.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        ckpt = tk.open(path, engine=engine)
        places = [place_of(lazy) for lazy in ckpt.values()]
        assert {place.source.engine for place in places if place} == {engine} and len(places) == 2
        model = nn.ParameterDict({"a": torch.zeros(2), "b": torch.zeros(3)})
        tk.load_into(model, ckpt)
        assert (model["a"] == 1).all() and (model["b"] == 1).all()


def test_engines_that_cannot_be_are_named(tmp_path: Path) -> None:
    tk.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    for wrong in (lambda: tk.open(tmp_path / "a.safetensors", engine="quick"), lambda: tk.load("x", engine="quick")):
        with pytest.raises(ValueError, match="no engine 'quick'; known are mapped, parallel"):
            wrong()
    with pytest.raises(ValueError, match="for local files"):
        tk.open(MappedSource(tmp_path / "a.safetensors"), engine="parallel")
    with pytest.raises(ValueError, match="for local files"):
        tk.open("https://example.com/a.safetensors", engine="parallel")
    with pytest.raises(ValueError, match="leave one out"):
        tk.load(tmp_path / "a.safetensors", mmap=True, engine="parallel")


MOUNTS = r"""22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /data rw,relatime shared:9 - nfs4 server:/export rw,vers=4.2
31 30 259:2 / /data/fast rw,relatime - xfs /dev/nvme1n1 rw
32 22 0:41 / /with\040space rw - fuse.sshfs somebody@host: rw
33 22 0:42 / /twice rw - ext4 /dev/sdb rw
34 22 0:43 / /twice rw - lustre mgs:/fs rw
35 22 0:44 / /local rw - fuseblk /dev/sdc rw
a line that nobody understands
36 22 0:45 /
"""


@pytest.mark.parametrize(
    ("path", "networked"),
    [
        ("/a.pth", False),
        ("/data/a.pth", True),
        ("/data", True),
        ("/database/a.pth", False),
        ("/data/fast/a.pth", False),
        ("/with space/a.pth", True),
        ("/twice/a.pth", True),
        ("/local/a.pth", False),
    ],
)
def test_network_file_systems_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, networked: bool
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "mountinfo")
    assert mounts.is_networked(Path(path)) is networked
    assert reader_for(path) is (ParallelSource if networked else MappedSource)
    assert reader_for(path, "mapped") is MappedSource


def test_where_nothing_is_said_of_mounts_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts.is_networked(tmp_path) is False
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "nothing")
    assert reader_for(tmp_path / "a.pth") is MappedSource
    assert mounts.is_networked(Path("a\0b")) is False


def test_a_network_file_system_is_read_in_parallel_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tk.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / "mountinfo").write_text(f"1 1 0:1 / {tmp_path} rw - nfs server:/ rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "mountinfo")
    assert tk.open(tmp_path / "a.safetensors")["a"].source.engine == "parallel"
    assert tk.open(tmp_path / "a.safetensors", engine="mapped")["a"].source.engine == "mapped"
    assert not is_mapped(tk.load(tmp_path / "a.safetensors", mmap=True)["a"], tmp_path / "a.safetensors")


def test_a_file_that_cannot_be_mapped_says_how_to_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tk.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(19, "No such device")

    monkeypatch.setattr("mmap.mmap", refused)
    with pytest.raises(OpenError, match="No such device") as caught:
        tk.open(tmp_path / "a.safetensors")
    assert "engine='parallel'" in caught.value.hint
    assert (tk.open(tmp_path / "a.safetensors", engine="parallel")["a"].load() == 1).all()


# -- whole objects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["mapped", "parallel"])
def test_a_loaded_object_has_memory_of_its_own_and_no_more_than_it_needs(tmp_path: Path, engine: str) -> None:
    base = torch.randn(400_000)
    obj = {"base": base, "view": base[5:9], "alone": torch.randn(300_000), "small": torch.randn(3), "n": 4}
    torch.save(obj, tmp_path / "a.pth")
    back = tk.load(tmp_path / "a.pth", engine=engine)
    (tmp_path / "a.pth").write_bytes(bytes((tmp_path / "a.pth").stat().st_size))
    assert all(torch.equal(back[name], obj[name]) for name in ("base", "view", "alone", "small")) and back["n"] == 4
    assert back["alone"].untyped_storage().nbytes() == 1_200_000, "what is saved again must not drag others along"
    back["base"][5] = 77
    assert back["view"][0] == 77
    seen = []
    torch.save(obj, tmp_path / "a.pth")
    placed = tk.load(tmp_path / "a.pth", engine=engine, device=lambda storage, device: seen.append(storage.nbytes()))
    assert torch.equal(placed["base"], base) and sorted(seen) == [12, 1_200_000, 1_600_000]
    meta = tk.load(tmp_path / "a.pth", engine=engine, device={"cpu": "meta"})
    assert meta["base"].is_meta


# -- files that may be mapped are replaced, never written into -------------------------------------------------------


@pytest.mark.parametrize("what", ["save", "convert", "convert to torch"])
def test_files_are_replaced_and_get_the_mode_that_the_user_asked_for(tmp_path: Path, what: str) -> None:
    tk.save({"a": torch.zeros(1000)}, tmp_path / "new.safetensors")
    path = tmp_path / ("x.pth" if what == "convert to torch" else "x.safetensors")
    torch.save({"a": torch.ones(1000)}, path)
    held, number = tk.open(path)["a"].load(), path.stat().st_ino
    old = os.umask(0o027)
    try:
        if what == "save":
            tk.save({"a": torch.zeros(1000)}, path)
        else:
            tk.convert(tmp_path / "new.safetensors", path)
    finally:
        os.umask(old)
    assert (held == 1).all() and path.stat().st_ino != number
    assert (tk.open(path)["a"].load() == 0).all()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_packs_and_manifests_of_a_run_get_the_mode_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with tk.Run(tmp_path / "run") as run:
            run.resume(model=TinyNet())
            run.save(0)
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*.safetensors")}
    assert modes == {0o640}


def test_composites_go_the_general_way(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    lazy = tk.open(tmp_path / "a.pth")["a"]
    assert type(lazy) is not LazyTensor and place_of(lazy) is None
