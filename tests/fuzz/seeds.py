"""Makes the seeds: small genuine files of every kind. `python -m fuzz.seeds` from the folder of the tests."""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from fuzz.targets import as_input

HERE = Path(__file__).parent
MOST = 16384


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
    }


def own() -> dict[str, bytes]:
    """What torchkeep itself writes."""
    import torchkeep as tk

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        tk.save({"w": torch.ones(2), "c": torch.zeros(1, dtype=torch.complex128), "plain": (1, {"k": None})}, path)
        return {"own": path.read_bytes()}


MAKERS: list[Callable[[], dict[str, dict[str, bytes]]]] = [seeds]


def main() -> None:
    """Write those that are not there yet, so that seeds stay as they were committed."""
    assert as_input
    for maker in MAKERS:
        for target, inputs in maker().items():
            folder = HERE / "seeds" / target
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in inputs.items():
                if len(data) <= MOST and not (folder / name).exists():
                    (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
