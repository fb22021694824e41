"""A reader of runs and files, written after docs/format-v1.md, with safetensors and JSON: nothing of torchkeep is in it."""

from __future__ import annotations

import base64
import collections
import json
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file


def unsealed(path: Path) -> Any:
    data = path.read_bytes()
    start = len('{"digest":"') + 64
    body = data[start + len('","body":') : -1]
    assert data[len('{"digest":"') : start].decode() == blake3(body).hexdigest(), "damaged"
    return json.loads(body)


def plain(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [plain(child, tensors) for child in value]
    if not isinstance(value, dict):
        return value
    tag = value.get("$")
    if tag is None:
        return {key: plain(child, tensors) for key, child in value.items()}
    if tag == "tensor":
        return tensors[value["v"]].clone()
    if tag == "tensors":
        runs, names = value["v"], list(tensors)
        chosen = [name for at in range(0, len(runs), 2) for name in names[runs[at] : runs[at] + runs[at + 1]]]
        return {name.removeprefix(value["prefix"]): tensors[name].clone() for name in chosen}
    if tag == "float":
        return float(value["v"])
    if tag == "int":
        return int(value["v"], 16)
    if tag == "bytes":
        return base64.b64decode(value["v"])
    inner = plain(value["v"], tensors)
    kinds: dict[str, Any] = {
        "tuple": tuple,
        "set": set,
        "dict": dict,
        "OrderedDict": dict,
        "Counter": lambda v: collections.Counter(dict(v)),
    }
    assert tag in kinds, f"unknown tag {tag}"  # a reader must refuse what it does not know
    return kinds[tag](inner)


def snapshot(folder: str) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """The newest intact snapshot: (manifest, tensors by full name, everything else)."""
    assert json.loads(Path(folder, "torchkeep.json").read_bytes()) == {
        "format": "torchkeep-run",
        "version": 1,
        "features": [],
    }
    numbers = sorted(
        (int(path.stem) for path in Path(folder, "snapshots").iterdir() if path.name[0] != "."), reverse=True
    )
    for number in numbers:
        try:
            body = unsealed(Path(folder, "snapshots", f"{number}.json"))
            assert body["version"] == 1 and body["sequence"] == number
            packs = [load_file(f"{folder}/packs/{pack}.safetensors") for pack in body["packs"]]
            tensors: dict[str, torch.Tensor] = {}
            for name, dtype, shape, digest, pack, key, *_ in body["entries"]:
                tensor = packs[pack][key or name]
                assert blake3(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest() == digest
                assert tensor.dtype == getattr(torch, dtype) and list(tensor.shape) == shape
                tensors[name] = tensor
            return body, tensors, plain(body["state"], tensors)
        except (AssertionError, OSError, ValueError):
            continue
    raise SystemExit("no snapshot is intact")


def saved(path: str) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """A file of an object without ties, wholes and tensors on meta: (facts, tensors by name, the object)."""
    data = Path(path).read_bytes()
    raw = data[8 : 8 + int.from_bytes(data[:8], "little")]
    header = json.loads(raw)
    facts = json.loads(header.pop("__metadata__")["torchkeep"])
    assert facts["version"] == 2
    assert facts["header"] == blake3(raw.replace(facts["header"].encode(), b"0" * 64)).hexdigest(), "damaged"
    loaded = load_file(path)
    tensors = {name: loaded[name] for name in header}
    for at, name in enumerate(header):
        digest = blake3(tensors[name].reshape(-1).view(torch.uint8).numpy()).hexdigest()
        assert digest == facts["hashes"][64 * at : 64 * at + 64], "damaged"
    return facts, tensors, plain(facts["tree"], tensors)
