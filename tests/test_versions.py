"""Files for a version of torch: as that version wrote them, piece by piece, and nothing in them that it cannot open."""

from __future__ import annotations

import io
import json
import pickletools
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, train_epoch
from old_reader import Describer
from torchkeep.core.checkpoint import Checkpoint
from torchkeep.core.tensors import DTYPES, TensorSpec
from torchkeep.core.tree import leaves
from torchkeep.errors import OpenError, SaveError, UnsavableError
from torchkeep.formats._torch_versions import DTYPES_SINCE, KINDS_SINCE, NEWEST, OLDEST, torch_version
from torchkeep.formats.torch_legacy import MAGIC

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse",
    "ignore:torch.quantize",
    "ignore:The PyTorch API of nested",
    "ignore:ComplexHalf",
    "ignore:TypedStorage",
)

# One version of each layout, and those next to where one begins.
VERSIONS = ("0.4", "1.0.1", "1.4", "1.6", "1.8", "1.9", "1.13.1", "2.0", "2.1", "2.2", "2.6", "2.15")
WRITERS = ("1.1.0-py3.6", "1.3.1-py3.6", "1.4.0-py3.6", "1.5.1-py3.6", "1.6.0-py3.7", "1.8.1-py3.8", "1.12.1-py3.7",
           "2.0.1-py3.9", "2.4.1-py3.10", "2.6.0-py3.11", "2.8.0-py3.10", "2.13.0-py3.11")  # fmt: skip
STATES = ("cnn_state_dict.pth", "many_tensors.pth", "nested_state_dict.pth", "shared_views.pth", "dtypes.pth",
          "edge_tensors.pth", "quantized.pth", "sparse_coo.pth", "sparse_compressed.pth", "single_parameter.pt",
          "list_of_tensors.pt", "no_tensors.pt", "none.pt", "slice_of_big.pth", "self_reference.pth",
          "cl_channels_last.pth", "nested_tensor.pth")  # fmt: skip


def number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def described(value: Any) -> Any:
    return json.loads(json.dumps(Describer().describe(value)))


@dataclass
class Pieces:
    """A file of either layout, taken apart without torch."""

    pickle: bytes
    before: bytes
    keys: list[str]
    storages: dict[str, bytes]
    records: list[str]


def taken_apart(path: Path) -> Pieces:
    data = path.read_bytes()
    if data[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            root = names[0].split("/")[0] + "/"
            found = {name.removeprefix(root): archive.read(name) for name in names}
        storages = {name.removeprefix("data/"): found[name] for name in found if name.startswith("data/")}
        records = [root, *("data/*" if name.startswith("data/") else name for name in found)]
        return Pieces(found["data.pkl"], b"", list(storages), storages, records)
    stream, ends = io.BytesIO(data), [0]
    for _ in range(5):
        list(pickletools.genops(stream))
        ends.append(stream.tell())
    keys = [arg for op, arg, _ in pickletools.genops(data[ends[4] :]) if op.name in {"BINUNICODE", "SHORT_BINSTRING"}]
    kinds = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "QInt32": 4}
    storages, at = {}, ends[5]
    items = declared(data[ends[3] : ends[4]], kinds)
    for key in keys:
        count = int.from_bytes(data[at : at + 8], "little")
        storages[key] = data[at + 8 : at + 8 + count * items[key]]
        at += 8 + count * items[key]
    assert at == len(data)
    return Pieces(data[ends[3] : ends[4]], data[: ends[3]], keys, storages, [])


def declared(data: bytes, kinds: dict[str, int]) -> dict[str, int]:
    """Bytes of an element of each storage, by its class in the pickle."""
    found, kind = {}, ""
    for name, arg in expanded(data):
        if name == "GLOBAL" and str(arg).endswith("Storage"):
            kind = str(arg).removeprefix("torch ").removesuffix("Storage")
        elif name in {"BINUNICODE", "SHORT_BINSTRING"} and str(arg).isdigit() and kind:
            found[str(arg)] = kinds.get(kind, 1)
    return found


