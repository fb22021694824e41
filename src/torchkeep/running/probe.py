"""What `prove_resume` sees of a run in another process: a log of what it did, and a place at which it is killed.

The process is told by one environment variable, which names a file of JSON; without it nothing here does anything.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..core import tree as trees
from ..core.digests import digest_bytes
from ..core.memory import tensor_bytes
from .randomness import random_state

VARIABLE = "TORCHKEEP_PROBE"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Order(msgspec.Struct, frozen=True):
    """What a probed process is to do.

    Attributes:
        events: the file that gets a line for each event.
        kill: the event before which the process is killed, or None.
        root: the folder that takes the place of the folders of runs; empty to leave them where they are.
    """

    events: str
    kill: list[Any] | None = None
    root: str = ""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a run did.

    Attributes:
        key: `[run, "batch", name, epoch, number]`, `[run, "log", number]`, `[run, "save", step]`, or
            `[run, "resume", step]`.
        digest: of a batch.
        random: generator -> digest of its state.
    """

    key: list[Any]
    digest: str = ""
    random: dict[str, str] = {}


class Probe:
    """Writes events, and kills the process at one."""

    def __init__(self, order: Order, path: str | os.PathLike[str]) -> None:
        self._order = order
        self._name = re.sub(r"[^\w.-]+", "_", str(path)).strip("_") or "run"

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Probe | None:
        """The probe of a run, if this process is watched."""
        told = os.environ.get(VARIABLE)
        return None if told is None else cls(msgspec.json.decode(Path(told).read_bytes(), type=Order), path)

    def place(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """The folder that the run shall have."""
        return Path(self._order.root, self._name) if self._order.root else path

    def happens(self, *key: Any, batch: Any = None) -> None:
        """Note an event, or be killed just before it."""
        here = [self._name if self._order.root else "run", *key]
        if here == self._order.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        digest = "" if batch is None else digest_of(batch)
        line = msgspec.json.encode(Event(here, digest, random_digests())) + b"\n"
        with Path(self._order.events).open("ab") as file:
            file.write(line)


def digest_of(value: Any) -> str:
    """BLAKE3 of the tensors in a value, and of what else is in it as far as its text tells."""
    leaves = trees.leaves(value)
    text = repr(type(value)) if leaves else _ADDRESS.sub("", repr(getattr(value, "__dict__", value)))
    parts = [text.encode(), *(bytes(tensor_bytes(leaf.tensor.detach())) for leaf in leaves if _plain(leaf.tensor))]
    return digest_bytes(b"\0".join(parts))


def _plain(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and not tensor.is_quantized


def random_digests() -> dict[str, str]:
    """A digest of the state of each global generator."""
    return {name: digest_of({"v": value}) if value != [] else "" for name, value in random_state().items()}
