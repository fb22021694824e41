"""Opening through the public API: lazy to the byte, sharing kept, containers found, hostile files harmless."""

from __future__ import annotations

import json
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchkeep as tk
from models import TinyNet
from torchkeep.cli.app import app
from torchkeep.core.tensors import DTYPES
from torchkeep.engines.mapped import MappedSource
from torchkeep.errors import (
    CorruptCheckpointError,
    SelectorError,
    TorchkeepError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedFeatureError,
)

GIGABYTE = 1_000_000_000


class Recording:
    """A Source that remembers which bytes were asked for."""

    def __init__(self, path: Path) -> None:
        self._inner = MappedSource(path)
        self.name, self.size = self._inner.name, self._inner.size
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, nbytes: int) -> memoryview:
        self.reads.append((offset, nbytes))
        return self._inner.read(offset, nbytes)

    def sibling(self, name: str) -> Any:
        raise AssertionError("nothing refers to another file")

    def take(self) -> list[tuple[int, int]]:
        reads, self.reads = self.reads, []
        return reads


def big_state() -> dict[str, torch.Tensor]:
    return {f"layer{i}.weight": torch.empty(GIGABYTE // 40, dtype=torch.float32) for i in range(10)}


def write_big(kind: str, path: Path) -> None:
    """Files of a gigabyte that take no time and no disk: the tensors' bytes are never written."""
    if kind == "torch_zip":
        with torch.serialization.skip_data():
            torch.save(big_state(), path)
    elif kind == "safetensors":
        offsets = [(f"layer{i}.weight", i * GIGABYTE // 10) for i in range(10)]
        header = json.dumps(
            {
                n: {"dtype": "F32", "shape": [GIGABYTE // 40], "data_offsets": [o, o + GIGABYTE // 10]}
                for n, o in offsets
            }
        ).encode()
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + GIGABYTE)


@pytest.mark.parametrize("kind", ["safetensors", "torch_zip"])
def test_a_gigabyte_is_opened_by_its_header_and_a_tensor_by_its_bytes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "big"
    write_big(kind, path)
    source = Recording(path)
    assert source.size >= GIGABYTE
    ckpt = tk.open(source)
    assert ckpt.format == kind and len(ckpt) == 10
    assert sum(nbytes for _, nbytes in source.take()) < 100_000, "opening reads the header"
    tensor = ckpt["layer7.weight"]
    loaded = tensor.load()
    assert loaded.shape == (GIGABYTE // 40,)
    assert tensor.storage is not None
    assert source.take() == [(tensor.storage.offset, GIGABYTE // 10)]
    rows = tensor[1000:1003]
    assert rows.shape == (3,) and source.take() == [(tensor.storage.offset + 4000, 12)]


def test_a_legacy_file_is_opened_by_its_pickles_and_a_tensor_by_its_bytes(tmp_path: Path) -> None:
    state = {f"layer{i}.weight": torch.full((1_000_000,), float(i)) for i in range(10)}
    torch.save(state, tmp_path / "big.pth", _use_new_zipfile_serialization=False)
    source = Recording(tmp_path / "big.pth")
    ckpt = tk.open(source)
    assert ckpt.format == "torch_legacy" and sum(nbytes for _, nbytes in source.take()) < 500_000 < source.size // 50
    assert (ckpt["layer7.weight"].load() == 7).all()
    assert source.take() == [(ckpt["layer7.weight"].storage.offset, 4_000_000)]


def test_a_tensor_without_gaps_is_loaded_as_one_of_its_own(tmp_path: Path) -> None:
    """Not as a view of something larger: its storage is its bytes, so saving it elsewhere saves no more than it."""
    path = tmp_path / "x.safetensors"
    shapes = {"matrix": (2, 3), "row": (1, 5), "scalar": (), "cube": (2, 1, 4), "empty": (0, 3)}
    state = {
        f"{name}.{dtype}": torch.ones(shape, dtype=row.torch) for name, shape in shapes.items() for dtype, row in ROWS
    }
    tk.save(state, path)
    for name, tensor in tk.open(path).items():
        loaded, wanted = tensor.load(), state[name]
        assert (loaded.shape, loaded.stride(), loaded.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
        assert loaded._base is None and loaded.is_leaf and loaded.storage_offset() == 0
        assert loaded.untyped_storage().nbytes() == wanted.nbytes and bits(loaded) == bits(wanted), name
    before, tensor = path.read_bytes(), tk.open(path)["matrix.float32"]
    tensor.load().mul_(5).requires_grad_()
    assert (tensor.load() == 5).all() and path.read_bytes() == before, "a private view"


ROWS = [(name, row) for name, row in DTYPES.items() if not name.startswith(("float4", "float8_e8m0"))]


def test_slices_read_the_span_between_first_and_last_element(tmp_path: Path) -> None:
    base = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    obj = {"plain": base, "turned": base.permute(3, 1, 0, 2), "scalar": torch.tensor(2.0), "empty": torch.empty(0, 3)}
    torch.save(obj, tmp_path / "x.pth")
    source = Recording(tmp_path / "x.pth")
    ckpt = tk.open(source)
    source.take()
    for index in [
        0,
        -1,
        (slice(None), 1),
        (..., 2),
        (slice(0, 2), slice(1, 3), slice(None, None, 2)),
        None,
        (1, ..., None),
    ]:
        for name in ("plain", "turned"):
            assert torch.equal(ckpt[name][index], obj[name][index]), (name, index)
    assert all(nbytes <= base.nbytes for _, nbytes in source.take())
    assert torch.equal(ckpt["plain"][[1, 0]], base[[1, 0]])
    assert torch.equal(ckpt["plain"][base > 7], base[base > 7])
    assert ckpt["scalar"][...] == 2 and ckpt["empty"][0:0].shape == (0, 3)
    with pytest.raises(IndexError):
        ckpt["plain"][5]


def test_what_shared_memory_shares_it_again(tmp_path: Path) -> None:
    base = torch.arange(10.0)
    obj = {"base": base, "view": base[2:5], "twice": [base, base]}
    torch.save(obj, tmp_path / "x.pth")
    back = tk.load(tmp_path / "x.pth")
    back["base"][3] = 99
    assert back["view"][1] == 99 and back["twice"][0] is back["twice"][1] is back["base"]
    assert back["view"].untyped_storage().data_ptr() == back["base"].untyped_storage().data_ptr()
    ckpt = tk.open(tmp_path / "x.pth")
    one, other = ckpt["base"].load(), ckpt["view"].load()
    one[3] = 7
    assert other[1] == 7, "single loads share the mapping"
    assert tk.open(tmp_path / "x.pth")["base"].load()[3] == 3, "and the file is as it was"


def test_load_gives_what_torch_gives(tmp_path: Path) -> None:
    model = TinyNet()
    optimizer = torch.optim.Adam(model.parameters())
    obj = {"state": model.state_dict(), "opt": optimizer.state_dict(), "t": (1, [2.5, None], {"k": torch.Size([3])})}
    torch.save(obj, tmp_path / "x.pth")
    ours, theirs = tk.load(tmp_path / "x.pth"), torch.load(tmp_path / "x.pth")
    assert ours["t"] == theirs["t"] and ours["opt"] == theirs["opt"]
    assert type(ours["state"]) is OrderedDict and ours["state"]._metadata == theirs["state"]._metadata
    TinyNet().load_state_dict(ours["state"])


def test_loaded_parameters_are_parameters(tmp_path: Path) -> None:
    torch.save([nn.Parameter(torch.ones(2)), torch.ones(2, requires_grad=True)], tmp_path / "x.pt")
    parameter, tensor = tk.load(tmp_path / "x.pt", device="cpu")
    assert type(parameter) is nn.Parameter and type(tensor) is torch.Tensor and tensor.requires_grad


@pytest.mark.parametrize("nothing", [None, [], {}, 3, "text"])
def test_objects_without_tensors_open_and_load(tmp_path: Path, nothing: Any) -> None:
    torch.save(nothing, tmp_path / "x.pt")
    assert len(tk.open(tmp_path / "x.pt")) == 0
    assert tk.load(tmp_path / "x.pt") == nothing


def test_a_whole_model_opens_without_its_class_and_gives_its_state_dict(checkpoints: Path) -> None:
    ckpt = tk.open(checkpoints / "torch2.13.0-py3.11" / "cnn_whole_model.pth")
    assert ckpt.kind == "module" and ckpt.modules[0].class_name == "gone_pkg.nets.SmallCNN"
    state = tk.open(checkpoints / "torch2.13.0-py3.11" / "cnn_state_dict.pth")
    assert list(ckpt.model) == list(state)
    assert ckpt["conv1.weight"].requires_grad and ckpt["bn1.running_mean"].kind == "buffer"


def test_attributes_and_passing_buffers_are_listed_but_not_in_the_model(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3)
            self.plain = torch.ones(4)
            self.register_buffer("passing", torch.ones(2), persistent=False)
            self.register_buffer("kept", torch.ones(2))

    globals()["Odd"] = Odd
    Odd.__qualname__ = "Odd"
    torch.save({"net": Odd()}, tmp_path / "x.pth")
    ckpt = tk.open(tmp_path / "x.pth")
    assert ckpt.model_key == "net"
    assert set(ckpt.model) == set(Odd().state_dict())
    assert {"net.plain", "net.passing"} <= set(ckpt)


def test_names_that_would_collide_are_told_apart(tmp_path: Path) -> None:
    obj = {
        "a.b": torch.tensor(1),
        "a": {"b": torch.tensor(2)},
        1: torch.tensor(3),
        "1": torch.tensor(4),
        "c.d": torch.tensor(5),
    }
    torch.save(obj, tmp_path / "x.pth")
    ckpt = tk.open(tmp_path / "x.pth")
    assert {name: int(tensor.load()) for name, tensor in ckpt.items()} == {
        r"a\.b": 1, "a.b": 2, "1": 3, "1~2": 4, "c.d": 5,
    }  # fmt: skip


def test_sub_and_missing_names_say_what_is_near(tmp_path: Path) -> None:
    torch.save(TinyNet().state_dict(), tmp_path / "x.pth")
    ckpt = tk.open(tmp_path / "x.pth")
    assert set(ckpt.sub("conv")) == {"weight", "bias"}
    with pytest.raises(KeyError, match=r"conv\.weight"):
        ckpt["conv.wieght"]
    with pytest.raises(SelectorError, match="below 'cnv'") as caught:
        ckpt.sub("cnv")
    assert "conv" in caught.value.hint


def test_the_model_and_what_else_it_could_have_been(tmp_path: Path) -> None:
    state = TinyNet().state_dict()
    torch.save(
        {"params_ema": state, "params": state, "optimizer": {"state": {}, "param_groups": []}}, tmp_path / "x.pth"
    )
    ckpt = tk.open(tmp_path / "x.pth")
    assert (ckpt.model_key, ckpt.candidates) == ("params", ("params", "params_ema"))
    assert set(ckpt.model) == set(state) and "params (of params, params_ema)" in str(ckpt)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"a": torch.ones(100_000), "b": torch.ones(100_000)}, path)
    ckpt = tk.open(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CorruptCheckpointError, match="shortened while it was open"):
        ckpt["b"].load()


def test_formats_can_be_passed_as_parts(tmp_path: Path) -> None:
    class Raw:
        """A format of ten lines: float32 numbers and nothing else."""

        name = "raw"

        def sniff(self, probe: Any) -> bool:
            return probe.size % 4 == 0

        def open(self, source: tk.Source, limits: tk.Limits) -> tk.Checkpoint:
            from torchkeep.core.tensors import StorageRef

            spec = tk.TensorSpec(torch.float32, (source.size // 4,))
            tensor = tk.LazyTensor(source, StorageRef(source.size, 0), spec, (1,))
            return tk.Checkpoint(source.name, self.name, {"numbers": tensor})

    (tmp_path / "x.raw").write_bytes(torch.arange(5.0).numpy().tobytes())
    assert tk.open(tmp_path / "x.raw", formats=[Raw()])["numbers"].load().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="there is no format 'onnx'"):
        tk.open(tmp_path / "x.raw", formats=["onnx"])


def test_a_run_or_any_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="folder"):
        tk.open(tmp_path)


# Loading whole objects as torch.load does


def test_devices_are_mapped_as_torch_maps_them(tmp_path: Path) -> None:
    whole = {"a": torch.arange(4.0), "b": nn.Parameter(torch.ones(2)), "step": 3}
    torch.save(whole | {"view": whole["a"][1:]}, tmp_path / "w.pth")
    for device in (None, "cpu", torch.device("cpu"), {}, {"cuda:0": "cpu"}, {"cpu": "cpu"}):
        loaded = tk.load(tmp_path / "w.pth", device=device)
        assert torch.equal(loaded["a"], whole["a"]) and loaded["step"] == 3
        assert loaded["view"].untyped_storage().data_ptr() == loaded["a"].untyped_storage().data_ptr()
    moved = tk.load(tmp_path / "w.pth", device="meta")
    assert {value.device.type for value in moved.values() if isinstance(value, torch.Tensor)} == {"meta"}
    mapped = tk.load(tmp_path / "w.pth", device={"cpu": "meta"})
    assert mapped["a"].device.type == "meta" and isinstance(mapped["b"], nn.Parameter)


def test_a_function_places_each_storage_once(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    torch.save({"a": base, "view": base[1:], "b": torch.ones(2)}, tmp_path / "w.pth")
    seen: list[tuple[int, str]] = []

    def copied(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        seen.append((storage.nbytes(), location))
        return storage.clone()

    loaded = tk.load(tmp_path / "w.pth", device=copied)
    assert sorted(seen) == [(8, "cpu"), (16, "cpu")]
    assert torch.equal(loaded["view"], base[1:])
    assert loaded["view"].untyped_storage().data_ptr() == loaded["a"].untyped_storage().data_ptr()
    kept = tk.load(tmp_path / "w.pth", device=lambda storage, location: None)
    assert torch.equal(kept["a"], base)
    reference = torch.load(tmp_path / "w.pth", map_location=copied, weights_only=False)
    assert all(torch.equal(loaded[name], reference[name]) for name in reference)


def test_a_file_from_a_gpu_loads_here(checkpoints: Path) -> None:
    folder = checkpoints / "torch2.13.0-py3.11"
    found = [path for path in sorted(folder.glob("*.pth")) if "cuda:0" in tk.open(path).devices]
    assert found
    for path in found[:5]:
        wanted = torch.load(path, map_location="cpu", weights_only=False) if "whole" not in path.name else None
        loaded = tk.load(path)
        if isinstance(wanted, dict) and isinstance(loaded, dict):
            assert wanted.keys() == loaded.keys()


def test_strict_loading_refuses_code_and_records(tmp_path: Path, evil: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(UnsupportedFeatureError, match="Linear") as caught:
        tk.load(tmp_path / "whole.pth", strict=True)
    assert caught.value.place == "model"
    with pytest.raises(UnsafeCheckpointError, match="system"):
        tk.load(evil / "exec_reduce_posix_system.pth", strict=True)
    torch.save(nn.Linear(2, 2).state_dict() | {"lr": 0.1}, tmp_path / "plain.pth")
    assert tk.load(tmp_path / "plain.pth", strict=True)["lr"] == 0.1


def test_the_devices_here_are_listed() -> None:
    assert tk.devices()[0] == "cpu"
    assert all(torch.empty(0, device=name).device.type in name for name in tk.devices())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "SGD"),
        (torch.optim.Adam, "Adam"),
        (torch.optim.AdamW, "AdamW"),
        (torch.optim.RMSprop, "RMSprop"),
        (torch.optim.LBFGS, "LBFGS"),
        (torch.optim.Adagrad, "Adagrad"),
        (torch.optim.NAdam, "NAdam"),
        (torch.optim.Rprop, "Rprop"),
        (torch.optim.ASGD, "ASGD"),
        (torch.optim.Adadelta, "Adadelta"),
    ],
)
def test_the_optimizer_is_guessed_by_its_options(make: Any, name: str, tmp_path: Path) -> None:
    optimizer = make(nn.Linear(2, 2).parameters())
    torch.save({"model": nn.Linear(2, 2).state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "t.pth")
    assert tk.open(tmp_path / "t.pth").provenance.optimizer == name
    torch.save({"optimizer_states": [optimizer.state_dict()], "epoch": 1}, tmp_path / "lightning.ckpt")
    assert tk.open(tmp_path / "lightning.ckpt").provenance.optimizer == name
    torch.save(optimizer, tmp_path / "whole.pth")
    assert tk.open(tmp_path / "whole.pth").provenance.optimizer == name


# What a file tells of a model


def test_a_pickled_module_is_described(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)).eval()
    model[0].register_forward_hook(print)
    torch.save({"net": model}, tmp_path / "m.pth")
    modules = {module.path: module for module in tk.open(tmp_path / "m.pth").modules}
    assert modules["net"].children == ("0", "1") and modules["net"].training is False
    assert modules["net.0"].attributes["kernel_size"] == (3, 3)
    assert dict(modules["net.0"].parameters) == {"weight": True, "bias": None}
    assert modules["net.0"].hooks == {"_forward_hooks": ("__builtin__.print",)}
    assert modules["net.1"].buffers == ("running_mean", "running_var", "num_batches_tracked")


def test_a_state_dict_tells_of_its_modules(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2)))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "s.pth")
    ckpt = tk.open(tmp_path / "s.pth")
    found = {module.path: (module.children, module.version) for module in ckpt.modules}
    assert found == {
        "state_dict": (("0", "1"), 1),
        "state_dict.0": ((), 1),
        "state_dict.1": (("0",), 1),
        "state_dict.1.0": ((), 2),
    }
    assert [module.path for module in ckpt.model.modules] == ["", "0", "1", "1.0"]
    assert [module["version"] for module in tk.to_json(ckpt)["modules"]] == [1, 1, 1, 2]


@pytest.fixture
def markers() -> Iterator[Path]:
    """The folder in which a payload that ran would leave its mark."""
    folder = Path("/tmp/torchkeep-x/evil")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder.parent)


def test_hostile_files_do_nothing_through_any_verb(evil: Path, markers: Path, tmp_path: Path) -> None:
    """open, load, convert, verify and load_into: only errors of ours come out, and no payload runs."""
    done = 0
    for entry in json.loads((evil / "manifest.json").read_text()):
        path = evil / entry["file"]
        verbs = (
            lambda path=path: str(tk.open(path)) and repr(tk.open(path)),
            lambda path=path: tk.load(path),
            lambda path=path: tk.verify(path),
            lambda path=path: tk.convert(path, tmp_path / "out.safetensors"),
            lambda path=path: tk.load_into(nn.Linear(1, 1), path, allow="*"),
            lambda path=path: tk.convert(path, tmp_path / "out.pth"),
            lambda path=path: json.dumps(tk.to_json(tk.open(path))),
            lambda path=path: json.dumps(tk.to_json(tk.scan(path))),
            lambda path=path: tk.salvage(path, tmp_path / "salvaged.safetensors"),
        )
        for verb in verbs:
            done += 1
            try:
                verb()
            except TorchkeepError as error:
                assert str(error)
    assert done > 500
    assert list(markers.iterdir()) == []


def test_hostile_files_do_nothing_through_the_command_line(evil: Path, markers: Path, tmp_path: Path) -> None:
    """inspect, scan, verify, convert and salvage end with an exit code of ours, and print nothing that a terminal obeys."""
    runner = CliRunner()
    for entry in json.loads((evil / "manifest.json").read_text()):
        path = str(evil / entry["file"])
        for command in (
            ["inspect", path],
            ["scan", path],
            ["verify", path],
            ["convert", path, str(tmp_path / "cli.safetensors")],
            ["salvage", path],
        ):
            done = runner.invoke(app, command)
            assert done.exception is None or isinstance(done.exception, (SystemExit, TorchkeepError)), (command, done)
            assert "\x1b" not in done.output
    assert list(markers.iterdir()) == []


def test_real_files_convert_and_come_back_equal(checkpoints: Path, tmp_path: Path) -> None:
    """Every file of one old and one new writer that opens is converted; names, bytes and flags are the same after."""
    converted = 0
    target = tmp_path / "out.safetensors"
    for folder in ("torch1.0.1-py2.7", "torch2.13.0-py3.11"):
        for path in sorted((checkpoints / folder).iterdir()):
            if path.is_dir() or path.suffix == ".json":
                continue
            try:
                old = tk.open(path)
            except UnsupportedFeatureError:
                continue
            tk.convert(path, target)
            new = tk.open(target, verify=True)
            converted += 1
            assert set(new) == set(old), path.name
            for name, tensor in old.items():
                twin = new[name]
                assert (twin.spec, twin.requires_grad, twin.device) == (
                    tensor.spec,
                    tensor.requires_grad,
                    tensor.device,
                ), name
                if tensor.parts:
                    assert twin.parts.keys() == tensor.parts.keys()
                    assert all(bits(twin.parts[p].load()) == bits(tensor.parts[p].load()) for p in tensor.parts)
                elif tensor.device != "meta":
                    assert bits(twin.load()) == bits(tensor.load()), (path.name, name)
    assert converted > 100


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