def expanded(data: bytes) -> list[tuple[str, Any]]:
    """The operations of a pickle, with names and texts said again where it refers to them."""
    memo: dict[int, Any] = {}
    said: list[tuple[str, Any]] = []
    for op, arg, _ in pickletools.genops(data):
        if op.name in {"BINPUT", "LONG_BINPUT"}:
            memo[arg] = said[-1] if said[-1][0] in {"GLOBAL", "BINUNICODE", "SHORT_BINSTRING"} else ("GET", None)
        else:
            said.append(memo[arg] if op.name in {"BINGET", "LONG_BINGET"} else (op.name, arg))
    return said


def numbered(keys: list[str], data: bytes) -> bytes:
    """A pickle with names of storages, where those are addresses, in the order of their appearance."""
    seen: dict[bytes, int] = {}
    known = {key.encode() for key in keys}

    def name(found: re.Match[bytes]) -> bytes:
        key = found[2]
        return b"<%d>" % seen.setdefault(key, len(seen)) if key in known else found[0]

    return re.sub(rb"X(.)\0\0\0(\d{12,17})", name, data, flags=re.DOTALL)


def without_id(data: bytes) -> bytes:
    """A file without the digits that torch makes of the names, and what depends on them."""
    at = data.find(b"/.data/serialization_id")
    if at < 0:
        return data
    begin = (at + 64) // 64 * 64
    while not data[begin : begin + 40].isdigit():
        begin += 64
    crc = data[begin + 44 : begin + 48]
    return data.replace(data[begin : begin + 20], b"<names>").replace(crc, b"<crc>")


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_is_what_that_version_wrote(checkpoints: Path, tmp_path: Path, writer: str) -> None:
    """Byte for byte, but for the addresses that old storages are named by and for half of the id of the file."""
    version = writer.partition("-")[0]
    compared, alike = 0, 0
    for name in STATES:
        old, new = checkpoints / f"torch{writer}" / name, tmp_path / name
        if not old.exists() or (name == "sparse_coo.pth" and number(version) < (1, 6)):
            continue
        report = tk.convert(old, new, for_torch=version)
        assert not report.notes
        theirs, ours = taken_apart(old), taken_apart(new)
        assert ours.before == theirs.before and ours.records == theirs.records, name
        assert ours.keys == sorted(ours.keys) or number(version) >= (2, 7), name
        if number(version) < (1, 9):
            assert sorted(ours.storages.values()) == sorted(theirs.storages.values()), name
            left, right = numbered(theirs.keys, theirs.pickle), numbered(ours.keys, ours.pickle)
            assert [step[0] for step in expanded(ours.pickle)] == [step[0] for step in expanded(theirs.pickle)], name
            alike += left == right
        else:
            assert list(ours.storages.items()) == list(theirs.storages.items()), name
            assert expanded(ours.pickle) == expanded(theirs.pickle), name
            alike += without_id(old.read_bytes()) == without_id(new.read_bytes())
        compared += 1
    # Where torch writes a text twice that is equal but not one, such as a storage's name, it is written once here.
    assert compared and compared - alike <= (2 if number(version) < (1, 9) else 1)


def items_of(data: bytes) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """The keys of the dict that a pickle is, each with the operations that make its value."""
    stack: list[tuple[int, bool]] = []
    steps = [(op, arg) for op, arg, _ in pickletools.genops(data) if "PUT" not in op.name]
    said = expanded(data)
    for at, (op, _) in enumerate(steps):
        begin = at
        popped: list[int] = []
        before = [kind.name for kind in op.stack_before]
        if "mark" in before:
            while not stack[-1][1]:
                popped.append(stack.pop()[0])
            begin = stack.pop()[0]
            before = before[: before.index("mark")]
        if op.name == "SETITEMS" and len(stack) == 1:
            starts = [*popped[::-1], at]
            for key, value, end in zip(starts[::2], starts[1::2], starts[2::2], strict=False):
                yield said[key][1], said[value:end]
        for _ in before:
            begin = min(begin, stack.pop()[0])
        stack += [(begin, kind.name == "mark") for kind in op.stack_after]


