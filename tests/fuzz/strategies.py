"""Inputs that are nearly right: programs of pickle opcodes, archives and streams that contradict themselves."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from contextlib import suppress
from typing import Any

from hypothesis import strategies as st

from fuzz.archives import tars, zips
from fuzz.mutation import NUMBERS as ODD_NUMBERS
from fuzz.mutation import at_random, changed

NAMES = (
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_nested_tensor"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "FloatStorage"),
    ("torch", "QInt8Storage"),
    ("torch.storage", "UntypedStorage"),
    ("torch", "FloatTensor"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "float32"),
    ("torch", "sparse_coo"),
    ("torch", "per_tensor_affine"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("builtins", "set"),
    ("builtins", "bytearray"),
    ("_codecs", "encode"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("gone", "Class"),
    ("os", "system"),
)
NUMBERS = st.sampled_from(ODD_NUMBERS)


def text(value: str) -> bytes:
    """A short string as an opcode."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """An integer as an opcode."""
    return pickle.dumps(value, 2)[2:-1]


def name(pair: tuple[str, str]) -> bytes:
    """A name as an opcode."""
    return b"c" + pair[0].encode() + b"\n" + pair[1].encode() + b"\n"


def values() -> st.SearchStrategy[bytes]:
    """Opcodes that push one value, nested calls and storages among them."""
    storage = st.builds(
        lambda kind, key, numel: b"(" + text("storage") + name(kind) + text(key) + text("cpu") + number(numel) + b"tQ",
        st.sampled_from([pair for pair in NAMES if pair[1].endswith("Storage")]),
        st.sampled_from(("0", "1", "x")),
        NUMBERS,
    )
    leaf = st.one_of(
        NUMBERS.map(number),
        st.sampled_from(NAMES).map(name),
        st.sampled_from(("a", "f8", "<", "cpu", "latin1", "storage", "")).map(text),
        st.binary(max_size=24).map(lambda raw: b"C" + bytes([len(raw)]) + raw),
        st.sampled_from((b"N", b"\x88", b")", b"]", b"}", b"\x8f", b"h\0", b"h\1", b"h\2", b"G\x7f\xf8\0\0\0\0\0\0")),
        storage,
    )
    return st.recursive(leaf, _larger, max_leaves=15)


def _larger(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    several = st.lists(inner, max_size=7).map(b"".join)
    several_pairs = st.lists(st.tuples(inner, inner).map(b"".join), max_size=4).map(b"".join)
    memo = st.integers(0, 3).map(lambda at: b"q" + bytes([at]))
    return st.one_of(
        several.map(lambda body: b"(" + body + b"t"),
        several.map(lambda body: b"](" + body + b"e"),
        several_pairs.map(lambda body: b"}(" + body + b"u"),
        several.map(lambda body: b"\x8f(" + body + b"\x90"),
        st.tuples(inner, memo).map(b"".join),
        st.builds(lambda called, args: name(called) + b"(" + args + b"tR", st.sampled_from(NAMES), several),
        st.builds(lambda made, args: name(made) + b"(" + args + b"t\x81", st.sampled_from(NAMES), several),
        st.builds(
            lambda called, args, state: name(called) + b"(" + args + b"tR(" + state + b"tb",
            st.sampled_from(NAMES),
            several,
            several,
        ),
    )


def pickles() -> st.SearchStrategy[bytes]:
    """Whole programs: protocol, one value, stop; sometimes with bytes in between that do not belong there."""
    sound = values().map(lambda body: b"\x80\x02" + body + b".")
    return st.one_of(
        sound, st.builds(lambda data, seed: at_random(data, random.Random(seed)), sound, st.integers(0, 2**32))
    )


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """The pieces of a legacy file, each of which may be another thing than it should."""
    plain = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pieces = [pickle.dumps(value, draw(st.sampled_from((0, 2, 4)))) for value in plain]
    pieces.append(draw(pickles()))
    keys = st.sampled_from((["0"], ["1", "0"], ["0", "0"], [], ["x"], 1, None, [2])).map(pickle.dumps)
    pieces.append(draw(keys))
    for _ in range(draw(st.integers(0, 2))):
        pieces.append(struct.pack("<q", draw(st.sampled_from((0, 1, 6, -1, 2**40, 2**62)))))
        pieces.append(bytes(draw(st.sampled_from((0, 4, 24)))))
    if draw(st.booleans()):
        del pieces[draw(st.integers(0, len(pieces) - 1))]
    return b"".join(pieces)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """safetensors files whose header is nearly right."""
    entry = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(("F32", "U8", "BF16", "F8_E4M3", "X", 3)),
            "shape": st.lists(NUMBERS, max_size=3),
            "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
        }
    )
    found: Any = draw(st.dictionaries(st.sampled_from(("a", "b", "é", "__metadata__")), st.one_of(entry, st.none())))
    if draw(st.booleans()):
        found["__metadata__"] = {"torchkeep": json.dumps(draw(st.dictionaries(st.sampled_from(FACTS), FACT_VALUES)))}
    body = json.dumps(found).encode()
    length = draw(st.sampled_from((len(body), len(body), len(body), 0, len(body) + 1, 2**63)))
    return struct.pack("<Q", length) + body + bytes(draw(st.sampled_from((0, 4, 24))))


FACTS = ("version", "kind", "header", "digests", "dtypes", "empty", "tied", "tree", "module", "requires_grad")
FACT_VALUES = st.one_of(NUMBERS, st.sampled_from(("object", "pack", "", {"a": "b"}, ["a"], {"a": ["float32", [1]]})))


def mutants(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Seeds with one thing changed, within their structure most often."""

    def mutant(data: bytes, seed: int) -> bytes:
        rng = random.Random(seed)
        return changed(data, lambda body: at_random(body, rng), rng)

    return st.builds(mutant, st.sampled_from(seeds), st.integers(0, 2**32))


def rebuilt(seeds: list[bytes]) -> list[st.SearchStrategy[bytes]]:
    """Archives that contradict themselves, made of the names and bodies of the records that the seeds have."""
    zipped: list[dict[str, bytes]] = []
    tarred: list[dict[str, bytes]] = []
    for data in seeds:
        with suppress(Exception):  # seeds that mean harm are refused by the standard library in many ways
            if data[:4] == b"PK\3\4":
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    zipped.append({name: archive.read(name) for name in archive.namelist()})
            elif data[257:262] == b"ustar":
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    files = {entry.name: archive.extractfile(entry) for entry in archive.getmembers()}
                    tarred.append({name: file.read() for name, file in files.items() if file is not None})
    found = []
    for archives, make in ((zipped, zips), (tarred, tars)):
        if archives:
            bodies = mutants([body for records in archives for body in records.values()])
            found.append(make(archives, st.one_of(bodies, bodies, pickles())))
    return found


BUILT: dict[str, st.SearchStrategy[bytes]] = {
    "unpickler": pickles(),
    "torch_legacy": streams(),
    "safetensors": headers(),
    "plain_pickle": pickles(),
}
"""Targets with inputs made for them; every target gets its changed seeds as well."""


def inputs(target: str, seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """What a target is given; changed seeds most often, since they are made the fastest and reach the deepest."""
    made = [BUILT[target]] if target in BUILT else []
    return st.one_of(mutants(seeds), mutants(seeds), mutants(seeds), *rebuilt(seeds), *made)
