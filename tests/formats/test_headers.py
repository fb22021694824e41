"""The quick reader of safetensors headers against the strict one: the same tensors, or the same error, for any bytes."""

from __future__ import annotations

import json
import random
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchkeep as tk
from torchkeep.core.limits import Limits
from torchkeep.core.source import Held
from torchkeep.core.tensors import BY_SAFETENSORS
from torchkeep.errors import TorchkeepError
from torchkeep.formats import _facts, safetensors
from torchkeep.formats.safetensors import Header, read_header

Answer = tuple[Any, ...]


def answer(raw: bytes, nbytes: int, whole: bool) -> Answer:
    """What a reader makes of a header in front of some data: all of it, or the error as people see it."""
    source = Held(len(raw).to_bytes(8, "little") + raw + bytes(nbytes), "x.safetensors")
    try:
        header = read_header(source, Limits(), whole=whole)
    except TorchkeepError as error:
        return (type(error), str(error))
    return (header.metadata, list(header.entries.items()), header.data_start, list(header.by_place()))


def both(raw: bytes, nbytes: int, whole: bool = True) -> tuple[Answer, Answer, bool]:
    """The answer as it is read, the strict one, and whether the quick reader gave the first."""
    taken: list[Header | None] = []
    quick: Callable[..., Header | None] = safetensors._quick

    def watched(*args: Any, **options: Any) -> Header | None:
        taken.append(quick(*args, **options))
        return taken[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "_quick", watched)
        mine = answer(raw, nbytes, whole)
        patch.setattr(safetensors, "_quick", lambda *args, **options: None)
        return mine, answer(raw, nbytes, whole), bool(taken) and taken[0] is not None


def header(tensors: list[tuple[str, str, list[int]]], metadata: dict[str, str] | None = None, **style: Any) -> bytes:
    """A good header, written as `style` tells json.dumps; tensors without bytes are among them."""
    made: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, dtype, shape in tensors:
        start, size = end, BY_SAFETENSORS[dtype].torch.itemsize
        for length in shape:
            size *= length
        end += size
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps(made, **({"separators": (",", ":"), "ensure_ascii": False} | style)).encode()


TENSORS = [
    ("a", "F32", [2]),
    ("b.weight", "BF16", [2, 3]),
    ("ü", "I64", []),
    ("none", "U8", [0, 4]),
    ("z", "BOOL", [3]),
]
NBYTES = 8 + 12 + 8 + 0 + 3
GOOD = [
    header(TENSORS),
    header(TENSORS, {"format": "pt"}) + b"   ",
    header(TENSORS, {"format": "pt", "text": 'a "quoted", one', "more": "{}"}),
    header(TENSORS, {"back": "a\\b", "tab": "\t", "end": '"},"'}),
    header(TENSORS, {"format": "pt"}, separators=(", ", ": ")),
    header(TENSORS, {"format": "pt"}, ensure_ascii=True),
    header(TENSORS, {}),
    header([('say "a"', "F32", [2]), *TENSORS[1:]], {"format": "pt"}),
    header([("back\\slash", "F32", [2]), *TENSORS[1:]], {"format": "pt"}),
    b"{" + header(TENSORS)[1:-1] + b',"__metadata__":{"format":"pt"}}',
]


@pytest.mark.parametrize("raw", GOOD)
def test_good_headers_are_read_alike(raw: bytes) -> None:
    mine, strict, _ = both(raw, NBYTES)
    assert mine == strict and len(mine) == 4
    assert [name for name, _ in mine[1]][1:] == [name for name, _, _ in TENSORS][1:]


def test_the_headers_of_nearly_all_files_are_read_quickly() -> None:
    spaced = header(TENSORS, separators=(", ", ": "), indent=1)
    assert [both(raw, NBYTES)[2] for raw in (*GOOD[:3], spaced)] == [True] * 4


def test_tensors_in_another_order_than_their_bytes_are_read_quickly() -> None:
    parsed = json.loads(GOOD[0])
    turned = json.dumps(dict(reversed(parsed.items())), separators=(",", ":")).encode()
    mine, strict, quick = both(turned.replace(b"\\u00fc", "ü".encode()), NBYTES)
    assert mine == strict and quick and mine[3] == [name for name, _, _ in TENSORS]


