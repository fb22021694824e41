"""Saving one file: it comes back as it was, other programs read it, and a crash or a full disk leaves the old one."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import torchkeep as tk
from models import TinyNet
from torchkeep.core.tensors import DTYPES
from torchkeep.errors import CorruptCheckpointError, NoSpaceError, SaveError, UnsavableError


def same(a: Any, b: Any) -> bool:
    """Equal in type, structure and every bit."""
    if isinstance(a, torch.Tensor):
        return (
            type(a) is type(b)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.requires_grad == b.requires_grad
            and bits(a) == bits(b)
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    return bool(a == b)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tensors() -> st.SearchStrategy[torch.Tensor]:
    def make(dtype: torch.dtype, shape: list[int], grad: bool) -> torch.Tensor:
        raw = torch.randint(0, 2, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
        tensor = raw.view(dtype).reshape(shape) if raw.numel() else torch.empty(shape, dtype=dtype)
        return tensor.requires_grad_() if grad and dtype.is_floating_point and dtype.itemsize >= 4 else tensor

    return st.builds(
        make,
        st.sampled_from([row.torch for row in DTYPES.values()]),
        st.lists(st.integers(0, 3), max_size=3),
        st.booleans(),
    )


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
keys = st.one_of(st.text(max_size=4), st.sampled_from(["a.b", "a", "b", "$", "1", "\\."]), st.integers(), st.none())
nested = st.recursive(
    st.one_of(plain, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(nested)
def test_anything_plain_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, obj: Any) -> None:
    path = tmp_path_factory.mktemp("s") / "x.safetensors"
    tk.save(obj, path)
    assert same(tk.load(path), obj)
    assert tk.verify(path).ok
    load_file(path)  # the safetensors library accepts it too


def test_standard_relatives_and_sharing_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    obj = {
        "counter": Counter("abba"),
        "default": defaultdict(list, {"k": [1]}),
        "sets": [{1, 2}, frozenset({"a"})],
        "torch": [torch.float16, torch.device("cuda:3"), torch.Size([2, 3])],
        "numpy": [np.float32(1.5), np.int64(-3), np.bool_(True)],
        "surrogate": "\ud800",
        "bytes": [b"\0\xff", bytearray(b"x")],
        "w": shared,
        "again": [shared, nn.Parameter(torch.ones(2), requires_grad=False)],
    }
    tk.save(obj, tmp_path / "x.safetensors")
    back = tk.load(tmp_path / "x.safetensors")
    assert back["again"][0] is back["w"], "one tensor stays one tensor"
    assert type(back["again"][1]) is nn.Parameter and not back["again"][1].requires_grad
    assert back["default"]["new"] == []
    for key in ("counter", "sets", "torch", "numpy", "surrogate", "bytes"):
        assert back[key] == obj[key], key
    assert [type(value) for value in back["numpy"]] == [type(value) for value in obj["numpy"]]


def test_state_dict_metadata_comes_back(tmp_path: Path) -> None:
    state = TinyNet().state_dict()
    tk.save(state, tmp_path / "x.safetensors")
    back = tk.load(tmp_path / "x.safetensors")
    assert type(back) is OrderedDict and back._metadata == state._metadata
    TinyNet().load_state_dict(back)


def test_a_model_keeps_flags_ties_and_its_description(tmp_path: Path) -> None:
    model = TinyNet()
    tk.freeze(model, "conv")
    report = tk.save(nn.DataParallel(model), tmp_path / "m.safetensors")
    assert report.tensors_total == report.tensors_written + 1, "the tied weight is written once"
    ckpt = tk.open(tmp_path / "m.safetensors", verify=True)
    assert set(ckpt) == set(model.state_dict())
    assert ckpt.kind == "module"
    assert not ckpt["conv.weight"].requires_grad and ckpt["head.weight"].requires_grad
    assert (ckpt["bn.running_mean"].kind, ckpt["head.bias"].kind) == ("buffer", "parameter")
    assert ckpt["tied.weight"].identity == ckpt["fc.weight"].identity
    classes = {module.path: module.class_name for module in ckpt.modules}
    assert classes[""] == "models.TinyNet" and classes["bn"] == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert {module.path for module in ckpt.facts.module.modules if module.frozen} == {"conv"}
    assert ckpt.facts.producer["torch"] == str(torch.__version__)


def test_the_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model = TinyNet()
    tk.save(model, path)
    plain_reader = load_file(path)
    state = model.state_dict()
    assert all(torch.equal(plain_reader[name], state[name]) for name in plain_reader)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + length) % 64 == 0, "data is aligned"
    header = json.loads(path.read_bytes()[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % DTYPES[str(state[name].dtype).removeprefix("torch.")].torch.itemsize == 0


def test_layouts_are_written_by_value(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    obj = {
        "transposed": base.transpose(0, 2),
        "sliced": base[:, 1:, ::2],
        "expanded": torch.ones(1).expand(5, 5),
        "conj": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "neg": torch.tensor([1 + 2j]).conj().imag,
        "last": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 7),
        "meta": torch.empty(2, 2, device="meta"),
    }
    report = tk.save(obj, tmp_path / "x.safetensors")
    back = tk.load(tmp_path / "x.safetensors")
    for name in set(obj) - {"meta"}:
        assert torch.equal(back[name], obj[name]), name
    assert back["meta"].device.type == "meta" and back["meta"].shape == (2, 2)
    assert any("shared storages" in note for note in report.notes) and any("meta" in note for note in report.notes)


@pytest.mark.parametrize(
    ("obj", "path", "hint"),
    [
        ({"a": {"b": [1, object()]}}, "a.b.1", "vars"),
        ({"model": nn.Linear(1, 1)}, "model", "state_dict"),
        ({"array": np.zeros(300_000)}, "array", "from_numpy"),
        ({"s": torch.eye(2).to_sparse()}, "s", "to_dense"),
        ({"f": print}, "f", ""),
        (nn.Sequential(nn.LazyLinear(3)), "0.weight", "once"),
        ({"big": torch.zeros(1).expand(1 << 40)}, "big", "expanded"),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_path(tmp_path: Path, obj: Any, path: str, hint: str) -> None:
    target = tmp_path / "x.safetensors"
    with pytest.raises(UnsavableError) as caught:
        tk.save(obj, target)
    assert caught.value.path == path and hint in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_cycle_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append({"self": loop})
    with pytest.raises(UnsavableError, match="contains itself"):
        tk.save(loop, tmp_path / "x.safetensors")


def test_bad_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"\.safetensors"):
        tk.save({}, tmp_path / "x.pth")
    with pytest.raises(SaveError, match="there is no folder"):
        tk.save({}, tmp_path / "no" / "x.safetensors")


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        tk.save({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["posix_fallocate", "writev", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"a": torch.ones(4)}, path)
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(NoSpaceError) as caught:
        tk.save({"a": torch.zeros(1000)}, path)
    assert caught.value.needed > 4000 and caught.value.free > 0
    assert isinstance(caught.value, OSError)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_mapped_survives_being_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"a": torch.ones(1000)}, path)
    held = tk.open(path)["a"].load()
    tk.save({"a": torch.zeros(1000)}, path)
    assert (held == 1).all() and (tk.open(path)["a"].load() == 0).all()


def test_a_kill_at_every_system_call_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "x.safetensors"
    seen = []
    for number in range(1, 100):
        tk.save({"a": torch.ones(300)}, path)
        child = os.fork()
        if child == 0:
            count = 0

            def wrap(original: Any, number: int = number) -> Any:
                def patched(*args: Any, **kwargs: Any) -> Any:
                    nonlocal count
                    count += 1
                    if count == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return original(*args, **kwargs)

                return patched

            try:
                for name in (
                    "open",
                    "posix_fallocate",
                    "writev",
                    "lseek",
                    "fsync",
                    "close",
                    "rename",
                    "replace",
                    "unlink",
                ):
                    setattr(os, name, wrap(getattr(os, name)))
                tk.save({"a": torch.zeros(300)}, path)
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        value = tk.load(path)["a"]
        assert (value == 1).all() or (value == 0).all()
        assert tk.verify(path).ok
        seen.append(value[0].item())
        if not os.WIFSIGNALED(status):
            break
    assert seen == sorted(seen, reverse=True) and seen[0] == 1 and seen[-1] == 0 and len(seen) > 7


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"w": torch.randn(20), "note": "hello", "h": torch.ones(3, dtype=torch.complex128)}, path)
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    places = {int(place) for place in generator.integers(0, len(data), 300)} | set(range(24))
    for place in sorted(places):
        broken = bytearray(data)
        broken[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        try:
            assert not tk.verify(path).ok, f"byte {place} of {len(data)}"
        except tk.errors.OpenError:
            continue  # no longer recognised as a checkpoint at all
        with pytest.raises(tk.errors.OpenError):
            tk.open(path, verify=True)


def test_verify_on_open_needs_digests(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(CorruptCheckpointError, match="no digests"):
        tk.open(path, verify=True)


# -- what an adversarial review found ---------------------------------------------------------------------------


def test_two_versions_of_one_path_are_not_one_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"w": torch.zeros(3)}, path)
    old = tk.open(path)
    tk.save({"w": torch.ones(3)}, path)
    new = tk.open(path)
    tk.save({"old": dict(old), "new": dict(new)}, tmp_path / "both.safetensors")
    both = tk.load(tmp_path / "both.safetensors")
    assert (both["old"]["w"] == 0).all() and (both["new"]["w"] == 1).all()


@pytest.mark.parametrize(
    "obj",
    [
        {"__metadata__": torch.ones(1), "b": torch.ones(1)},
        {"blob": b"x" * 80_000_000},
        {"d": torch.quint8},
        {"t": torch.zeros(2, dtype=torch.uint8).view(torch.bits8)},
        {torch.ones(1): 1},
    ],
    ids=["metadata", "blob", "dtype", "bits", "key"],
)
def test_nothing_is_saved_that_could_not_be_loaded(tmp_path: Path, obj: Any) -> None:
    path = tmp_path / "x.safetensors"
    tk.save({"good": torch.ones(1)}, path)
    with pytest.raises(UnsavableError):
        tk.save(obj, path)
    assert (tk.load(path)["good"] == 1).all()


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**400), np.str_(""), np.bytes_(b""), {"\ud800": 1}, {"$": {"$": 1}}],
    ids=["huge", "negative", "empty text", "empty bytes", "surrogate", "tag"],
)
def test_odd_values_come_back(tmp_path: Path, value: Any) -> None:
    tk.save({"v": value}, tmp_path / "x.safetensors")
    back = tk.load(tmp_path / "x.safetensors")["v"]
    assert back == value and type(back) is type(value)


def test_deep_nesting_is_saved_or_refused(tmp_path: Path) -> None:
    deep: Any = [1]
    for _ in range(120):
        deep = [deep]
    tk.save(deep, tmp_path / "x.safetensors")
    assert tk.load(tmp_path / "x.safetensors") == deep
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(UnsavableError, match="nested too deeply"):
        tk.save(deep, tmp_path / "x.safetensors")


def test_loaded_objects_are_their_own_unless_mapped_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"w": torch.zeros(100_000)}, path)
    mine, mapped = tk.load(path), tk.load(path, mmap=True)
    torch.save({"w": torch.ones(100_000)}, path)  # in place, as the usual training loop does
    assert (mine["w"] == 0).all() and (mapped["w"] == 1).all()
    torch.save({"w": torch.ones(2)}, path)
    assert (mine["w"] == 0).all()


def test_converting_keeps_kinds_and_says_what_it_cannot_keep(tmp_path: Path, checkpoints: Path) -> None:
    target = tmp_path / "x.safetensors"
    tk.convert(checkpoints / "torch2.13.0-py3.11" / "cnn_whole_model.pth", target)
    assert tk.open(target)["bn1.running_mean"].kind == "buffer"
    report = tk.convert(checkpoints / "torch2.13.0-py3.11" / "cl_channels_last.pth", target)
    assert any("row by row" in note for note in report.save.notes)
    tk.save(TinyNet(), target)
    tk.convert(target, tmp_path / "y.safetensors")
    assert tk.open(tmp_path / "y.safetensors").modules == tk.open(target).modules


def test_a_model_in_shards_is_what_transformers_reads(tmp_path: Path) -> None:
    """The layout of Hugging Face: numbered files, and an index that says where each tensor is."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(6)))
    model[5].weight = model[0].weight
    tk.freeze(model, "1")
    report = tk.save(model, tmp_path / "model.safetensors", max_shard_size="100KB", engine="direct")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{at:05}-of-00003.safetensors" for at in (1, 2, 3)]
    assert report.path.endswith("model.safetensors.index.json") and report.engine == "direct"
    assert index["metadata"]["total_size"] == report.bytes_total == 5 * 40_000 + 6 * 400
    stored = {name: tensor for shard in shards for name, tensor in load_file(tmp_path / shard).items()}
    assert stored.keys() == index["weight_map"].keys()
    assert all(torch.equal(stored[name], model.state_dict()[name]) for name in stored)
    other = nn.Sequential(*(nn.Linear(100, 100) for _ in range(6)))
    other[5].weight = other[0].weight
    loaded = tk.load_into(other, tmp_path / "model.safetensors.index.json")
    assert loaded.coverage == 1 and all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    assert not other[1].weight.requires_grad, "frozen as it was"
    with pytest.raises(SaveError, match="exists already"):
        tk.save(model, tmp_path / "model.safetensors", max_shard_size="100KB")
    whole = tk.save(model, tmp_path / "whole.safetensors", max_shard_size="1GB")
    assert whole.path.endswith("whole.safetensors")
    with pytest.raises(SaveError, match="is no size"):
        tk.save(model, tmp_path / "more.safetensors", max_shard_size="much")
