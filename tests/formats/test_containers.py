"""Containers made by hand: what no file of the corpus happens to have."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_pickle import Bytes, open_bytes, saved

from torchkeep.core.limits import Limits
from torchkeep.core.registry import make_part
from torchkeep.core.source import Probe
from torchkeep.core.tree import Global
from torchkeep.errors import (
    CorruptCheckpointError,
    TorchkeepError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedFeatureError,
)
from torchkeep.formats import FORMATS
from torchkeep.formats.foreign import explain
from torchkeep.formats.safetensors import read_header
from torchkeep.formats.torch_legacy import TorchLegacy

# Zip


def rezipped(data: bytes, edit: Callable[[str, bytes], tuple[str, bytes]] | None = None) -> bytes:
    """The same records written again by another zip program."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(*(edit or (lambda name, body: (name, body)))(entry.filename, old.read(entry)))
    return out.getvalue()


def test_a_file_zipped_again_is_read() -> None:
    ckpt = open_bytes("torch_zip", rezipped(saved({"a": torch.arange(3)})))
    assert ckpt["a"].load().tolist() == [0, 1, 2]


def test_64_bit_directories_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    data = rezipped(saved({"a": torch.arange(30)}))
    assert b"PK\6\6" in data
    assert open_bytes("torch_zip", data)["a"].load().tolist() == list(range(30))


def test_data_in_front_of_the_archive_is_refused() -> None:
    with pytest.raises(TorchkeepError):
        open_bytes("torch_zip", b"MZ" + b"\0" * 100 + saved({"a": torch.ones(1)}))


def test_archives_one_after_another_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedFeatureError, match="several zip archives"):
        open_bytes("torch_zip", saved({"a": torch.ones(1)}) + saved({"b": torch.ones(1)}))


def test_hidden_data_between_records_is_found() -> None:
    data = rezipped(saved({"a": torch.ones(1)}))
    end = data.index(b"PK\1\2")
    hidden = data[:end] + b"hidden!" + data[end:]
    at = hidden.rindex(b"PK\5\6") + 16
    hidden = hidden[:at] + struct.pack("<I", end + 7) + hidden[at + 4 :]
    assert "hidden-data" in [finding.code for finding in open_bytes("torch_zip", hidden).findings]


def test_a_bad_name_is_refused() -> None:
    data = saved({"a": torch.ones(1)})
    with pytest.raises(CorruptCheckpointError, match="named"):
        open_bytes("torch_zip", rezipped(data, lambda name, body: (name.replace("archive", "../x"), body)))


def test_a_zip_of_something_else_is_unknown() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UnknownFormatError, match=r"readme\.txt"):
        open_bytes("torch_zip", out.getvalue())
    with pytest.raises(UnknownFormatError, match="empty"):
        open_bytes("torch_zip", b"PK\5\6" + b"\0" * 18)


def turned(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, itemsize)[:, ::-1].tobytes()


def test_big_endian_files_are_read() -> None:
    """Elements are turned round by the width of their storage; of complex numbers each half by itself."""
    whole = {
        "float32": torch.arange(4, dtype=torch.float32),
        "int64": torch.arange(4),
        "complex64": torch.tensor([1 + 2j, 3 - 4j]),
        "uint8": torch.arange(4, dtype=torch.uint8),
        "uint16": torch.tensor([300, 301], dtype=torch.uint16),  # its storage is untyped: the tensor knows the width
    }
    widths = {"0": 4, "1": 8, "2": 4, "3": 1, "4": 2}

    def edit(name: str, body: bytes) -> tuple[str, bytes]:
        if name.endswith("byteorder"):
            return name, b"big"
        parent, _, key = name.rpartition("/")
        return name, turned(body, widths[key]) if parent.endswith("data") and key in widths else body

    ckpt = open_bytes("torch_zip", rezipped(saved(whole), edit))
    for name, tensor in whole.items():
        assert torch.equal(ckpt[name].load(), tensor), name
    assert ckpt["int64"][1:3].tolist() == [1, 2]
    assert ckpt.provenance.byte_order == "big" and "big" in str(ckpt)