# Each of these is refused, and the quick reader alone would have taken many: a key that stands twice, in any disguise.
TWICE = [
    ('"a":{', '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{'),
    ('"dtype":"F32"', '"dtype":"F64","dtype":"F32"'),
    ('"dtype":"F32"', '"d\\u0074ype":"F64","dtype":"F32"'),
    ('"shape":[2]', '"shape":[1],"shape":[2]'),
    ('"data_offsets":[0,8]', '"data_offsets":[0,4],"data_offsets":[0,8]'),
    ('"format":"pt"', '"format":"pt","format":"pt"'),
    ('"format":"pt"', '"format":"pt","f\\u006frmat":"pt"'),
    ('"format":"pt"', '"format":"pt","x":"\\"\\"","x":""'),
    ('"format":"pt"', '"format":"pt","x\\"":"","x\\"":""'),
    ('"format":"pt"}', '"format":"pt"},"__metadata__":{"format":"pt"}'),
    ('"a":{', '"__metadata__":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{'),
    ('"a":{', '"\\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{'),
]


@pytest.mark.parametrize(("old", "new"), TWICE)
def test_a_key_that_stands_twice_is_found_in_any_disguise(old: str, new: str) -> None:
    assert old.encode() in GOOD[1]
    mine, strict, quick = both(GOOD[1].replace(old.encode(), new.encode(), 1), NBYTES)
    assert mine == strict and not quick and len(mine) == 2


@pytest.mark.parametrize("before", [b" ", b"\n", b"\xef\xbb\xbf", b"\0", b"["])
def test_a_header_begins_with_a_brace(before: bytes) -> None:
    for raw in GOOD[:3]:
        mine, strict, quick = both(before + raw, NBYTES)
        assert mine == strict and not quick and len(mine) == 2
    assert both(GOOD[1] + b" \n\t ", NBYTES)[2]


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        ([-2, -1], 2),
        ([1] * 65, 1),
        ([0, 1 << 62], 0),
        ([1 << 61, 2], 1 << 62),
        ([1 << 61], 1 << 61),
        ([2], 3),
        ([2], 1),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_odd_sizes_are_read_alike(shape: list[int], end: int, whole: bool) -> None:
    raw = json.dumps({"a": {"dtype": "U8", "shape": shape, "data_offsets": [0, end]}}).encode()
    mine, strict, _ = both(raw, min(end, 2), whole)
    assert mine == strict
    assert (len(mine) == 4) is (shape == [1 << 61] and not whole)


