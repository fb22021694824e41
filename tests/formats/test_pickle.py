"""Attacks on the unpickler, one test each, and a comparison with Python's own on harmless objects."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from torchkeep.core.limits import Limits
from torchkeep.core.registry import make_part
from torchkeep.core.source import Source
from torchkeep.core.tree import Global, Record
from torchkeep.errors import (
    CorruptCheckpointError,
    OpenError,
    TorchkeepError,
    UnsafeCheckpointError,
)
from torchkeep.formats import FORMATS
from torchkeep.formats._pickle import Dialect, TruncatedStreamError, unpickle


class Bytes:
    """A Source in memory."""

    def __init__(self, data: bytes) -> None:
        self.name, self.size, self._data = "memory", len(data), data

    def read(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptCheckpointError("is truncated", file=self.name)
        return self._data[offset : offset + nbytes]

    def sibling(self, name: str) -> Source:
        raise NotImplementedError


def read(data: bytes, limits: Limits | None = None) -> Any:
    return unpickle(data, 0, Dialect(), limits or Limits()).value


def refuse(data: bytes, error: type[OpenError] = CorruptCheckpointError, limits: Limits | None = None) -> OpenError:
    with pytest.raises(error) as caught:
        read(data, limits)
    assert "byte" in caught.value.place
    return caught.value


# What is read agrees with Python


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**300), 2**300)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
    | st.sampled_from([torch.Size([2, 3]), torch.Size([])])
)
keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.tuples(st.integers(), st.text())
objects = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        | st.dictionaries(keys, inner).map(lambda value: defaultdict(list, value))
        | st.dictionaries(keys, st.integers()).map(Counter)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=20,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(objects, st.integers(0, 5))
def test_plain_objects_are_what_python_makes_of_them(value: Any, protocol: int) -> None:
    stream = pickle.dumps(value, protocol)
    found = unpickle(stream + b"rest", 0, Dialect(), Limits())
    assert found.end == len(stream)
    assert found.value == value
    assert type(found.value) is type(value)


@pytest.mark.parametrize("protocol", range(6))
def test_shared_and_recursive_objects_keep_their_shape(protocol: int) -> None:
    shared: list[Any] = [1]
    shared.append(shared)
    value = read(pickle.dumps({"a": shared, "b": shared}, protocol))
    assert value["a"] is value["b"] is value["a"][1]


def test_python_2_strings_are_text_when_they_can_be() -> None:
    assert read(b"S'caf\\xc3\\xa9\\n'\n.") == "café\n"
    assert read(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert read(b"T\x03\0\0\0abc.") == "abc"
    assert read(b'S"it\\\'s \\101\\\\"\n.') == "it's A\\"


def test_extra_bytes_are_left_alone() -> None:
    assert unpickle(b"xxK\x05.yy", 2, Dialect(), Limits()).end == 5


# What it would call is only written down


class Payload:
    def __reduce__(self) -> Any:
        return eval, ("open('/tmp/torchkeep-payload', 'w')",)


@pytest.mark.parametrize("protocol", range(6))
def test_calls_become_records(protocol: int) -> None:
    found = unpickle(pickle.dumps([Payload()], protocol), 0, Dialect(), Limits())
    (record,) = found.value
    assert isinstance(record, Record)
    assert record.called
    assert record.cls in {Global("builtins", "eval"), Global("__builtin__", "eval")}
    assert found.globals[record.cls].how == "called"
    assert not Path("/tmp/torchkeep-payload").exists()


@pytest.mark.parametrize(
    ("stream", "how"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", "called"),
        (b"(S'x'\nios\nsystem\n.", "called"),
        (b"(cos\nsystem\nS'x'\no.", "called"),
        (b"\x80\x02cos\nsystem\nU\x01x\x85\x81.", "made"),
        (b"\x80\x04cos\nsystem\nU\x01x\x85}\x92.", "made"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.", "called"),
        (b"cos\nsystem\n.", "named"),
    ],
)
def test_every_way_to_call_is_seen(stream: bytes, how: str) -> None:
    found = unpickle(stream, 0, Dialect(), Limits())
    assert found.globals[Global("os", "system")].how == how


def test_a_call_of_something_computed_is_kept_too() -> None:
    record = read(b"cfunctools\npartial\n(cos\nsystem\ntR)R.")
    assert isinstance(record.cls, Record)
    assert record.class_name == "<computed by the file>"


def test_state_and_items_of_unknown_objects_are_kept() -> None:
    record = read(b"\x80\x02cgone\nThing\n)\x81}U\x01aK\x01sbK\x02a.")
    assert (record.state, record.items) == ({"a": 1}, [2])
    record = read(b"\x80\x02cgone\nThing\n)\x81U\x01kK\x07s.")
    assert record.pairs == [("k", 7)]


def test_only_the_metadata_of_an_ordered_dict_is_set() -> None:
    value = OrderedDict(a=1)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    value.other = 2  # type: ignore[attr-defined]
    read_back = read(pickle.dumps(value, 2))
    assert read_back._metadata == {"": {"version": 1}}
    assert not hasattr(read_back, "other")


# Attacks


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b".",
        b"\x80\x06N.",
        b"\xff",
        b"0.",
        b"t.",
        b"h\x05.",
        b"K\x01K\x02s.",
        b"K\x01K\x02a.",
        b"(K\x01d.",
        b"]]K\x01s.",
        b"}]K\x01s.",
        b"(]\x91.",
        b"K\x01}b.",
        b"NNR.",
        b"cos\nsystem\nNR.",
        b"\x82\x01.",
        b"\x97.",
        b"Q.",
        b"NQ.",
        b"P1\n.",
        b"I1_0\n.",
        b"Inope\n.",
        b"Fnope\n.",
        b"Sabc\n.",
        b"\x8cf\x02\xff\xff.",
        b"V\\u12\n.",
        b"N\x93.",
        b"c\xff\n\xfe\n.",
        b"pz\n.",
        b"c__builtin__\nset\nK\x01\x85R.",
        b"ccollections\nOrderedDict\n]K\x01a\x85R.",
        b"ctorch\nSize\n.ctorch\nSize",
    ],
)
def test_invalid_streams_are_corrupt(stream: bytes) -> None:
    if stream.startswith(b"ctorch"):
        assert read(stream) == Global("torch", "Size")
        return
    refuse(stream)


@pytest.mark.parametrize(
    "code", [b"X\xff\xff\xff\xff", b"B\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"\x8e" + b"\x40" * 8]
)
def test_lengths_beyond_the_data_allocate_nothing(code: bytes) -> None:
    refuse(code + b"abc.", TruncatedStreamError)


def test_negative_lengths() -> None:
    refuse(b"T\xff\xff\xff\xffabc.")
    refuse(b"\x8b\xff\xff\xff\xffabc.")


def test_a_high_memo_index_costs_nothing() -> None:
    refuse(b"Nr\xf0\xff\xff\x7f.", UnsafeCheckpointError)
    refuse(b"Np99999999999999\n.", UnsafeCheckpointError)


def test_long_integers_are_bounded() -> None:
    refuse(b"\x8b\x00\x00\x10\x00" + b"\x01" * 0x100000 + b".", UnsafeCheckpointError)
    refuse(b"L" + b"9" * 100_000 + b"L\n.", UnsafeCheckpointError)


def test_the_number_of_opcodes_is_bounded() -> None:
    refuse(b"N0" * 1000 + b"N.", UnsafeCheckpointError, Limits(opcodes=500))


def test_hashing_shared_tuples_is_bounded() -> None:
    start = time.perf_counter()
    refuse(b"}K\x01" + b"2\x86" * 60 + b"Ns.", UnsafeCheckpointError)
    refuse(b"\x8f(K\x01" + b"2\x86" * 60 + b"\x90.", UnsafeCheckpointError)
    assert time.perf_counter() - start < 1


def test_hashing_deep_tuples_does_not_overflow_the_stack() -> None:
    refuse(b"}K\x01" + b"\x85" * 500_000 + b"Ns.", UnsafeCheckpointError)


def test_keys_of_one_hash_are_bounded() -> None:
    step = (1 << 61) - 1
    keys = b"".join(b"\x8a\x0a" + (index * step).to_bytes(10, "little") + b"N" for index in range(1, 5000))
    refuse(b"}(" + keys + b"u.", UnsafeCheckpointError)


def test_many_different_odd_keys_are_fine() -> None:
    value = {(index, index / 3): index for index in range(5000)}
    assert read(pickle.dumps(value, 4)) == value


def test_copying_a_large_value_again_and_again_is_bounded() -> None:
    big = pickle.dumps("x" * 100_000, 2)[:-1] + b"0"
    copy = b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
    refuse(big + copy * 5000 + b".", UnsafeCheckpointError, Limits(opcodes=1_000_000))


def test_nesting_is_no_problem() -> None:
    assert isinstance(read(b"]" * 200_000 + b"a" * 199_999 + b"."), list)


def test_unhashable_keys_are_corrupt() -> None:
    refuse(b"}]Ns.")
    refuse(b"}]\x85Ns.")


def test_errors_tell_the_place() -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        unpickle(b"xxN\xff", 2, Dialect(), Limits(), file="a.pth", stream="data.pkl", base=100)
    assert (caught.value.file, caught.value.place) == ("a.pth", "data.pkl, byte 103")


# Mutations of valid files


@cache
def samples() -> dict[str, bytes]:
    state = OrderedDict((f"layer.{index}.weight", torch.arange(6.0).reshape(2, 3)) for index in range(3))
    state["half"] = torch.ones(2, dtype=torch.float16)
    modern, legacy = io.BytesIO(), io.BytesIO()
    torch.save({"model": state, "epoch": 3, "note": ("a", {1, 2})}, modern)
    torch.save({"model": state, "epoch": 3}, legacy, _use_new_zipfile_serialization=False)
    return {
        "torch_zip": modern.getvalue(),
        "torch_legacy": legacy.getvalue(),
        "safetensors": save(dict(state)),
    }


def open_bytes(name: str, data: bytes) -> Any:
    ckpt = make_part(FORMATS, name, "format").open(Bytes(data), Limits())
    for tensor in ckpt.values():
        tensor.load()
    return ckpt


@pytest.mark.parametrize("name", list(samples()))
def test_samples_open(name: str) -> None:
    assert len(open_bytes(name, samples()[name])) == 4


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.mark.parametrize("name", list(samples()))
@settings(max_examples=150, deadline=None)
@given(edits=edits, cut=st.floats(0, 3))
def test_mutated_files_only_raise_our_errors(name: str, edits: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(samples()[name])
    for where, value in edits:
        data[int(where * len(data))] = value
    if cut < 1:
        del data[int(cut * len(data)) :]
    try:
        open_bytes(name, bytes(data))
    except TorchkeepError as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(edits=edits)
def test_mutated_pickles_only_raise_our_errors(edits: list[tuple[float, int]]) -> None:
    """As above, with the checksum set right, so that the change reaches the unpickler."""
    original = samples()["torch_zip"]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = bytearray(old.read(entry))
            for where, value in edits if entry.filename.endswith("data.pkl") else ():
                data[int(where * len(data))] = value
            new.writestr(entry.filename, bytes(data))
    try:
        open_bytes("torch_zip", out.getvalue())
    except TorchkeepError as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_streams_only_raise_our_errors(data: bytes) -> None:
    try:
        read(b"\x80\x02" + data)
    except TorchkeepError as error:
        assert str(error)


# Checksums, and files that lie


def test_verify_finds_a_flipped_bit() -> None:
    data = bytearray(samples()["torch_zip"])
    at = data.index(struct.pack("<3f", 0, 1, 2))
    reader = make_part(FORMATS, "torch_zip", "format")
    assert all(holds for _, holds, _ in reader.verify(Bytes(bytes(data)), Limits()))
    data[at + 5] ^= 1
    damaged = [name for name, holds, _ in reader.verify(Bytes(bytes(data)), Limits()) if not holds]
    assert damaged == ["archive/data/0"]


def test_a_file_without_checksums_opens_and_says_so() -> None:
    out = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, out)
    finally:
        torch.serialization.set_crc32_options(before)
    ckpt = open_bytes("torch_zip", out.getvalue())
    assert [finding.code for finding in ckpt.findings] == ["no-checksums"]


def test_a_legacy_file_cut_in_its_storages_opens() -> None:
    data = samples()["torch_legacy"]
    ckpt = make_part(FORMATS, "torch_legacy", "format").open(Bytes(data[:-3]), Limits())
    assert [(finding.code, finding.severity) for finding in ckpt.findings] == [("truncated", "danger")]
    results = []
    for tensor in ckpt.values():
        try:
            results.append(tensor.load() is not None)
        except CorruptCheckpointError as error:
            results.append("truncated" in str(error))
    assert all(results)


def saved(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def test_sharing_that_multiplies_is_bounded() -> None:
    value: Any = [torch.zeros(1)]
    for _ in range(40):
        value = [value, value]
    start = time.perf_counter()
    with pytest.raises(UnsafeCheckpointError, match="revisits"):
        open_bytes("torch_zip", saved(value))
    assert time.perf_counter() - start < 5


def test_huge_keys_do_not_multiply() -> None:
    value = {("x" * 5_000_000, 1): {str(index): torch.zeros(1) for index in range(500)}, 10**2000: torch.zeros(1)}
    assert sum(map(len, open_bytes("torch_zip", saved(value)))) < 1_000_000
    with pytest.raises(UnsafeCheckpointError, match="name_chars"):
        open_bytes("torch_zip", saved({"x" * 5_000_000: {str(index): torch.zeros(1) for index in range(500)}}))


def test_tied_tensors_are_one_and_keep_both_names() -> None:
    weight = torch.arange(6.0)
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        name = "torch_legacy" if options else "torch_zip"
        ckpt = open_bytes(name, saved({"a": weight, "b": weight, "c": weight[2:]}, **options))
        assert ckpt["a"].identity == ckpt["b"].identity != ckpt["c"].identity
        assert ckpt["c"].load().tolist() == [2, 3, 4, 5]


def test_a_training_checkpoint_has_an_optimizer() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"net": model.state_dict(), "epoch": 3}
    assert open_bytes("torch_zip", saved(state)).kind == "weights"
    ckpt = open_bytes("torch_zip", saved(state | {"optimizer": optimizer.state_dict()}))
    assert (ckpt.kind, ckpt.model_key, list(ckpt.model)) == ("training", "net", ["weight", "bias"])


def test_a_pickled_module_has_its_state_dict_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).eval()
    ckpt = open_bytes("torch_zip", saved(model))
    assert list(ckpt) == list(model.state_dict())
    assert {name for name, tensor in ckpt.items() if tensor.kind == "buffer"} == {
        name for name, _ in model.named_buffers()
    }
    assert [(module.path, module.training) for module in ckpt.modules] == [("", False), ("0", False), ("1", False)]
    assert ckpt.findings == ()


def test_bare_storages_can_be_read() -> None:
    out = io.BytesIO()
    torch.save({"s": torch.arange(3.0).untyped_storage()}, out)
    (tensor,) = open_bytes("torch_zip", out.getvalue()).values()
    assert tensor.class_name == "torch.storage.UntypedStorage"
    assert bytes(tensor.load().numpy()) == struct.pack("<3f", 0, 1, 2)
