"""A disk on which nothing is sure but what was synced: the changes of a program, and what a loss of power leaves."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .calls import Op

T = TypeVar("T")
_JUNK = random.Random(0).randbytes(4096)


@dataclass(eq=False)
class File:
    """A file: what programs see, what is safe, and the contents and sizes in between, in order."""

    now: bytearray = field(default_factory=bytearray)
    safe: bytes = b""
    steps: list[bytes] = field(default_factory=list)

    def write(self, offset: int, data: bytes) -> None:
        self.now.extend(bytes(max(0, offset + len(data) - len(self.now))))
        self.now[offset : offset + len(data)] = data
        self.steps.append(bytes(self.now))

    def resize(self, size: int) -> None:
        self.now[size:] = bytes(max(0, size - len(self.now)))
        self.steps.append(bytes(self.now))

    def sync(self) -> None:
        self.safe, self.steps = bytes(self.now), []


@dataclass(eq=False)
class Folder:
    """A folder: the names that programs see, those that are safe, and what each name stood for in between."""

    now: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)
    steps: dict[str, list[Node | None]] = field(default_factory=dict)

    def bind(self, name: str, node: Node | None) -> None:
        self.now.pop(name, None)
        if node is not None:
            self.now[name] = node
        self.steps.setdefault(name, []).append(node)

    def sync(self) -> None:
        self.safe, self.steps = dict(self.now), {}


Node = File | Folder


class Disk:
    """The folder that is watched, as far as programs and the disk know it."""

    def __init__(self) -> None:
        self.root = Folder()
        self._open: dict[int, File] = {}

    def _at(self, place: str) -> tuple[Folder, str]:
        *folders, name = place.split("/")
        folder: Node = self.root
        for part in folders:
            assert isinstance(folder, Folder)
            folder = folder.now[part]
        assert isinstance(folder, Folder)
        return folder, name

    def _node(self, place: str) -> Node:
        if place == ".":
            return self.root
        folder, name = self._at(place)
        return folder.now[name]

    def apply(self, op: Op) -> None:
        """Do what a program did."""
        if op.kind == "open":
            folder, name = self._at(op.path)
            if op.makes:
                folder.bind(name, File())
            node = folder.now[name]
            assert isinstance(node, File)
            self._open[op.file] = node
        elif op.kind == "write":
            self._open[op.file].write(op.offset, op.data)
        elif op.kind == "truncate":
            self._open[op.file].resize(op.size)
        elif op.kind == "allocate":
            self._open[op.file].resize(max(op.size, len(self._open[op.file].now)))
        elif op.kind == "sync":
            self._open[op.file].sync()
        elif op.kind == "mkdir":
            folder, name = self._at(op.path)
            folder.bind(name, Folder())
        elif op.kind in {"link", "rename"}:
            node = self._node(op.other)
            folder, name = self._at(op.path)
            folder.bind(name, node)
            if op.kind == "rename":
                folder, name = self._at(op.other)
                folder.bind(name, None)
        elif op.kind == "unlink":
            folder, name = self._at(op.path)
            folder.bind(name, None)
        elif op.kind == "sync_folder":
            self._node(op.path).sync()
        else:
            assert op.kind == "mark", op

    def killed(self) -> None:
        """The program is gone, the system goes on: what is not synced is still to be written."""
        self._open = {}

    def lose_power(self, generator: random.Random | None = None) -> Disk:
        """What may be there after it: of all that was not synced any part, in any order; without a generator nothing."""
        return (_Loss(generator) if generator else _Loss(random.Random(0), (0.0,), any_step=False)).disk(self)

    def tree(self) -> dict[str, bytes | None]:
        """The bytes of every file by its path, None for a folder."""
        found: dict[str, bytes | None] = {}

        def walk(folder: Folder, before: str) -> None:
            for name, node in folder.now.items():
                found[before + name] = bytes(node.now) if isinstance(node, File) else None
                if isinstance(node, Folder):
                    walk(node, f"{before}{name}/")

        walk(self.root, "")
        return found

    def make(self, target: Path) -> None:
        """The folder as a real one; it must not exist. Two names of one file stay so."""
        made: dict[File, Path] = {}

        def walk(folder: Folder, path: Path) -> None:
            path.mkdir()
            for name, node in folder.now.items():
                if isinstance(node, Folder):
                    walk(node, path / name)
                elif node in made:
                    os.link(made[node], path / name)
                else:
                    made[node] = path / name
                    made[node].write_bytes(node.now)

        walk(self.root, target)


def tree_of(folder: Path) -> dict[str, bytes | None]:
    """A real folder as `Disk.tree` says it."""
    found = (path for path in folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in found}


class _Loss:
    """One loss of power: how much of the names and of the data was on the disk by chance."""

    def __init__(
        self, generator: random.Random, chances: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9, 1.0), any_step: bool = True
    ) -> None:
        self._generator = generator
        self._any_step = any_step
        self._names, self._data, self._sizes = (generator.choice(chances) for _ in range(3))
        self._block = generator.choice((512, 4096))
        self._fill = generator.choice((bytes(4096), bytes(4096), _JUNK))
        self._files: dict[File, File] = {}

    def disk(self, before: Disk) -> Disk:
        after = Disk()
        after.root = self._folder(before.root)
        return after

    def _pick(self, steps: list[T], chance: float) -> T:
        """The last of some steps, or the first, or any."""
        if self._generator.random() < chance:
            return steps[-1]
        return self._generator.choice(steps) if self._any_step and self._generator.random() < 0.5 else steps[0]

    def _folder(self, folder: Folder) -> Folder:
        names = dict(folder.safe)
        for name, steps in folder.steps.items():
            found = self._pick([folder.safe.get(name), *steps], self._names)
            names.pop(name, None)
            if found is not None:
                names[name] = found
        out = Folder({name: self._kept(node) for name, node in names.items()})
        out.sync()
        return out

    def _kept(self, node: Node) -> Node:
        if isinstance(node, Folder):
            return self._folder(node)
        if node not in self._files:
            kept = File(bytearray(self._content(node)))
            kept.sync()
            self._files[node] = kept
        return self._files[node]

    def _content(self, file: File) -> bytes:
        """Each block as it was at some time since the last sync, and so the size."""
        versions = [file.safe, *file.steps]
        size = len(self._pick(versions, self._sizes))
        out = []
        for start in range(0, size, self._block):
            end = min(start + self._block, size)
            blocks = [version[start:end] for version in versions]
            kept = self._pick(blocks, self._data)
            out.append(kept + self._fill[: end - start - len(kept)])
        return b"".join(out)