PIECES = [
    *(
        b'{ } [ ] , : " \\ \\" 0 1 -1 2.0 1e3 01 -0 true null NaN "" "a" "dtype" "shape" "data_offsets" "F32" "U8"'.split()
    ),
    *(
        b'\\u0061 \\u0022 "__metadata__" "__metadata__":{}, "x":1, [] {} }} 4611686018427387904 18446744073709551616'.split()
    ),
    *(
        b" ",
        b"\n",
        b"\t",
        b"\0",
        b"\x0b",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xc3",
        b"\xef\xbb\xbf",
        "ü".encode(),
        b'","',
        b'"},"',
    ),
]


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """A header with one to three small changes: bytes, pieces of JSON, numbers, and stretches taken out or doubled."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        upto = min(len(data), at + rng.choice((0, 1, 1, 2, 5, 20, 60)))
        way = rng.randrange(6)
        if way == 5:
            data[0:0] = rng.choice(PIECES)
        elif way == 0:
            data[at:upto] = rng.choice(PIECES)
        elif way == 1:
            data[at:at] = data[at:upto]
        elif way == 2:
            del data[at:upto]
        elif way == 3 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        else:
            keys = [i for i in range(len(data)) if data[i : i + 1] == b'"'] or [0]
            start, end = sorted((rng.choice(keys), rng.choice(keys)))
            data[rng.choice(keys) : 0] = data[start:end]
        data = data or bytearray(b"{}")
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_changed_headers_are_read_alike(seed: int) -> None:
    rng = random.Random(seed)
    quickly = refused = 0
    for _ in range(4000):
        raw = mutated(rng.choice(GOOD), rng)
        whole, nbytes = rng.random() < 0.8, rng.choice((NBYTES, NBYTES, NBYTES, NBYTES - 1, 0, NBYTES + 1))
        mine, strict, quick = both(raw, nbytes, whole)
        assert mine == strict, (raw, nbytes, whole)
        quickly += quick
        refused += len(mine) == 2
    assert quickly > 40
    assert refused > 1000


numbers = st.one_of(
    st.integers(-1, 9), st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 64, True, None, 2.0, "2", [], float("nan")])
)
values = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*BY_SAFETENSORS, "F6", "", 5, None]),
            "shape": st.lists(numbers, max_size=3) | st.just([1] * 65) | numbers,
            "data_offsets": st.lists(numbers, min_size=1, max_size=3) | numbers,
        },
        optional={"more": numbers},
    ),
    st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), st.lists(numbers, max_size=2)),
    numbers,
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", "é", "\u2028", '"', "\\", "\x7f", ""]), values, max_size=4
)


@settings(max_examples=400, deadline=None)
@given(headers, st.integers(0, 24), st.booleans(), st.booleans())
def test_headers_of_any_values_are_read_alike(made: dict[str, Any], nbytes: int, whole: bool, ascii_only: bool) -> None:
    raw = json.dumps(made, separators=(",", ":"), ensure_ascii=ascii_only).encode()
    mine, strict, _ = both(raw, nbytes, whole)
    assert mine == strict


# Facts: whatever they say under a right digest, opening and looking ends in a checkpoint or in an error of ours


def facts_of(tmp_path: Path) -> list[tuple[str, dict[str, Any], bytes]]:
    """The facts of files of several kinds as text, with the rest of their headers and their data."""
    tied = torch.ones(2)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("passing", torch.ones(2), persistent=False)
    odd = {"c": torch.ones(1, dtype=torch.complex128), "m": torch.empty(2, device="meta"), "t": tied, "u": {"t": tied}}
    torch.save(
        {"coo": torch.eye(2).to_sparse(), "q": torch.quantize_per_tensor(tied, 0.1, 3, torch.qint8)}, tmp_path / "p"
    )
    made = []
    for obj in (model, odd, {"model": OrderedDict(model.state_dict()), "lr": 0.5}, tk.open(tmp_path / "p").tree):
        tk.save(obj, tmp_path / "x.safetensors")
        data = (tmp_path / "x.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        tensors = json.loads(data[8 : 8 + length])
        made.append((tensors.pop("__metadata__")["torchkeep"], tensors, data[8 + length :]))
    return made


def sealed(facts: bytes, tensors: dict[str, Any], data: bytes) -> bytes:
    """A file whose header has the digest that it should have, where its facts still have a place for one."""
    text = re.sub(rb'"header":"[0-9a-f]{64}"', b'"header":"' + b"0" * 64 + b'"', facts).decode(errors="ignore")
    raw = json.dumps({"__metadata__": {"torchkeep": text}, **tensors}, ensure_ascii=False).encode()
    raw = raw.replace(b"0" * 64, blake3(raw).hexdigest().encode(), 1)
    return len(raw).to_bytes(8, "little") + raw + data


def looked_at(data: bytes) -> bool:
    """Whether a file opens; all that can be asked of it is asked."""
    try:
        ckpt = tk.open(Held(data, "x.safetensors"))
        str(ckpt), ckpt.facts.tree, ckpt.facts.module, ckpt.frozen, ckpt.modules, ckpt.model, tk.to_json(ckpt)
        for tensor in ckpt.values():
            str(tensor), tensor.identity, tensor.load()
        tk.load(Held(data, "x.safetensors"))
    except TorchkeepError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")  # what torch says of odd tensors
def test_changed_facts_with_a_right_digest_only_raise_errors_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = facts_of(tmp_path)
    assert all(looked_at(sealed(text.encode(), tensors, data)) for text, tensors, data in kinds)
    rng = random.Random(0)
    opened = 0
    for number in range(1500):
        monkeypatch.setattr(_facts, "_FEW", 1000 if number % 2 else -1)  # what is short, decoded at once and late
        text, tensors, data = rng.choice(kinds)
        opened += looked_at(sealed(mutated(text.encode(), rng), tensors, data))
    assert 100 < opened < 1200
