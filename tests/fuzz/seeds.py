"""Makes the seeds: small genuine files of every kind. `python -m fuzz.seeds` from the folder of the tests."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.package import PackageExporter

from fuzz.kept import kept
from fuzz.targets import as_input

HERE = Path(__file__).parent
MOST = 1 << 15


def saved(value: Any, **options: Any) -> bytes:
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def values() -> dict[str, Any]:
    """Objects of many kinds, each small."""
    base = torch.arange(6.0)
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    return {
        "views": {"a": base, "b": base[1:4], "c": base.view(2, 3).t(), "conj": torch.tensor([1j]).conj()},
        "state": model.state_dict(),
        "module": model[0],
        "dtypes": [torch.zeros(1, dtype=d) for d in (torch.bfloat16, torch.int8, torch.uint16, torch.float8_e5m2)],
        "sparse": {"coo": torch.eye(2).to_sparse(), "csr": torch.eye(2).to_sparse_csr()},
        "quantized": torch.quantize_per_tensor(base, 0.1, 3, torch.qint8),
        "channels": torch.quantize_per_channel(base.view(2, 3), torch.ones(2), torch.zeros(2), 0, torch.quint8),
        "nested": torch.nested.nested_tensor([base[:2], base]),
        "meta": torch.empty(2, device="meta"),
        "numpy": {
            "a": np.arange(3),
            "s": np.float32(2),
            "d": np.dtype([("x", "<f4")]),
            "t": np.array(["2020"], "M8[Y]"),
        },
        "plain": {1: (2.5, None, True, 1 << 70, "é"), "s": {1}, "f": frozenset({2}), "o": OrderedDict(a=b"x", b=[1j])},
        "records": argparse.Namespace(lr=0.1, layers=[1, 2], inner=argparse.Namespace(x=base[:2])),
    }


def pickles() -> dict[str, bytes]:
    """The pickles of torch's files, and plain ones of every protocol."""
    found = {}
    for name, value in values().items():
        with zipfile.ZipFile(io.BytesIO(saved(value))) as archive:
            found[name] = archive.read("archive/data.pkl")
    for protocol in range(6):
        plain = {key: value for key, value in values().items() if key in {"plain", "numpy"}}
        found[f"protocol{protocol}"] = pickle.dumps(plain, protocol)
    return found


def repacked(data: bytes, method: int) -> bytes:
    """The same records, packed by another program."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return out.getvalue()


def tar() -> bytes:
    """What torch 0.1 wrote, by hand: torch cannot write it any more."""
    storage = pickle.dumps(1, 2) + pickle.dumps((7, "cpu", torch.FloatStorage), 2)
    storage += (2).to_bytes(8, "little") + np.ones(2, np.float32).tobytes() + pickle.dumps([], 2)
    tensor = pickle.dumps(1, 2) + pickle.dumps((9, 7, torch.FloatTensor), 2) + (1).to_bytes(4, "little") + bytes(4)
    tensor += b"".join(number.to_bytes(8, "little") for number in (2, 1, 0))
    members = {"sys_info": pickle.dumps({}, 2), "storages": storage, "tensors": tensor}
    members["pickle"] = b"\x80\x02}U\x01aU\x019Qs."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return out.getvalue()


def seeds() -> dict[str, dict[str, bytes]]:
    """Target -> name -> bytes."""
    tensors = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    whole = values()
    legacy = {
        name: saved(value, _use_new_zipfile_serialization=False) for name, value in whole.items() if name != "dtypes"
    }
    zips = {name: saved(value) for name, value in whole.items()}
    return {
        "unpickler": pickles(),
        "torch_zip": zips
        | {f"stored-{n}": repacked(zips[n], zipfile.ZIP_STORED) for n in ("views", "plain")}
        | {f"deflated-{n}": repacked(zips[n], zipfile.ZIP_DEFLATED) for n in ("views", "sparse")},
        "torch_legacy": legacy | {"two": legacy["views"] + legacy["meta"]},
        "safetensors": {"plain": save_safetensors(tensors), "text": save_safetensors(tensors, {"k": "v"}), **own()},
        "plain_pickle": {f"p{p}": pickle.dumps({"t": torch.ones(2), "n": np.ones(2)}, p) for p in range(6)},
        "compressed": {"zip": gzip.compress(zips["meta"]), "legacy": gzip.compress(legacy["meta"])},
        "torch_tar": {"one": tar()},
        **archives(),
        **folders(),
    }


class Net(nn.Module):
    """A module with a child, that can be scripted and exported."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 2)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.steps