PLAIN = ("torch", "collections OrderedDict", "_codecs encode")  # a Counter is made empty and filled then


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["train_ckpt_sgd.pth", "train_ckpt_adam.pth"])
def test_a_training_checkpoint_differs_in_what_is_replaced(
    checkpoints: Path, tmp_path: Path, writer: str, name: str
) -> None:
    version = writer.partition("-")[0]
    old, new = checkpoints / f"torch{writer}" / name, tmp_path / name
    report = tk.convert(old, new, for_torch=version)
    theirs, ours = dict(items_of(taken_apart(old).pickle)), dict(items_of(taken_apart(new).pickle))
    assert list(theirs) == list(ours) and {"model", "optimizer", "epoch"} <= set(theirs) | {"model", "state_dict"}
    replaced = set()
    for key, steps in theirs.items():
        odd = [arg for op, arg in steps if op == "GLOBAL" and not arg.startswith(PLAIN)]
        if odd:
            replaced.add(key)
        else:
            assert [op for op, _ in ours[key]] == [op for op, _ in steps], key
            plain = [repr(arg) for op, arg in steps if not str(arg).isdigit()]
            assert [repr(arg) for op, arg in ours[key] if not str(arg).isdigit()] == plain, key
    assert "optimizer" not in replaced and len(replaced) < len(theirs)
    assert replaced and report.notes
    same_tensors(old, new)


def same_tensors(old: Path, new: Path) -> None:
    """Every tensor of the old file is in the new one, and the new one opens without a finding."""
    ours, theirs = tk.open(new), tk.open(old)
    assert not ours.findings
    for name, tensor in theirs.items():
        if tensor.layout == "strided" and tensor.device != "meta":
            assert described(ours[name].load())[1:7] == described(tensor.load())[1:7], name


def test_python_2_reads_what_is_written_for_its_torch(checkpoints: Path, tmp_path: Path) -> None:
    """Its own files say the same by other operations: texts are bytes, dicts are lists of pairs."""
    folder = checkpoints / "torch1.0.1-py2.7"
    for name in ("cnn_state_dict.pth", "many_tensors.pth", "shared_views.pth", "dtypes.pth", "train_ckpt_sgd.pth"):
        tk.convert(folder / name, tmp_path / name, for_torch="1.0.1")
        theirs, ours = taken_apart(folder / name), taken_apart(tmp_path / name)
        names = [{arg for op, arg in expanded(piece.pickle) if op == "GLOBAL"} for piece in (theirs, ours)]
        assert {name for name in names[1] if name.startswith("torch")} <= names[0]
        assert len(ours.before) == 137 and ours.before[:21] == theirs.before[:21]  # magic number and protocol
        if "train" not in name:
            assert sorted(ours.storages.values()) == sorted(theirs.storages.values())
        same_tensors(folder / name, tmp_path / name)


OLD_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT1", "BININT2", "BININT", "LONG1", "BINFLOAT",
    "BINUNICODE", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET",
}  # fmt: skip


