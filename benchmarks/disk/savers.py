"""How each library saves a state: the simplest documented call, with what it says about CPUs and single processes.

A saver gets a nested dict and an empty folder, and has written the state below the folder when it returns.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import torchkeep as tk

from . import limits
from .shapes import State, flat

Saver = Callable[[State, Path], object]
FILE = "state.safetensors"

# Torch's checkpoints say of every save that there is no process group; torch-checkpointing logs every file.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def with_torchkeep(state: State, folder: Path, **options: Any) -> None:
    """Atomic and hashed."""
    tk.save(state, folder / FILE, **options)


def with_torch(state: State, folder: Path, *, crc: bool = True) -> None:
    """`torch.save`, with the CRC-32 of every tensor or without."""
    torch.serialization.set_crc32_options(crc)
    torch.save(state, folder / "state.pth")


def with_safetensors(state: State, folder: Path) -> None:
    """Tensors only."""
    save_file(flat(state), folder / FILE)


def with_dcp(state: State, folder: Path, *, threads: int = 1) -> None:
    """torch.distributed.checkpoint in one process."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(state, storage_writer=FileSystemWriter(folder, thread_count=threads), no_dist=True)


def torch_checkpointing(*, waiting: bool) -> Any:
    """Its manager, synchronous or not; its default is O_DIRECT from unaligned memory, which ext4 refuses."""
    from torch_checkpointing import AsyncCheckpointSaverConfig, CheckpointManager, SyncCheckpointSaverConfig
    from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

    saver = SyncCheckpointSaverConfig() if waiting else AsyncCheckpointSaverConfig()
    return CheckpointManager.Config(
        save=saver, storage_config=LocalFileSystemStorageConfig(use_direct_io=False)
    ).build()


def with_torch_checkpointing(state: State, folder: Path) -> None:
    """Its synchronous saver."""
    manager = torch_checkpointing(waiting=True)
    manager.save(str(folder / "saved"), {"state": state})
    manager.close()


def with_moonclip(state: State, folder: Path, *, level: int) -> None:
    """A first, full snapshot; `level` is that of zstd, 3 by default, and 0 stores."""
    from moonclip import CheckpointManager

    manager = CheckpointManager(str(folder), compression_level=level, async_save=False)
    manager.save(step=0, extra={"state": state})


def with_tensorizer(state: State, folder: Path) -> None:
    """Tensors only, each with its hash."""
    from tensorizer import TensorSerializer

    serializer = TensorSerializer(folder / "state.tensors")
    serializer.write_state_dict(flat(state))
    serializer.close()


def arrays(value: Any) -> Any:
    """The same tree with NumPy views, which orbax takes."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy()
    if isinstance(value, dict):
        return {str(key): arrays(inner) for key, inner in value.items()}
    return [arrays(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def with_orbax(state: State, folder: Path) -> None:
    """Its checkpointer of trees of arrays; what is no tensor is left out, since it refuses None."""
    from orbax.checkpoint import Checkpointer, PyTreeCheckpointHandler

    with Checkpointer(PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder.resolve() / "saved", arrays(flat(state)))


def with_torchsnapshot(state: State, folder: Path) -> None:
    """`Snapshot.take` makes a loop of asyncio its own."""
    from torchsnapshot import Snapshot, StateDict

    asyncio.set_event_loop(asyncio.new_event_loop())
    Snapshot.take(str(folder / "saved"), {"state": StateDict(**flat(state))})


def with_fastsafetensors(state: State, folder: Path) -> None:
    """16 files with 8 threads, as it does by default."""
    from fastsafetensors import ParallelSaver

    ParallelSaver().save(flat(state), str(folder / "state"))


LIMITS: dict[str, Saver] = {
    "limit: page cache": limits.page_cache,
    "limit: O_DIRECT + fsync": limits.direct,
}
SAVERS: dict[str, Saver] = LIMITS | {
    "torchkeep": with_torchkeep,
    "torchkeep, durable=False": partial(with_torchkeep, durable=False),
    'torchkeep, engine="buffered"': partial(with_torchkeep, engine="buffered"),
    "torch.save": with_torch,
    "torch.save without CRC": partial(with_torch, crc=False),
    "safetensors": with_safetensors,
    "DCP": with_dcp,
    "DCP, 2 threads": partial(with_dcp, threads=2),
    "torch-checkpointing": with_torch_checkpointing,
    "moonclip": partial(with_moonclip, level=3),
    "moonclip, level 0": partial(with_moonclip, level=0),
    "tensorizer": with_tensorizer,
    "orbax": with_orbax,
    "fastsafetensors": with_fastsafetensors,
    "torchsnapshot": with_torchsnapshot,
}