def deflated(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return out.getvalue()


def test_compressed_records_are_inflated_when_they_are_wanted() -> None:
    base = torch.arange(1000.0)
    ckpt = open_bytes("torch_zip", deflated(saved({"a": base[:10], "b": base[5:]})))
    assert [finding.code for finding in ckpt.findings] == ["compressed"]
    assert torch.equal(ckpt["b"].load(), base[5:])
    assert ckpt["a"].storage is not None and ckpt["a"].storage.source is not None


def test_a_part_of_a_storage_is_read_where_the_storage_is() -> None:
    """Old pickles declare storages that are stretches of others; the whole may be a record that is inflated."""
    opcodes = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
        b"K\x06(X\x01\0\0\x00vK\x02K\x03ttQK\0K\x03\x85K\x01\x85tR."
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("archive/data.pkl", opcodes)
        new.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
    assert open_bytes("torch_zip", out.getvalue())[""].load().tolist() == [2, 3, 4]


def test_compressed_records_that_lie_about_their_size_are_refused() -> None:
    data = bytearray(deflated(saved({"a": torch.zeros(100_000)})))
    at = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    while b"data/0" not in data[at : at + 80]:
        at = data.index(b"PK\1\2", at + 1)
    struct.pack_into("<I", data, at + 24, 400_004)
    local = data.index(b"archive/data/0") - 30
    struct.pack_into("<I", data, local + 22, 400_004)
    with pytest.raises(CorruptCheckpointError, match="400,000"):
        open_bytes("torch_zip", bytes(data))


def test_a_record_that_inflates_like_a_bomb_is_refused() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (1 << 24) + b"N.")
    with pytest.raises(UnsafeCheckpointError, match="inflated_ratio"):
        open_bytes("torch_zip", out.getvalue())


def test_records_without_a_root_folder_and_strangers_beside_them_are_read() -> None:
    data = saved({"a": torch.arange(3)})
    bare = open_bytes("torch_zip", rezipped(data, lambda name, body: (name.split("/", 1)[1], body)))
    assert bare["a"].load().tolist() == [0, 1, 2]
    out = io.BytesIO(data)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("__MACOSX/._data.pkl", b"resource fork")
    beside = open_bytes("torch_zip", out.getvalue())
    assert beside["a"].load().tolist() == [0, 1, 2]
    assert any("__MACOSX" in finding.message for finding in beside.findings)


def test_an_unknown_byte_order_is_refused() -> None:
    data = rezipped(saved({"a": 1}), lambda name, body: (name, b"middle" if name.endswith("byteorder") else body))
    with pytest.raises(CorruptCheckpointError, match="byte order"):
        open_bytes("torch_zip", data)


# Legacy


def legacy(object_pickle: bytes, storages: list[tuple[str, int, bytes]]) -> bytes:
    out = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    out += object_pickle + pickle.dumps([key for key, _, _ in storages], 2)
    for _, count, data in storages:
        out += struct.pack("<q", count) + data
    return out


def tensor_of(view: str, offset: int, size: int) -> bytes:
    persistent = (
        b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"9X\x03\0\0\0cpuK\x06" + view.encode("latin1")
    )
    return (
        b"ctorch._utils\n_rebuild_tensor\n("
        + persistent
        + b"tQK"
        + bytes([offset])
        + b"K"
        + bytes([size])
        + b"\x85K\x01\x85tR"
    )


def test_parts_of_storages_are_read_where_they_are() -> None:
    part = "(X\x01\0\0\0vK\x02K\x03t"  # key v, offset 2, 3 elements
    stream = b"\x80\x02](" + tensor_of(part, 1, 2) + tensor_of("N", 0, 6) + b"e."
    first, whole = open_bytes("torch_legacy", legacy(stream, [("9", 6, struct.pack("<6f", *range(6)))])).values()
    assert first.load().tolist() == [3, 4]
    assert whole.load().tolist() == [0, 1, 2, 3, 4, 5]