def everything(version: tuple[int, ...]) -> dict[str, Any]:
    """An object of all that a version can open."""
    base, counted = torch.arange(12.0), torch.arange(64, dtype=torch.uint8)
    shared = nn.Parameter(torch.ones(2, 2))
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)  # later options of Adam name later versions
    train_epoch(model, optimizer)
    return {
        "every": {
            name: counted % 2 == 1 if name == "bool" else counted.clone().view(row.torch)
            for name, row in DTYPES.items()
            if DTYPES_SINCE[name] <= version
        },
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "base": base,
        "view": base[2:6],
        "grid": base.view(3, 4).t(),
        "one": shared,
        "again": shared,
        "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "grad": torch.ones(2).requires_grad_(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0),
        "odd/.. \n\t'ü\\\u2028": torch.tensor([float("nan"), -0.0]),
        "": torch.ones(1),
        "plain": {
            "many": list(range(2001)),
            5: [None, True, 0.1, float("inf"), 1 << 80, -1, "é😀", b"\0\xff", bytearray(b"\1"), 2j],
            "torch": (torch.float16, torch.device("cuda:1"), torch.Size([2, 3])),
        },
        "set": {1, "b"},
        "counter": Counter("aab"),
        "ordered": OrderedDict(x=1),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_comes_back_from_torch_and_from_here(tmp_path: Path, version: str) -> None:
    whole = everything(number(version))
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=f"torch=={version}")
    assert report.notes == ()
    assert described(torch.load(tmp_path / "new.pth", weights_only=True)) == described(whole)
    ckpt = tk.open(tmp_path / "new.pth")
    assert not ckpt.findings and not tk.verify(tmp_path / "new.pth").damaged
    assert ckpt.format == ("torch_legacy" if number(version) < (1, 6) else "torch_zip")
    assert includes(ckpt.provenance.producer, number(version)), ckpt.provenance
    loaded = tk.load(tmp_path / "new.pth")
    assert loaded["one"] is loaded["again"] and loaded["plain"] == whole["plain"] and loaded["set"] == whole["set"]
    tensors = {leaf.name: leaf.tensor for leaf in leaves(whole)}
    assert tensors.keys() == {leaf.name for leaf in leaves(loaded)}
    for leaf in leaves(loaded):
        assert described(leaf.tensor)[:7] == described(tensors[leaf.name])[:7], leaf.name
    pieces = taken_apart(tmp_path / "new.pth")
    assert {op.name for op, _, _ in pickletools.genops(pieces.pickle)} <= OLD_OPCODES
    names = {arg for op, arg in expanded(pieces.pickle) if op == "GLOBAL"}
    assert ("__builtin__ set" in names) == (number(version) < (2, 6))
    assert ("torch._utils _rebuild_parameter" in names) == (number(version) >= (1, 0))
    if number(version) < (2, 2):
        assert not {"torch._utils _rebuild_tensor_v3", "torch.storage UntypedStorage"} & names


def includes(producer: str, version: tuple[int, ...]) -> bool:
    """Whether a version is among those that a text such as `torch 1.6 to 1.8` names."""
    numbers = [tuple(map(int, text.split("."))) for text in re.findall(r"\d+\.\d+", producer)]
    low = numbers[0] if numbers and "earlier" not in producer else (0, 0)
    high = (99, 0) if "later" in producer or not numbers else numbers[-1]
    return producer.startswith("torch") and low <= version <= high


def test_what_reading_says_of_a_writer_is_told_apart() -> None:
    assert includes("torch 1.6 to 1.8", (1, 7)) and not includes("torch 1.6 to 1.8", (1, 9))
    assert includes("torch 2.7 or later", (2, 10)) and not includes("torch 2.7 or later", (2, 6))
    assert includes("torch", (0, 4)) and includes("torch 1.4", (1, 4)) and not includes("torch 1.4", (1, 5))


def test_reading_bounds_the_version_of_every_real_writer(checkpoints: Path) -> None:
    """Of the files that versions wrote, each is said to be of versions among which the true one is."""
    bounded = compared = 0
    for path in sorted(path for path in checkpoints.glob("torch*/*.p*t*") if path.suffix in {".pt", ".pth"})[::3]:
        version = number(path.parent.name.removeprefix("torch").partition("-")[0])
        try:
            producer = tk.open(path).provenance.producer
        except OpenError:
            continue
        if "torchkeep" not in producer and path.parent.name != "torch2.13.0-extras":
            assert includes(producer.partition(",")[0], version), (path.name, producer)
            compared += 1
            bounded += producer != "torch"
    assert compared > 100 and bounded > compared / 2


