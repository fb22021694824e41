"""Every file of the corpus: what can be read agrees with what its writer saw in it, the rest is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchkeep as tk
from torchkeep.core.checkpoint import Checkpoint
from torchkeep.core.names import name_paths
from torchkeep.core.tensors import LazyTensor
from torchkeep.core.tree import ABSENT, Global, Record, children, leaves
from torchkeep.errors import TorchkeepError

MODULE_DICTS = ("_parameters", "_buffers", "_modules")
INDEXES = re.compile(r".*\.index\.json")


def samples(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every file, and every folder that is one checkpoint, with what its writer saw; files inside of such a folder
    belong to it."""
    found = []
    for path in sorted(root.rglob("*")):
        sidecar = Path(f"{path}.json")
        said = json.loads(sidecar.read_text()) if sidecar.exists() else {}
        inside = path.parent != root and Path(f"{path.parent}.json").exists()
        is_sidecar = path.suffix == ".json" and not INDEXES.fullmatch(path.name)
        if (path.is_dir() and said) or (path.is_file() and not inside and not is_sidecar):
            found.append((path, said))
    return found


def plain_name(tensor: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(key) for key in tensor["path"])


def bytes_of(tensor: torch.Tensor) -> bytes:
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if not dense.numel():
        return b""
    return dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(bytes_of(tensor)).hexdigest()


