"""What is fuzzed: every reader gets bytes, and whatever it opens is walked, printed, loaded and verified.

Only errors of torchkeep may come out, and no input may cost more than a few seconds or much memory. Targets follow the
table of formats, so a new format is fuzzed as soon as it is in there. Files that belong together are fuzzed as one
input: names and contents one after another.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
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
from torchkeep.formats._dispatch import recognise
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
MOST_SECONDS = 5.0  # of the processor, for one input
MOST_MEMORY = 500_000_000  # bytes that one input may add to the process
MARK = b"\n=====:"  # stands in front of each file's name in an input that is several files
HERE = Path(__file__).parent

Read = Callable[[bytes], None]


class TooMuch(AssertionError):
    """An input that took too long, or too much memory."""


class Folder:
    """Files in memory as a folder, as engines/folder has it of a disk."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.name = "folder"
        self.size = 0
        self.entries = frozenset(files)
        self.files = files

    def read(self, offset: int, nbytes: int) -> Any:
        return Held(b"", self.name).read(offset, nbytes)

    def sibling(self, name: str) -> Source:
        if name not in self.files:
            raise CorruptCheckpointError(f"there is no {name!r}", file=self.name)
        return Member(self, name)


class Member(Held):
    """One of them."""

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(folder.files[name], f"{folder.name}/{name}")
        self._folder = folder

    def sibling(self, name: str) -> Source:
        return self._folder.sibling(name)


class Remote(Held):
    """A file that is read in ranges, so that readers put off what they can."""

    remote = True


def files_of(data: bytes) -> dict[str, bytes]:
    """The files that an input stands for."""
    files = {}
    for piece in data.split(MARK)[1:]:
        name, _, body = piece.partition(b"\n")
        files[name[:60].decode("latin1")] = body
    return files


def as_input(files: dict[str, bytes]) -> bytes:
    """Files as one input."""
    return b"".join(MARK + name.encode("latin1") + b"\n" + body for name, body in files.items())


def sources_of(data: bytes) -> list[Callable[[], Source]]:
    """What an input is read as: a file, near and far; of several files their folder, and the first among the others."""
    if not data.startswith(MARK):
        far = [lambda: Remote(data, "fuzz")] if data.startswith(b"PK") else []
        return [lambda: Held(data, "fuzz"), *far]
    files = files_of(data)
    return [lambda: Folder(files), lambda: Folder(files).sibling(next(iter(files)))]


def walk(ckpt: Checkpoint) -> None:
    """Everything that one does with an opened checkpoint. Only its bytes may turn out to be damaged."""
    str(ckpt), repr(ckpt), ckpt.nbytes, ckpt.devices, ckpt.modules, ckpt.model
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
        assert error.brief
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


def reader_of(name: str) -> Read:
    """One format: recognise, open and walk, verify where the format can, and load the whole where it is small."""
    reader = make_part(FORMATS, name, "format")

    def read(data: bytes) -> None:
        for source in sources_of(data):
            recognised = quietly(lambda: recognise(source(), LIMITS))  # noqa: B023 - called at once
            ckpt = quietly(lambda: reader.open(source(), LIMITS))  # noqa: B023
            if ckpt is not None:
                walk(ckpt)
                if recognised is not None and sum(t.nbytes + t.numel() for t in ckpt.values()) <= LOADED:
                    quietly(lambda: tk.load(source(), limits=LIMITS))  # noqa: B023
            if hasattr(reader, "verify"):
                quietly(lambda: list(reader.verify(source(), LIMITS)))  # noqa: B023

    return read


def _quiet_pickle(data: bytes) -> None:
    quietly(lambda: read_pickle(data))


def measured(read: Read) -> Read:
    """The same target, which raises TooMuch for inputs that cost more than is allowed."""

    def measure(data: bytes) -> None:
        before, started = _memory(), time.process_time()
        read(data)
        seconds, (_, peak) = time.process_time() - started, _memory()
        if seconds > MOST_SECONDS:
            raise TooMuch(f"{len(data):,} bytes took {seconds:.1f} s")
        if peak > before[1] and peak - before[0] > MOST_MEMORY:
            raise TooMuch(f"{len(data):,} bytes took {peak - before[0]:,} bytes of memory")

    return measure


def _memory() -> tuple[int, int]:
    """Bytes in memory now, and the most that there were; zeros where the system does not tell."""
    if sys.platform != "linux":
        return 0, 0
    import resource

    pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    return pages * resource.getpagesize(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def targets() -> dict[str, Read]:
    """Every target by name: the unpickler, and each format of the table."""
    found = {"unpickler": _quiet_pickle} | {name: reader_of(name) for name in FORMATS}
    return {name: measured(read) for name, read in found.items()}


def names() -> list[str]:
    """The names of the targets, those first that every other one is built on."""
    first = ["unpickler", "torch_zip", "torch_legacy"]
    return first + [name for name in FORMATS if name not in first]


def stored_inputs(target: str, *kinds: str) -> Iterator[tuple[str, bytes]]:
    """The seeds of a target and what once broke it, by file name; or only one of the two."""
    for kind in kinds or ("seeds", "crashes"):
        for path in sorted((HERE / kind / target).glob("*")):
            yield f"{kind}/{target}/{path.name}", path.read_bytes()
