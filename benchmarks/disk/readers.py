"""How each library opens what it saved: one tensor, all of them, or into a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import torchkeep as tk

from .savers import FILE, torch_checkpointing

Tensors = dict[str, torch.Tensor]


class Reader:
    """What is read was written by the saver of the name `writer`; a state is a dict of tensors."""

    writer: str

    def load(self, folder: Path) -> Tensors:
        """All tensors by name."""
        raise NotImplementedError

    def first(self, folder: Path, name: str) -> torch.Tensor:
        """One tensor; the way around through all of them, where a library has no other."""
        return self.load(folder)[name]

    def into(self, folder: Path, model: nn.Module) -> None:
        """Fill a model."""
        model.load_state_dict(self.load(folder))


class Torchkeep(Reader):
    """`tk.open` and `tk.load_into`, on its own files or on others."""

    def __init__(self, writer: str = "torchkeep", file: str = FILE) -> None:
        self.writer, self.file = writer, file

    def load(self, folder: Path) -> Tensors:
        return tk.open(folder / self.file).load()

    def first(self, folder: Path, name: str) -> torch.Tensor:
        return tk.open(folder / self.file)[name].load()

    def into(self, folder: Path, model: nn.Module) -> None:
        tk.load_into(model, folder / self.file)


class Torch(Reader):
    """`torch.load`."""

    writer = "torch.save"

    def __init__(self, mmap: bool) -> None:
        self.mmap = mmap

    def load(self, folder: Path) -> Tensors:
        tensors: Tensors = torch.load(folder / "state.pth", mmap=self.mmap)
        return tensors


class LoadFile(Reader):
    """`safetensors.torch.load_file`."""

    writer = "safetensors"

    def load(self, folder: Path) -> Tensors:
        tensors: Tensors = load_file(folder / FILE)
        return tensors


class SafeOpen(Reader):
    """`safetensors.safe_open`."""

    writer = "safetensors"

    def load(self, folder: Path) -> Tensors:
        with safe_open(folder / FILE, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping

    def first(self, folder: Path, name: str) -> torch.Tensor:
        with safe_open(folder / FILE, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor


class Runai(Reader):
    """The streamer of runai gives views of a ring of buffers; a tensor that is kept is copied."""

    writer = "safetensors"

    def load(self, folder: Path) -> Tensors:
        from runai_model_streamer import SafetensorsStreamer

        with SafetensorsStreamer() as streamer:
            streamer.stream_file(str(folder / FILE))
            return {name: tensor.clone() for name, tensor in streamer.get_tensors()}


class Fastsafetensors(Reader):
    """`fastsafe_open` without GPUDirect."""

    writer = "fastsafetensors"

    def load(self, folder: Path) -> Tensors:
        from fastsafetensors import fastsafe_open

        with fastsafe_open([str(path) for path in sorted(folder.glob("*.safetensors"))], nogds=True) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping


class Dcp(Reader):
    """torch.distributed.checkpoint fills what it is given."""

    writer = "DCP"

    def load(self, folder: Path) -> Tensors:
        return self._read(folder, None)

    def first(self, folder: Path, name: str) -> torch.Tensor:
        return self._read(folder, name)[name]

    def _read(self, folder: Path, only: str | None) -> Tensors:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        described = FileSystemReader(folder).read_metadata().state_dict_metadata
        state = {
            name: torch.empty(one.size, dtype=one.properties.dtype)
            for name, one in described.items()
            if isinstance(one, TensorStorageMetadata) and only in {None, name}
        }
        self._fill(folder, state)
        return state

    def into(self, folder: Path, model: nn.Module) -> None:
        self._fill(folder, model.state_dict())

    def _fill(self, folder: Path, state: Tensors) -> None:
        from torch.distributed.checkpoint.state_dict_loader import load

        load(state, checkpoint_id=folder, no_dist=True)


class TorchCheckpointing(Reader):
    """Its loader, which maps files."""

    writer = "torch-checkpointing"

    def load(self, folder: Path) -> Tensors:
        return self._read(folder, None)

    def _read(self, folder: Path, target: Any) -> Tensors:
        manager = torch_checkpointing(waiting=True)
        state: Tensors = manager.load(folder / "saved", into={"state": target})["state"]
        manager.close()
        return state

    def into(self, folder: Path, model: nn.Module) -> None:
        self._read(folder, model.state_dict())


class Moonclip(Reader):
    """`load_latest`, and `load_tensors` for one."""

    def __init__(self, writer: str) -> None:
        self.writer = writer

    def load(self, folder: Path) -> Tensors:
        from moonclip import CheckpointManager

        state: Tensors = CheckpointManager(str(folder)).load_latest()[1]["extra/state"]
        return state


class Tensorizer(Reader):
    """`TensorDeserializer`."""

    writer = "tensorizer"

    def load(self, folder: Path) -> Tensors:
        from tensorizer import TensorDeserializer

        with TensorDeserializer(folder / "state.tensors", device="cpu") as file:
            return {name: file[name] for name in file.keys()}  # noqa: SIM118 - its items() are parameters

    def first(self, folder: Path, name: str) -> torch.Tensor:
        from tensorizer import TensorDeserializer

        with TensorDeserializer(folder / "state.tensors", device="cpu", lazy_load=True) as file:
            tensor: torch.Tensor = file[name]
            return tensor


class Orbax(Reader):
    """Its checkpointer of trees of arrays, asked for NumPy arrays."""

    writer = "orbax"

    def load(self, folder: Path) -> Tensors:
        from orbax.checkpoint import Checkpointer, PyTreeCheckpointHandler, RestoreArgs

        with Checkpointer(PyTreeCheckpointHandler()) as checkpointer:
            path = folder.resolve() / "saved"
            names = checkpointer.metadata(path).item_metadata.tree
            wanted = {name: RestoreArgs(restore_type=np.ndarray) for name in names}
            found = checkpointer.restore(path, restore_args=wanted)
        return {name: torch.from_numpy(array) for name, array in found.items()}


class Torchsnapshot(Reader):
    """`read_object`, and `restore` into a model."""

    writer = "torchsnapshot"

    def load(self, folder: Path) -> Tensors:
        snapshot = self._snapshot(folder)
        return {name: snapshot.read_object(f"0/state/{name}") for name in self._names(snapshot)}

    def first(self, folder: Path, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._snapshot(folder).read_object(f"0/state/{name}")
        return tensor

    def into(self, folder: Path, model: nn.Module) -> None:
        self._snapshot(folder).restore({"state": model})

    def _snapshot(self, folder: Path) -> Any:
        from torchsnapshot import Snapshot

        asyncio.set_event_loop(asyncio.new_event_loop())
        return Snapshot(str(folder / "saved"))

    def _names(self, snapshot: Any) -> list[str]:
        entries = snapshot.get_manifest().items()
        return [path.removeprefix("0/state/") for path, entry in entries if entry.type in {"Tensor", "ChunkedTensor"}]


READERS: dict[str, Reader] = {
    "torchkeep": Torchkeep(),
    "torchkeep, of safetensors": Torchkeep("safetensors"),
    "torchkeep, of torch.save": Torchkeep("torch.save", "state.pth"),
    "torch.load": Torch(mmap=False),
    "torch.load mmap=True": Torch(mmap=True),
    "safetensors load_file": LoadFile(),
    "safetensors safe_open": SafeOpen(),
    "runai-model-streamer": Runai(),
    "DCP": Dcp(),
    "torch-checkpointing": TorchCheckpointing(),
    "moonclip": Moonclip("moonclip"),
    "moonclip, level 0": Moonclip("moonclip, level 0"),
    "tensorizer": Tensorizer(),
    "orbax": Orbax(),
    "fastsafetensors": Fastsafetensors(),
    "torchsnapshot": Torchsnapshot(),
}