LAYOUTS = {
    "1.8": ["archive/", "data.pkl", "data/*", "data/*", "version"],
    "1.12.1": ["archive/", "data.pkl", "data/*", "data/*", "version"],
    "1.13": ["new/", "data.pkl", "data/*", "data/*", "version"],
    "2.1": ["new/", "data.pkl", "byteorder", "data/*", "data/*", "version", ".data/serialization_id"],
    "2.7": ["new/", "data.pkl", ".format_version", ".storage_alignment", "byteorder", "data/*", "data/*", "version",
            ".data/serialization_id"],
}  # fmt: skip


@pytest.mark.parametrize("version", LAYOUTS)
def test_records_are_those_of_the_version_and_aligned(tmp_path: Path, version: str) -> None:
    torch.save([torch.ones(3), torch.ones(3, dtype=torch.int16)], tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=version)
    assert taken_apart(tmp_path / "new.pth").records == LAYOUTS[version]
    data = (tmp_path / "new.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "new.pth") as archive:
        for entry in archive.infolist():
            name, extra = (int.from_bytes(data[entry.header_offset + at :][:2], "little") for at in (26, 28))
            assert (entry.header_offset + 30 + name + extra) % 64 == 0 and entry.compress_type == 0
        if version == "2.1":
            assert re.fullmatch(rb"\d{40}", archive.read("new/.data/serialization_id"))


def test_storages_of_eleven_stand_in_the_order_of_their_version(tmp_path: Path) -> None:
    torch.save([torch.full((1,), float(at)) for at in range(12)], tmp_path / "old.pth")
    for version, keys in {
        "1.12": sorted(map(str, range(12))),
        "2.6": sorted(map(str, range(12))),
        "2.7": list(map(str, range(12))),
    }.items():
        tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=version)
        assert taken_apart(tmp_path / "new.pth").keys == keys
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch="1.5")
    keys = taken_apart(tmp_path / "new.pth").keys
    assert len(set(keys)) == 12 and all(len(key) == 14 and key.isdigit() for key in keys)


# Refusals


def conjugated() -> torch.Tensor:
    return torch.tensor([1 + 2j]).conj()


TOO_NEW: dict[str, tuple[str, str, Callable[[], torch.Tensor]]] = {
    "bool": ("1.0", "1.1", lambda: torch.ones(2).bool()),
    "bfloat16": ("1.1", "1.2", lambda: torch.ones(2).bfloat16()),
    "complex64": ("1.5", "1.6", lambda: torch.ones(2, dtype=torch.complex64)),
    "complex32": ("2.1", "2.2", lambda: torch.ones(2, dtype=torch.complex32)),
    "float8_e4m3fn": ("2.1", "2.2", lambda: torch.ones(2).to(torch.float8_e4m3fn)),
    "uint16": ("2.2", "2.3", lambda: torch.ones(2).to(torch.uint16)),
    "qint8": ("1.2", "1.3", lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    "sparse_coo": ("1.5", "1.6", lambda: torch.eye(2).to_sparse()),
    "sparse_csr": ("1.10", "1.11", lambda: torch.eye(2).to_sparse_csr()),
    "sparse_csc": ("1.13", "2.0", lambda: torch.eye(2).to_sparse_csc()),
    "conjugated": ("1.13", "2.0", conjugated),
    "negated": ("1.13", "2.0", lambda: conjugated().imag),
    "meta device": ("1.9", "1.10", lambda: torch.empty(2, device="meta")),
    "nested": ("2.1", "2.2", lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)])),
    "no elements": ("0.4", "1.0", lambda: torch.zeros(2, 0)),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_NEW)