def test_a_part_that_leaves_its_storage_is_refused() -> None:
    stream = b"\x80\x02](" + tensor_of("(X\x01\0\0\0vK\x04K\x03t", 0, 1) + b"e."
    with pytest.raises(CorruptCheckpointError, match="part of a storage"):
        open_bytes("torch_legacy", legacy(stream, [("9", 6, bytes(24))]))


def test_source_texts_are_kept_as_text() -> None:
    stream = b"\x80\x02(X\x06\0\0\0modulecgone.nets\nNet\nX\x01\0\0\0fX\x0b\0\0\0class Net: tQ)\x81."
    ckpt = open_bytes("torch_legacy", legacy(stream, []))
    assert ckpt.metadata == {"source:gone.nets.Net": "class Net: "}
    assert ckpt.tree.cls == Global("gone.nets", "Net")


@pytest.mark.parametrize(
    "stream",
    [
        b"cgone\nA\n)\x81q\x00h\x00b",  # an object that is its own state
        b"cgone\nA\n)\x81" * 5000 + b"b" * 4999,  # a long chain of states
        b"cgone\nA\n)\x81q\x00]h\x00ab",  # its state holds it
    ],
)
def test_objects_that_hold_themselves_or_each_other_are_walked(stream: bytes) -> None:
    body = b"\x80\x02](" + tensor_of("N", 0, 6) + stream + b"e."
    ckpt = open_bytes("torch_legacy", legacy(body, [("9", 6, bytes(24))]))
    assert "0" in ckpt
    assert str(ckpt)


def test_attributes_of_attributes_are_walked() -> None:
    dress = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + tensor_of("N", 0, 6) + b"\x88N"
    body = b"\x80\x02](" + dress * 3000 + b"N" + b"tR" * 3000 + b"e."
    data = legacy(body, [("9", 6, bytes(24))])
    with pytest.raises(UnsafeCheckpointError, match="depth"):
        open_bytes("torch_legacy", data)


@pytest.mark.parametrize("keys", [["8"], ["9", "9"], "9", [9]])
def test_a_key_list_that_lies_is_refused(keys: Any) -> None:
    stream = b"\x80\x02](" + tensor_of("N", 0, 6) + b"e."
    data = legacy(stream, [("9", 6, bytes(24))])
    changed = data.replace(pickle.dumps(["9"], 2), pickle.dumps(keys, 2))
    with pytest.raises(CorruptCheckpointError, match=r"key|lists"):
        open_bytes("torch_legacy", changed)


def test_a_pickle_longer_than_the_window_is_read() -> None:
    value = {"text": "x" * 3_000_000, "a": torch.arange(3)}
    ckpt = open_bytes("torch_legacy", saved(value, _use_new_zipfile_serialization=False))
    assert ckpt["a"].load().tolist() == [0, 1, 2]
    assert len(ckpt.tree["text"]) == 3_000_000


# safetensors


def safetensors(header: str, data: bytes = b"") -> Bytes:
    raw = header.encode()
    return Bytes(struct.pack("<Q", len(raw)) + raw + data)


GOOD = '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  '


