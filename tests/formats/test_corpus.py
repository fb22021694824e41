"""Every file of the corpus: what can be read agrees with what its writer saw in it, the rest is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import torchkeep as tk
from torchkeep.core.checkpoint import Checkpoint
from torchkeep.core.names import name_paths
from torchkeep.core.tensors import LazyTensor
from torchkeep.core.tree import Record, children, leaves
from torchkeep.errors import TorchkeepError, UnsupportedFeatureError

# Rebuild functions of tensors that are not read yet: a file that names one is refused.
UNREAD_CALLS = (b"_rebuild_qtensor", b"_rebuild_sparse", b"_rebuild_nested_tensor", b"_rebuild_wrapper_subclass")
MODULE_DICTS = ("_parameters", "_buffers", "_modules")
UNREAD_GROUPS = frozenset({"torchscript", "package", "pt2"})


def corpus_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".json"))


def sidecar_of(path: Path) -> dict[str, Any]:
    for candidate in (Path(f"{path}.json"), Path(f"{path.parent}.json")):
        if candidate.exists():
            return json.loads(candidate.read_text())
    return {}


def is_readable(path: Path, sidecar: dict[str, Any]) -> bool:
    """Whether a file is one of those that this version promises to read, decided without reading it."""
    data = path.read_bytes()
    if any(call in data for call in UNREAD_CALLS) or sidecar.get("group") in UNREAD_GROUPS:
        return False
    if data[:2] == b"PK":
        of_torch_14 = "torch1.4" in path.parts[-2]  # storages in tensors/
        shard = path.suffix == ".distcp"
        return not of_torch_14 and not shard
    magic = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    return magic in data[:64] or b"119547037146038801333356" in data[:64] or path.suffix == ".safetensors"


def plain_name(tensor: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(key) for key in tensor["path"])


def bytes_of(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if not dense.numel():
        return b""
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def differences(name: str, tensor: LazyTensor, said: dict[str, Any]) -> list[str]:
    """What is different between a tensor and what its writer saw."""
    pairs = {
        "shape": (list(tensor.shape), said["shape"]),
        "dtype": (str(tensor.dtype), f"torch.{said['dtype']}"),
        "stride": (list(tensor.stride), said.get("stride", list(tensor.stride))),
        "requires_grad": (tensor.requires_grad, said.get("requires_grad", tensor.requires_grad)),
        "location": (tensor.device, said.get("location", tensor.device)),
        "kind": (tensor.kind, said["kind"]),
    }
    if tensor.device != "meta" and said.get("sha256"):
        pairs["sha256"] = (hashlib.sha256(bytes_of(tensor.load())).hexdigest(), said["sha256"])
    return [f"{name} {what}: {here!r} != {there!r}" for what, (here, there) in pairs.items() if here != there]


def compare(ckpt: Checkpoint, sidecar: dict[str, Any], *, part: bool) -> list[str]:
    """What is different between a checkpoint and its sidecar; a part need not have every tensor."""
    said = dict(zip(name_paths([plain_name(tensor) for tensor in sidecar["tensors"]]), sidecar["tensors"], strict=True))
    ours = {name: tensor for name, tensor in ckpt.items() if not tensor.class_name.endswith("Storage")}
    paths = {leaf.name: leaf.path for leaf in leaves(ckpt.tree)} if ckpt.tree is not None else {}
    found = [
        f"{name} is not in the sidecar"
        for name in ours
        if name not in said and not is_attribute(ckpt.tree, paths.get(name, ()))
    ]
    if not part:
        found += [f"{name} was not found" for name in said if name not in ours]
    for name in ours.keys() & said.keys():
        found += differences(name, ours[name], said[name])
    return found


def compare_modules(ckpt: Checkpoint, sidecar: dict[str, Any]) -> list[str]:
    said = {".".join(map(str, each["path"])): (each["class"], each["training"]) for each in sidecar.get("modules", [])}
    ours = {module.path: (module.class_name, module.training) for module in ckpt.modules}
    return [f"module {path!r}: {ours.get(path)} != {what}" for path, what in said.items() if ours.get(path) != what]


def is_attribute(tree: Any, path: tuple[str, ...]) -> bool:
    """Whether a tensor is an attribute of an object that no module registered; sidecars have none of these."""
    node = tree
    for key in path:
        if isinstance(node, Record):
            registered = node.is_module and any(key in node.state[holder] for holder in MODULE_DICTS)
            if not registered:
                return True
        node = next(child for segment, child, _ in children(node) if segment == key)
    return False


def producer_fits(path: Path, ckpt: Checkpoint) -> bool:
    """Whether the version that wrote a file lies within what is said of its producer."""
    writer = re.search(r"torch(\d+)\.(\d+)\.\d", str(path))
    said = [(int(a), int(b)) for a, b in re.findall(r"(\d+)\.(\d+)(?!\.)", ckpt.provenance.producer.split(",")[0])]
    if writer is None or not said:
        return True
    version = (int(writer[1]), int(writer[2]))
    if "later" in ckpt.provenance.producer:
        return version >= said[0]
    if "earlier" in ckpt.provenance.producer:
        return version <= said[0]
    return said[0] <= version <= said[-1]


def known_exception(path: Path, ckpt: Checkpoint) -> str:
    """Why a file may differ from its sidecar; empty if it may not."""
    if any(module.class_name == "<computed by the file>" for module in ckpt.modules):
        return "the class itself is made by the pickle (cloudpickle), so it has no name"
    return ""


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_every_file_agrees_or_is_refused(checkpoints: Path, capsys: Any) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    excused: list[str] = []
    for path in corpus_files(checkpoints):
        sidecar = sidecar_of(path)
        label = "/".join(path.parts[-2:])
        try:
            ckpt = tk.open(path)
        except UnsupportedFeatureError as error:
            counts["refused"] += 1
            if is_readable(path, sidecar) or "torchkeep" not in str(error):
                wrong.append(f"{label}: {error}")
            continue
        except TorchkeepError as error:
            wrong.append(f"{label}: {error}")
            continue
        if not is_readable(path, sidecar):
            wrong.append(f"{label}: was opened and should not have been")
        counts["opened"] += 1
        if "tensors" not in sidecar:
            counts["without sidecar"] += 1
            continue
        found = compare(ckpt, sidecar, part=path.parent.is_dir() and sidecar.get("format") == "dir")
        found += compare_modules(ckpt, sidecar)
        if not producer_fits(path, ckpt):
            found.append(f"producer {ckpt.provenance.producer!r}")
        counts["tensors"] += len(ckpt)
        reason = known_exception(path, ckpt)
        if found and reason:
            excused.append(f"{label}: {reason}")
        elif found:
            wrong.append(f"{label}: {found[:4]}")
        else:
            counts["agree"] += 1
    with capsys.disabled():
        print(f"\ncorpus: {dict(counts)}; exceptions {len(excused)}")
        for line in excused:
            print("   ", line)
    assert not wrong, "\n".join(wrong[:40])
    assert counts["agree"] + len(excused) + counts["without sidecar"] == counts["opened"]
    assert counts["opened"] > 500