def test_what_a_version_cannot_open_is_refused_by_name(tmp_path: Path, what: str) -> None:
    last, first, make = TOO_NEW[what]
    torch.save({"model": {"fine": torch.ones(1), "layer.weight": make()}}, tmp_path / "old.pth")
    (tmp_path / "new.pth").write_bytes(b"as it was")
    with pytest.raises(UnsavableError, match=re.escape(what)) as caught:
        tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=last)
    assert "layer" in caught.value.path and f"torch {first} is the first" in str(caught.value)
    assert f"torch {last} cannot" in str(caught.value) and "torchkeep drop" in caught.value.hint
    assert ("--dtype float32" in caught.value.hint) == (what in {"bfloat16", "float8_e4m3fn"})
    assert (tmp_path / "new.pth").read_bytes() == b"as it was"
    assert len(list(tmp_path.iterdir())) == 2
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=first)
    assert not tk.open(tmp_path / "new.pth").findings
    if what != "sparse_csr":  # what torch 1.13 calls for them is gone
        torch.load(tmp_path / "new.pth", weights_only=True)


def test_a_cast_makes_it_fit(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0, float("inf")])
    torch.save({"a": values.bfloat16(), "n": torch.tensor(3)}, tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", dtype="float32", for_torch="1.0")
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert torch.equal(loaded["a"], values) and loaded["n"] == 3


@pytest.mark.parametrize("text", ["", "1", "torch", "torch>=1.4", "1.4 or so", "v1.4", 1.13, "torch==1.4;rm", "1..4"])
def test_what_names_no_version_is_refused(tmp_path: Path, text: Any) -> None:
    torch.save(torch.ones(1), tmp_path / "old.pth")
    with pytest.raises(SaveError, match="names no version"):
        tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=text)
    assert not (tmp_path / "new.pth").exists()


def test_versions_are_spelled_in_many_ways_and_end_on_both_sides(tmp_path: Path) -> None:
    more = (" 1.13.1+cu117", "1.13.0a0+git1234", "1.13.1.post2")
    for text in ("1.13", "1.13.1", "torch==1.13.1", "torch == 1.13.1", *more):
        assert torch_version(text).number == (1, 13)
    assert torch_version("0.4.1").number == OLDEST and torch_version("2.15").number == NEWEST
    with pytest.raises(SaveError, match=r"torch 0\.3") as old:
        torch_version("0.3.1")
    assert "0.4 is the oldest" in old.value.hint
    with pytest.raises(SaveError, match=r"torch 2\.16") as new:
        torch_version("2.16")
    assert "2.15 is the newest" in str(new.value) and "leave the version out" in new.value.hint
    torch.save(torch.ones(1), tmp_path / "old.pth")
    with pytest.raises(SaveError, match="same for every torch"):
        tk.convert(tmp_path / "old.pth", tmp_path / "new.safetensors", for_torch="1.4")


def test_every_dtype_has_a_first_version() -> None:
    quantized = {"qint8", "quint8", "qint32", "quint4x2", "quint2x4"}
    assert DTYPES.keys() <= DTYPES_SINCE.keys() and quantized <= DTYPES_SINCE.keys()


def test_the_table_of_the_docs_is_the_one_in_the_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (.*?) \| (\d+\.\d+) \| .* \|$", text, flags=re.MULTILINE)
    told = {name: number(first) for what, first in rows for name in re.findall(r"`(\w+)`", what)}
    assert told == DTYPES_SINCE
    assert {number(first) for _, first in rows} == {*DTYPES_SINCE.values(), *KINDS_SINCE.values()}


# Odd cases