def composed(tensor: Any, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a sparse or quantized tensor is made of, here and as its writer saw it."""
    parts = {name: part.load() for name, part in tensor.parts.items()}
    pairs: dict[str, tuple[Any, Any]] = {"layout": (tensor.layout, said["layout"])}
    if "sparse" in said:
        pairs["indices"] = (parts["indices"].tolist(), said["sparse"]["indices"])
        pairs["values"] = (sha256(parts["values"]), said["sparse"]["values_sha256"])
        if tensor.composition.coalesced is not None:  # files before 2.0 do not have the flag
            pairs["coalesced"] = (tensor.load().is_coalesced(), said["sparse"]["is_coalesced"])
    if "compressed" in said:
        names = ("compressed_indices", "plain_indices")
        pairs |= {name: (parts[name].tolist(), said["compressed"][name]) for name in names}
        pairs["values"] = (sha256(parts["values"]), said["compressed"]["values_sha256"])
        pairs["whole"] = (str(tensor.load().layout), f"torch.{said['layout']}")
    if "quant" in said:
        how, real = said["quant"], tensor.load()
        pairs["layout"] = (tensor.layout, "quantized")
        pairs["scheme"] = (str(real.qscheme()), how["qscheme"])
        pairs["sha256"] = (sha256(real.int_repr()), said["sha256"])
        if "scale" in how:
            pairs["scale"] = ((real.q_scale(), real.q_zero_point()), (how["scale"], how["zero_point"]))
        else:
            zeros, axis = real.q_per_channel_zero_points().tolist(), real.q_per_channel_axis()
            pairs["axis"] = ((axis, zeros), (how["axis"], how["zero_points"]))
            pairs["scales"] = (real.q_per_channel_scales().tolist(), how["scales"])
    return pairs


def holds_attributes(tensor: LazyTensor) -> bool:
    """Whether the torch that wrote it kept classes and attributes of tensors: its rebuild functions tell."""
    data = bytes(tensor.source.read(0, tensor.source.size))
    return b"_rebuild_from_type" in data or b"_rebuild_parameter_with_state" in data


def differences(name: str, tensor: LazyTensor, said: dict[str, Any]) -> list[str]:
    """What is different between a tensor and what its writer saw."""
    pairs = {
        "shape": (list(tensor.shape), said["shape"]),
        "dtype": (str(tensor.dtype), f"torch.{said['dtype']}"),
        "stride": (list(tensor.stride), said.get("stride", list(tensor.stride))),
        "requires_grad": (tensor.requires_grad, said.get("requires_grad", tensor.requires_grad)),
        "location": (tensor.device, said.get("location", tensor.device)),
        "kind": (tensor.kind, said.get("kind", tensor.kind)),
    }
    if tensor.layout == "chunked" or "layout" not in said:
        pass
    elif tensor.layout != "strided" or said["layout"] != "strided":
        pairs |= composed(tensor, said)
    if "py_attrs" in said and holds_attributes(tensor):
        state = tensor.attributes if isinstance(tensor.attributes, dict) else {}
        pairs["attributes"] = ({key: state.get(key) for key in said["py_attrs"]}, said["py_attrs"])
    own = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
    if said.get("class", own[0]) not in own and holds_attributes(tensor):
        pairs["class"] = (tensor.class_name, said["class"])
    if tensor.device != "meta" and said.get("sha256") and "quant" not in said:
        pairs["sha256"] = (sha256(tensor.load()), said["sha256"])
    return [f"{name} {what}: {here!r} != {there!r}" for what, (here, there) in pairs.items() if here != there]


def compare(ckpt: Checkpoint, sidecar: dict[str, Any]) -> list[str]:
    """What is different between a checkpoint and its sidecar."""
    said = dict(zip(name_paths([plain_name(tensor) for tensor in sidecar["tensors"]]), sidecar["tensors"], strict=True))
    ours = {name: tensor for name, tensor in ckpt.items() if not tensor.class_name.endswith("Storage")}
    if sidecar.get("group") in {"torchscript", "pt2"}:  # listed from what torch made of them: flags and kinds are lost
        keep = ("shape", "dtype", "location", "sha256")
        said = {name: {key: each[key] for key in keep if key in each} for name, each in said.items()}
    paths = {} if ckpt.tree is ABSENT else {leaf.name: leaf.path for leaf in leaves(ckpt.tree)}
    found = [
        f"{name} is not in the sidecar"
        for name in ours
        if name not in said
        and ours[name].layout != "nested"
        and not in_a_tuple(name, said)
        and not is_attribute(ckpt.tree, paths.get(name, ()))
    ]
    found += [f"{name} was not found" for name in said if name not in ours]
    for name in ours.keys() & said.keys():
        found += differences(name, ours[name], said[name])
    return found


def simple(value: Any) -> Any:
    """A hyper-parameter as sidecars have it: tuples as lists, what is more than that as Python prints it."""
    if isinstance(value, (tuple, list)):
        return [simple(item) for item in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)


def compare_modules(ckpt: Checkpoint, sidecar: dict[str, Any]) -> tuple[list[str], int]:
    """What is different between the modules here and there, and how many hyper-parameters were compared."""
    ours = {module.path: module for module in ckpt.modules}
    wrong, compared = [], 0
    for each in sidecar.get("modules", []):
        path = ".".join(map(str, each["path"]))
        module = ours.get(path)
        if module is None:
            wrong.append(f"module {path!r} was not found")
            continue
        hooks = {kind: [name.rpartition(".")[2] for name in names] for kind, names in module.hooks.items()}
        pairs = {
            "class": (module.class_name, each["class"]),
            "training": (module.training, each["training"]),
            "children": (list(module.children), each.get("children", list(module.children))),
            "parameters": (dict(module.parameters), each.get("parameters", dict(module.parameters))),
            "buffers": (list(module.buffers), each.get("buffers", list(module.buffers))),
            "hooks": ({kind: hooks.get(kind) for kind in each.get("hooks", {})}, each.get("hooks", {})),
        }
        for key, value in each.get("hyper", {}).items():
            compared += 1
            ours_too = module.attributes.get(key, "<absent>")
            if not isinstance(ours_too, (LazyTensor, Global)):
                pairs[key] = (simple(ours_too), value)
        wrong += [f"module {path!r} {what}: {a!r} != {b!r}" for what, (a, b) in pairs.items() if a != b]
    return wrong, compared


def compare_leaves(ckpt: Checkpoint, sidecar: dict[str, Any]) -> tuple[list[str], int]:
    """Plain values and NumPy values of the tree, by their path."""
    wrong, compared = [], 0
    for leaf in sidecar.get("leaves", []):
        kind = str(leaf.get("type"))
        if not kind.startswith(("builtins.", "numpy.")) or kind in NOT_VALUES or leaf.get("repr") is None:
            continue
        node = at(ckpt.tree, leaf["path"])
        compared += 1
        ours, said = plain_repr(node), plain_text(leaf["repr"])
        if not (ours.startswith(said) if len(leaf["repr"]) == CUT else ours == said):
            wrong.append(f"value {leaf['path']}: {plain_repr(node)[:80]} != {leaf['repr'][:80]}")
    return wrong, compared


CUT = 200  # characters that sidecars have of a value at most

# Not values that a file holds: the names of classes and functions, and calls that are kept as records.
NOT_VALUES = frozenset(
    {"builtins.type", "builtins.function", "builtins.builtin_function_or_method", "builtins.slice", "builtins.range"}
    | {"builtins.ellipsis", "builtins.method"}
)


def plain_repr(value: Any) -> str:
    if isinstance(value, (np.ndarray, np.generic)):
        with np.printoptions(legacy="1.25", threshold=1000):
            return plain_text(repr(value))
    return plain_text(repr(value))


def plain_text(text: str) -> str:
    """Without what differs between versions of NumPy and Python: white space, `np.float64(...)`, `u''`, `b''`, `L`."""
    text = re.sub(r"^np\.(\w+_)$|^np\.\w+\((.*)\)$", r"\1\2", re.sub(r"\s+", "", text)).strip("_")
    text = re.sub(r"\b[ub]'", "'", re.sub(r"(\d)L\b", r"\1", text))
    return re.sub(r",dtype=(int32|'>i4')\)", ")", text)  # NumPy once printed big-endian integers as native ones


def at(node: Any, path: list[Any]) -> Any:
    for key in path:
        if isinstance(node, Record):
            node = {segment: child for segment, child, _ in children(node)}[str(key)]
        else:
            node = node[key]
    return node


def in_a_tuple(name: str, said: dict[str, Any]) -> bool:
    """Whether a tensor stands in a tuple of a state dict, as packed weights do, which sidecars do not enter."""
    above, _, key = name.rpartition(".")
    return "_packed_params" in above and key.isdigit() and not any(other.startswith(above + ".") for other in said)


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
    said = [(int(a), int(b)) for a, b in re.findall(r"(?<![\d.])(\d+)\.(\d+)", ckpt.provenance.producer.split(",")[0])]
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


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:Sparse")
def test_every_file_opens_and_agrees(checkpoints: Path, capsys: Any) -> None:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    excused: list[str] = []
    for path, sidecar in samples(checkpoints):
        label = "/".join(path.parts[-2:])
        counts["files"] += 1
        try:
            ckpt = tk.open(path)
        except TorchkeepError as error:
            wrong.append(f"{label}: {error}")
            continue
        if "tensors" not in sidecar:
            counts["without sidecar"] += 1
            for tensor in ckpt.values():
                tensor.load()
            continue
        found = compare(ckpt, sidecar)
        differing, hyper = compare_modules(ckpt, sidecar)
        changed, values = compare_leaves(ckpt, sidecar)
        found += differing + changed
        if not producer_fits(path, ckpt):
            found.append(f"producer {ckpt.provenance.producer!r}")
        counts.update(tensors=len(ckpt), modules=len(sidecar.get("modules", [])), hyper=hyper, values=values)
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
    assert not wrong, f"{len(wrong)} of {counts['files']}\n" + "\n".join(wrong[:40])
    assert counts["files"] > 700
    assert len(excused) < counts["files"] / 100
