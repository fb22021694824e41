"""What is fuzzed: every reader gets bytes, and whatever it opens is walked, printed, loaded and verified.

Only errors of torchkeep may come out. A folder is fuzzed as one input: names and contents one after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torchkeep as tk
from torchkeep.core import tree as trees
from torchkeep.core.checkpoint import Checkpoint
from torchkeep.core.limits import Limits
from torchkeep.core.registry import make_part
from torchkeep.core.source import Held, Source
from torchkeep.core.tensors import StorageRef
from torchkeep.errors import CorruptCheckpointError, TorchkeepError
from torchkeep.formats import FORMATS
from torchkeep.formats._pickle import unpickle
from torchkeep.formats._torch import TensorReader

LIMITS = Limits(
    header_bytes=1 << 20,
    pickle_bytes=1 << 20,
    opcodes=200_000,
    memo=100_000,
    nodes=100_000,
    revisits=1_000,
    name_chars=1 << 20,
    depth=200,
    expanded_bytes=1 << 22,
    inflated_bytes=1 << 20,
    nesting=3,
)
LOADED = 1 << 20  # bytes of a tensor that is loaded; larger ones are only looked at
MARK = b"\n=====:"  # stands in front of each file's name in an input that is a folder

warnings.filterwarnings("ignore")


class Files:
    """A folder in memory."""

    def __init__(self, files: dict[str, bytes], opened: str = "") -> None:
        self.name = opened or "folder"
        self.entries = frozenset(files) if not opened else frozenset[str]()
        self._files = files
        self._data = files.get(opened, b"")
        self.size = len(self._data)

    def read(self, offset: int, nbytes: int) -> Any:
        return Held(self._data, self.name).read(offset, nbytes)

    def sibling(self, name: str) -> Source:
        if name not in self._files:
            raise CorruptCheckpointError(f"there is no {name!r}", file=self.name)
        return Files(self._files, name)


def folder_of(data: bytes) -> dict[str, bytes]:
    """The files that an input stands for."""
    files = {}
    for piece in data.split(MARK)[1:]:
        name, _, body = piece.partition(b"\n")
        files[name[:60].decode("latin1")] = body
    return files


def as_input(files: dict[str, bytes]) -> bytes:
    """Files as one input."""
    return b"".join(MARK + name.encode("latin1") + b"\n" + body for name, body in files.items())


def walk(ckpt: Checkpoint) -> None:
    """Everything that one does with an opened checkpoint."""
    str(ckpt), repr(ckpt), ckpt.nbytes, ckpt.model, ckpt.modules
    for finding in ckpt.findings:
        str(finding)
    for tensor in list(ckpt.values())[:50]:
        repr(tensor), tensor.identity
        if tensor.nbytes <= LOADED and tensor.numel() <= LOADED:
            quietly(tensor.load)
            if tensor.ndim and tensor.layout in {"strided", "chunked"}:  # torch cannot slice the others
                quietly(lambda t=tensor: t[:1])
    for record in list(trees.modules(ckpt.tree, LIMITS))[:20]:
        repr(record)
    trees.first_record(ckpt.tree)
    tk.to_json(ckpt)


def quietly(action: Callable[[], Any]) -> Any:
    """What an action answers, or None where it raises an error of torchkeep."""
    try:
        return action()
    except TorchkeepError as error:
        assert str(error)
        return None


def read_pickle(data: bytes) -> None:
    """The unpickler alone, with all that is known of torch's pickles."""

    def place(key: str, nbytes: int) -> StorageRef:
        return StorageRef(nbytes, 0 if nbytes <= len(data) else None)

    reader = TensorReader(Held(data, "fuzz"), place, LIMITS)
    found = unpickle(data, 0, reader.dialect(), LIMITS)
    trees.leaves(found.value, LIMITS)
    trees.first_record(found.value)
    repr(found.value)[:0]
    trees.rebuild(found.value, lambda tensor: tensor)


def reader_of(name: str) -> Callable[[bytes], None]:
    """One format: open and walk, verify where it can, and the same through the recognition of formats."""
    reader = make_part(FORMATS, name, "format")
    folder = name in FOLDERS

    def read(data: bytes) -> None:
        def source() -> Source:
            return Files(folder_of(data)) if folder else Held(data, "fuzz")

        ckpt = quietly(lambda: reader.open(source(), LIMITS))
        if ckpt is not None:
            quietly(lambda: walk(ckpt))
        if hasattr(reader, "verify"):
            quietly(lambda: list(reader.verify(source(), LIMITS)))
        quietly(lambda: tk.open(source(), limits=LIMITS))

    return read


FOLDERS = frozenset({"dcp", "hf_index", "folder"})


def _quiet_pickle(data: bytes) -> None:
    quietly(lambda: read_pickle(data))


def targets() -> dict[str, Callable[[bytes], None]]:
    """Every target by name: the unpickler, and each format of the table."""
    return {"unpickler": _quiet_pickle} | {name: reader_of(name) for name in FORMATS}


def stored_inputs(root: Any, target: str) -> Iterator[tuple[str, bytes]]:
    """The seeds of a target and what once broke it, by file name."""
    for kind in ("seeds", "crashes"):
        for path in sorted((root / kind / target).glob("*")):
            yield f"{kind}/{target}/{path.name}", path.read_bytes()