def test_a_header_is_read_as_it_stands() -> None:
    header = read_header(safetensors(GOOD, bytes(8)), Limits())
    assert header.metadata == {"format": "pt"}
    assert (header.entries["a"].shape, header.data_start) == ((2,), 8 + len(GOOD))
    assert header.raw == GOOD.encode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[2]", "[2.0]"),
        ("[2]", "[true,2]"),
        ("[2]", "[-2]"),
        ("[2]", "2"),
        ("[0,8]", "[8,0]"),
        ("[0,8]", "[0]"),
        ("[0,8]", "[0,8,9]"),
        ("[0,8]", "[0,4]"),
        ('"F32"', "5"),
        ('"pt"', "5"),
        ('{"format":"pt"}', "[]"),
        ('"shape":[2],', ""),
        ('"shape":[2],', '"shape":[2],"more":1,'),
        ('"shape":[2],', '"shape":[2],"shape":[2],'),
        ("[2]", "[NaN]"),
        ("}}", "}"),
        ("}}  ", "}}x "),
    ],
)
def test_a_header_that_breaks_the_specification_is_refused(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(CorruptCheckpointError):
        read_header(safetensors(GOOD.replace(old, new, 1), bytes(8)), Limits())


def test_bytes_that_no_tensor_covers_are_refused() -> None:
    with pytest.raises(CorruptCheckpointError, match="1 more follow"):
        read_header(safetensors(GOOD, bytes(9)), Limits())
    with pytest.raises(CorruptCheckpointError, match="truncated"):
        read_header(safetensors(GOOD, bytes(7)), Limits())


def test_a_dtype_without_a_torch_type_is_named() -> None:
    with pytest.raises(UnsupportedFeatureError, match="F6_E2M3"):
        read_header(safetensors(GOOD.replace("F32", "F6_E2M3"), bytes(8)), Limits())


# What is no checkpoint


@pytest.mark.parametrize(
    ("head", "error", "said"),
    [
        (b"", UnknownFormatError, "empty"),
        (b"<!DOCTYPE html><html>", UnknownFormatError, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", UnknownFormatError, "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n", UnsupportedFeatureError, "HDF5"),
        (b"\x08\n\x12\ttorchkeep\x1a\x050", UnsupportedFeatureError, "ONNX"),
        (b"GGUF\3\0\0\0", UnsupportedFeatureError, "on purpose"),
        (b"\x28\xb5\x2f\xfd", UnsupportedFeatureError, "unzstd"),
        (b"7z\xbc\xaf\x27\x1c", UnsupportedFeatureError, "7z x"),
        (b"\x89PNG\r\n", UnknownFormatError, "PNG image"),
        (bytes(100), UnknownFormatError, "zero bytes"),
        (b'{"other": 1}', UnknownFormatError, "JSON"),
        (b"hello world", UnknownFormatError, "hello"),
        (b"import torch\n", UnknownFormatError, "import"),
    ],
)
def test_other_files_are_named(head: bytes, error: type[TorchkeepError], said: str) -> None:
    found = explain(Probe(head, len(head)), "some.file")
    assert type(found) is error
    assert said in str(found)
    assert "some.file" in str(found)
    assert not any(make_part(FORMATS, name, "format").sniff(Probe(head, len(head))) for name in FORMATS)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"cos\nsystem\n(S'x'\ntR.", "plain_pickle"),
        (b"(dp0\nS'a'\nI1\ns.", "plain_pickle"),
        (b"\x80\x04]\x94.", "plain_pickle"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"\x93NUMPY\x01", "npy"),
        (b" " * 257 + b"ustar", "torch_tar"),
        (b'{"weight_map": {}}', "hf_index"),
    ],
)
def test_what_is_read_is_recognised_by_its_first_bytes(head: bytes, name: str) -> None:
    taking = [key for key in FORMATS if make_part(FORMATS, key, "format").sniff(Probe(head, len(head)))]
    assert taking == [name]


def several(*values: Any) -> bytes:
    stream = io.BytesIO()
    for value in values:
        torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_several_saves_in_one_file_are_all_read() -> None:
    ckpt = TorchLegacy().open(Bytes(several({"a": torch.ones(2)}, {"b": torch.zeros(3)})), Limits())
    assert {name: tensor.load().tolist() for name, tensor in ckpt.items()} == {"a": [1, 1], "b": [0, 0, 0]}
    assert [finding.code for finding in ckpt.findings] == ["several-saves"]
    ckpt = TorchLegacy().open(
        Bytes(several({"a": torch.ones(1)}, {"a": torch.zeros(1)}, torch.full((1,), 2.0))), Limits()
    )
    assert {name: tensor.load().item() for name, tensor in ckpt.items()} == {"0.a": 1, "1.a": 0, "2": 2}


def test_a_second_save_that_cannot_be_read_is_a_finding() -> None:
    data = several({"a": torch.ones(2)}, {"b": torch.zeros(3)})
    place = data.rindex(b"storage")
    broken = data[:place] + b"st\xffrage" + data[place + 7 :]
    ckpt = TorchLegacy().open(Bytes(broken), Limits())
    assert list(ckpt) == ["a"]
    assert any(finding.code == "trailing-data" for finding in ckpt.findings)