def test_memory_that_two_dtypes_share_is_written_for_each(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    whole = {"f": base, "i": base.view(torch.int32), "tail": base[2:], "j": base.view(torch.int32)[1:3]}
    torch.save({"f": base}, tmp_path / "f.pth")
    lazy = tk.open(tmp_path / "f.pth")["f"]
    made = {
        name: lazy.replace(spec=TensorSpec(value.dtype, tuple(value.shape)), storage_offset=value.storage_offset())
        for name, value in whole.items()
    }
    source = Checkpoint(str(tmp_path / "f.pth"), "torch_zip", made, kind="tensors")
    for version in ("1.4", "1.13", "2.1"):
        report = tk.convert(source, tmp_path / "new.pth", for_torch=version)
        assert any("1 storages that tensors of several dtypes share" in note for note in report.notes)
        loaded = torch.load(tmp_path / "new.pth", weights_only=True)
        assert all(torch.equal(loaded[name], value) for name, value in whole.items())
        assert loaded["f"].data_ptr() + 8 == loaded["tail"].data_ptr()
        assert loaded["i"].data_ptr() + 4 == loaded["j"].data_ptr() != loaded["f"].data_ptr() + 4
    report = tk.convert(source, tmp_path / "new.pth", for_torch="2.2")
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert not report.notes and loaded["f"].data_ptr() == loaded["i"].data_ptr()


def test_values_that_are_too_new_are_replaced_and_said(tmp_path: Path) -> None:
    whole = {
        "dtypes": [torch.uint16, torch.float32, torch.bool],
        torch.float8_e5m2: 1,
        "mt": np.arange(5, dtype=np.uint32) + 2**31,
        "mask": np.array([True, False]),
        "u64": np.arange(2, dtype=np.uint64),
        "c": np.ones(2, np.complex64),
    }
    torch.save(whole, tmp_path / "old.pth")
    report = tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch="1.0")
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert loaded["dtypes"] == ["torch.uint16", torch.float32, "torch.bool"] and loaded["torch.float8_e5m2"] == 1
    assert loaded["mt"].tolist() == whole["mt"].tolist() and loaded["mt"].dtype is torch.int64
    assert loaded["mask"].tolist() == [1, 0] and loaded["u64"] is None and loaded["c"] is None
    notes = " ".join(report.notes)
    assert "3 dtypes that torch 1.0 does not have as text" in notes and "uint32 as tensors of int64" in notes
    assert "arrays of uint64 as None" in notes and "arrays of complex64 as None" in notes


def test_models_become_state_dicts_and_ties_stay(tmp_path: Path) -> None:
    model = TinyNet()
    tk.save(model, tmp_path / "model.safetensors")
    torch.save(model, tmp_path / "whole.pth")
    for source in ("model.safetensors", "whole.pth"):
        for version in ("0.4", "1.4", "1.13"):
            tk.convert(tmp_path / source, tmp_path / "old.pth", for_torch=version)
            state = torch.load(tmp_path / "old.pth", weights_only=True)
            assert set(state) == set(model.state_dict()) and not tk.open(tmp_path / "old.pth").findings
            assert state["fc.weight"].data_ptr() == state["tied.weight"].data_ptr()
            other = TinyNet()
            other.load_state_dict(state)
            assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("version", ["1.4", "1.8", "2.0"])
def test_wrapped_copied_and_strange_things(tmp_path: Path, version: str) -> None:
    import copy

    inner = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Sequential())
    loop: list[Any] = [torch.ones(2)]
    loop.append(loop)
    wrapped = nn.DataParallel(inner)
    whole = {"parallel": wrapped.state_dict(), "copy": copy.deepcopy(inner).state_dict(), "empty": {}, "loop": loop}
    whole["bare"] = [[], (), OrderedDict(), set()]
    torch.save(whole, tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=version)
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert loaded["loop"][1] is loaded["loop"] and loaded["bare"] == whole["bare"]
    assert described(loaded["parallel"]) == described(whole["parallel"])
    assert loaded["copy"]._metadata == whole["copy"]._metadata


@pytest.mark.parametrize("version", ["1.0", "1.4"])
def test_tensors_without_elements_have_strides_that_an_old_torch_bears(tmp_path: Path, version: str) -> None:
    """Torch 1.0 made room for size minus one times stride, and then found another size in the file."""
    shapes = [(0,), (0, 3), (2, 0), (3, 0, 2), (2, 3, 0), (0, 0)]
    torch.save([torch.zeros(shape) for shape in shapes], tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch=version)
    loaded = torch.load(tmp_path / "new.pth", weights_only=True)
    assert [tuple(tensor.shape) for tensor in loaded] == shapes
    if version == "1.0":
        for tensor in loaded:
            assert 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) <= 0