def archives() -> dict[str, dict[str, bytes]]:
    """What else torch and NumPy write into zips."""
    script, mobile, package, program, arrays = (io.BytesIO() for _ in range(5))
    scripted = torch.jit.script(Net())
    torch.jit.save(scripted, script)
    mobile.write(scripted._save_to_buffer_for_lite_interpreter())
    with PackageExporter(package) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", nn.Linear(1, 2))
        exporter.save_source_string("notes", "x = 1")
    torch.export.save(torch.export.export(Net(), (torch.ones(1, 1),)), program)
    named = {"a": np.arange(3.0), "f": np.asfortranarray(np.ones((2, 2))), "o": np.array([{}]), "s": np.array(["x"])}
    np.savez_compressed(arrays, **named)
    one = io.BytesIO()
    np.save(one, np.arange(3, dtype=">i4"))
    return {
        "torchscript": {"script": script.getvalue(), "mobile": mobile.getvalue()},
        "torchscript_old": {"by-hand": old_script()},
        "torch_package": {"linear": package.getvalue()},
        "pt2": {"table": program.getvalue(), "state": old_program()},
        "npz": {"arrays": arrays.getvalue()},
        "npy": {"array": one.getvalue()},
    }


def packed(records: dict[str, bytes]) -> bytes:
    """Records as a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, body in records.items():
            archive.writestr(name, body)
    return out.getvalue()


def old_script() -> bytes:
    """What torch 1.1 wrote, by hand."""
    tensor = {"dims": ["2"], "offset": "0", "strides": ["1"], "dataType": "FLOAT", "device": "cpu"}
    inner = {"name": "fc", "parameters": [{"name": "w", "tensorId": "0", "isBuffer": False}]}
    inner["attributes"] = [{"type": "Tensor", "name": "m", "id": "0"}]
    tensors = [tensor | {"data": {"key": f"tensors/{n}"}, "requiresGrad": n == 0} for n in range(2)]
    model = {"protoVersion": "3", "mainModule": {"name": "net", "submodules": [inner]}, "tensors": tensors}
    attributes = b"\x80\x02(ctorch.jit._pickle\nbuild_tensor_from_id\n(K\x01tRt."
    records = {"version": b"1\n", "code/net.py": b"op_version_set = 1\n", "attributes.pkl": attributes}
    records |= {f"tensors/{n}": np.full(2, n, np.float32).tobytes() for n in range(2)}
    records["model.json"] = json.dumps(model).encode()
    return packed({f"net/{name}": body for name, body in records.items()})


def old_program() -> bytes:
    """What torch 2.4 wrote, by hand."""
    inputs = [{"parameter": {"parameter_name": "w"}}, {"buffer": {"buffer_name": "b", "persistent": True}}]
    program = {"graph_module": {"signature": {"input_specs": inputs}}, "torch_version": "2.4.1"}
    state = saved({"w": torch.ones(2), "b": torch.zeros(1)})
    records = {"serialized_exported_program.json": json.dumps(program).encode(), "serialized_state_dict.pt": state}
    return packed(records | {"serialized_example_inputs.pt": saved((torch.ones(1),)), "version": b"5.3"})


def folders() -> dict[str, dict[str, bytes]]:
    """Checkpoints of several files."""
    with tempfile.TemporaryDirectory() as name:
        state = {"model": {"w": torch.arange(4.0)}, "step": 3, "list": [1, torch.ones(1)]}
        torch.distributed.checkpoint.save(state, checkpoint_id=name)
        dcp = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
    shards = {"one.safetensors": save_safetensors({"a": torch.ones(2)}), "two.bin": saved({"b": torch.zeros(1)})}
    places = {"a": "one.safetensors", "b": "two.bin"}
    index = json.dumps({"metadata": {"total_size": 12}, "weight_map": places}).encode()
    whole = {"model.safetensors.index.json": index, **shards}
    return {
        "dcp": {"one-rank": as_input(dcp)},
        "hf_index": {"two": as_input({"": index, **shards})},
        "folder": {"index": as_input(whole), "alone": as_input({"model.safetensors": shards["one.safetensors"]})},
    }


def own() -> dict[str, bytes]:
    """What torchkeep itself writes."""
    import torchkeep as tk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        tk.save({"w": torch.ones(2), "c": torch.zeros(1, dtype=torch.complex128), "plain": (1, {"k": None})}, path)
        return {"own": path.read_bytes()}


def main() -> None:
    """Write those that are not there yet, so that seeds stay as they were committed."""
    made = seeds()
    for target, inputs in kept().items():
        made[target] = made.get(target, {}) | inputs
    for target, inputs in made.items():
        folder = HERE / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            if len(data) > MOST:
                raise ValueError(f"the seed {target}/{name} has {len(data)} bytes")
            if not (folder / name).exists():
                (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