def test_every_file_of_the_corpus_for_three_versions(checkpoints: Path, tmp_path: Path) -> None:
    """Each is written or refused for a reason; what is written, torch opens, and it has no finding."""
    written = refused = 0
    files = sorted(path for path in checkpoints.rglob("*") if path.is_file() and path.suffix != ".json")
    for at, path in enumerate(files[::9]):
        version = ("1.4", "1.13", "2.1")[at % 3]
        try:
            tk.open(path)
            tk.convert(path, tmp_path / "new.pth", for_torch=version)
        except UnsavableError as error:
            assert "is the first that can" in str(error) and error.path
            refused += 1
            continue
        except OpenError:
            continue  # a shard of a distributed checkpoint
        torch.load(tmp_path / "new.pth", weights_only=True)
        assert not tk.open(tmp_path / "new.pth").findings, path
        written += 1
    assert written > 60 and refused


def test_a_write_that_fails_leaves_nothing_and_no_source_is_written_over(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "old.pth").read_bytes()
    with pytest.raises(SaveError, match="being converted"):
        tk.convert(tmp_path / "old.pth", tmp_path / "old.pth", for_torch="1.4")
    (tmp_path / "old.pth").write_bytes(data[:-100])
    with pytest.raises(OpenError, match="truncated"):
        tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch="1.4")
    assert list(tmp_path.iterdir()) == [tmp_path / "old.pth"]
    (tmp_path / "old.pth").write_bytes(data)
    steps: list[tuple[int, int]] = []
    tk.convert(tmp_path / "old.pth", tmp_path / "new.pth", for_torch="1.4", progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == (tmp_path / "new.pth").stat().st_size
    assert MAGIC.to_bytes(10, "little") in (tmp_path / "new.pth").read_bytes()[:15]


def test_the_command_line_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from torchkeep.cli.app import main

    torch.save({"w": torch.ones(2).bfloat16(), "f": frozenset({1})}, tmp_path / "new.pth")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
            patch.setattr("sys.argv", ["torchkeep", "convert", str(tmp_path / "new.pth"), *arguments])
            main()
        out, err = capsys.readouterr()
        return int(str(caught.value.code or 0)), out, err

    target = str(tmp_path / "old.pth")
    code, _, err = call(target, "--for", "torch==1.1")
    assert code == UnsavableError.exit_code and "torch 1.2 is the first" in err and not Path(target).exists()
    code, out, _ = call(target, "--for", "torch==1.1", "--dtype", "float32", "--json")
    assert code == 0 and "1 frozensets as sets" in json.loads(out)["notes"]
    assert torch.equal(torch.load(target)["w"], torch.ones(2)) and tk.open(target).format == "torch_legacy"
    code, _, err = call(target, "--for", "0.2")
    assert code == SaveError.exit_code and "oldest" in err


def test_each_says_what_is_in_a_file_as_the_other(tmp_path: Path) -> None:
    """What the interpreters of old versions run, run by this one: it has to be able to find a difference."""
    import subprocess
    import sys

    torch.save(everything((1, 13)), tmp_path / "a.pth")
    tk.convert(tmp_path / "a.pth", tmp_path / "b.pth", for_torch="1.13")
    changed = torch.load(tmp_path / "a.pth")
    changed["view"][0] += 1
    torch.save(changed, tmp_path / "c.pth")
    files = [str(tmp_path / f"{name}.pth") for name in "abc"]
    command = [sys.executable, str(Path(__file__).parent / "old_reader.py"), *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(said[0])[0] == torch.__version__ and len(said) == 4
    assert json.loads(said[1])[0] == "dict" and said[1] == said[2] != said[3]
