"""Writing what was decided: one safetensors file, or several and their index."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from blake3 import blake3

from .contents import Contents
from .core.checkpoint import Checkpoint
from .core.digests import digest_bytes
from .core.memory import tensor_bytes
from .core.pieces import Cast, Mean, hot_blocks
from .core.report import SaveReport
from .core.source import Buffer, Head, Source
from .core.tensors import LazyTensor
from .engines.behind import Behind
from .engines.files import AUTO, write_file
from .errors import SaveError
from .formats.layout import Layout, lay_out_file, with_digests
from .sharding import split

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_SMALL = 1 << 17  # handing less than this to another thread costs more than hashing it
_BEHIND = 8  # blocks that wait to be hashed


def check_apart(path: Path, ckpt: Checkpoint, *names: str) -> None:
    """Refuse to write over one of the files that a checkpoint consists of; `names` are further ones.

    Raises:
        SaveError: the path is one of them.
    """
    held = set(_sources(ckpt.values()))
    files = {*names, *held, *(name.partition(": ")[0] for name in held)}  # a record says `file: record`
    if path.exists() and any(_is_same(path, name) for name in files):
        raise SaveError(f"{path} is the file that is being converted", hint="write to another name")


def _sources(tensors: Iterable[LazyTensor]) -> Iterator[str]:
    for tensor in tensors:
        for part in (tensor, *tensor.parts.values()):
            source: Source | None = part.source
            if part.storage is not None and part.storage.source is not None:
                source = part.storage.source
            yield part.source.name
            while isinstance(source, Cast):
                source = source.inner
            if isinstance(source, Mean):
                yield from _sources(source.inputs)
            elif source is not None:
                yield source.name


def _is_same(path: Path, name: str) -> bool:
    try:
        return path.samefile(name)
    except (OSError, ValueError):  # no name of a file at all
        return False


def write_contents(
    contents: Contents,
    path: Path,
    *,
    most: int | None = None,
    durable: bool = True,
    engine: str = AUTO,
    progress: Progress | None = None,
) -> SaveReport:
    """Write what was decided, hashing each tensor on its way, and report it.

    Args:
        contents: what was decided.
        path: of the file; where it takes several they are called after it, as `split` and the index tell.
        most: bytes of the tensors in one file, if it is not to hold them all.
        durable: wait until the disk has it.
        engine: what writes.
        progress: called as the bytes go.

    Raises:
        SaveError: it cannot be written there; nothing half-written is left.
    """
    parts = [contents] if most is None else split(contents, most)
    if len(parts) > 1:
        return _several(contents, parts, path, partial(_one, durable=durable, engine=engine), progress)
    return _one(contents, path, durable=durable, engine=engine, progress=progress)


def _one(contents: Contents, path: Path, *, durable: bool, engine: str, progress: Progress | None) -> SaveReport:
    started = time.perf_counter()
    plan = lay_out_file(contents.specs, contents.facts, {"format": "pt", **contents.metadata})
    digests: dict[str, str] = {}

    def header() -> bytes:
        """With the digests, which are only known now; it is as long as the one without."""
        return with_digests(plan.header, [digests[name] for name in contents.specs])

    pieces = _pieces(plan, contents, digests)
    if progress is not None:
        pieces = counted(pieces, plan.total, progress, done=len(plan.header))
    head = Head(len(plan.header), header)
    written = write_file(path, pieces, nbytes=plan.total, durable=durable, engine=engine, head=head)
    return _report(contents, path, plan.total, time.perf_counter() - started, written.engine)


def _several(
    contents: Contents,
    parts: Sequence[Contents],
    path: Path,
    write: Callable[..., SaveReport],
    progress: Progress | None,
) -> SaveReport:
    """Write the shards, then the index that names them; a failure takes away what was written."""
    started = time.perf_counter()
    total = sum(spec.nbytes for spec in contents.specs.values())
    names = [path.with_name(f"{path.stem}-{at:05}-of-{len(parts):05}{path.suffix}") for at in range(1, len(parts) + 1)]
    index = path.with_name(f"{path.name}.index.json")
    there = next((name for name in (path, *names, index) if name.exists()), None)
    if there is not None:
        raise SaveError(f"{there} exists already", hint="shards replace nothing: write to an empty folder")
    done = 0
    reports: list[SaveReport] = []
    made: list[Path] = []
    try:
        for name, part in zip(names, parts, strict=True):
            made.append(name)
            step = None if progress is None else _from(progress, done, total)
            reports.append(write(part, name, progress=step))
            done += reports[-1].bytes_total
        places = {key: name.name for name, part in zip(names, parts, strict=True) for key in part.tensors}
        body = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        made.append(index)
        write_file(index, [json.dumps(body, indent=2).encode()], replace=False)
    except BaseException:
        for name in made:
            name.unlink(missing_ok=True)
        raise
    written = sum(report.bytes_written for report in reports)
    engine = ", ".join(dict.fromkeys(report.engine for report in reports))
    report = _report(contents, index, written, time.perf_counter() - started, engine)
    return replace(report, notes=(*report.notes, f"{len(parts)} shards"))


def _report(contents: Contents, path: Path, written: int, seconds: float, engine: str) -> SaveReport:
    return SaveReport(
        path=str(path),
        bytes_written=written,
        bytes_total=sum(spec.nbytes for spec in contents.specs.values()),
        seconds=seconds,
        tensors_written=len(contents.tensors),
        tensors_total=len(contents.tensors) + len(contents.facts.tied),
        engine=engine,
        notes=contents.notes,
    )


def _from(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(min(before + done, total), total)


def counted(pieces: Iterator[Buffer], total: int, progress: Progress, done: int = 0) -> Iterator[Buffer]:
    """The pieces, with a word about each; `done` is what was before them."""
    for piece in pieces:
        yield piece
        done += len(piece)
        progress(done, total)


def _pieces(plan: Layout, contents: Contents, digests: dict[str, str]) -> Iterator[Buffer]:
    """The tensors one after another, each turned into bytes only when its turn comes, a block at a time.

    They are hashed on a thread beside the engine's; small ones, of which there may be very many, where they are.
    """
    hashing = Behind(_hash, _BEHIND)
    try:
        for name in plan.order:
            tensor = contents.tensors[name]
            if isinstance(tensor, torch.Tensor) and tensor.nbytes <= _SMALL:
                whole = tensor_bytes(tensor)
                yield whole
                digests[name] = digest_bytes(whole)
                continue
            hasher = blake3()
            for block in hot_blocks(tensor):
                yield block
                hashing.give(partial(hasher.update, block))
            hashing.give(partial(_note, digests, name, hasher))
        hashing.finish()
    finally:
        hashing.stop()


def _hash(step: Callable[[], object]) -> None:
    step()


def _note(digests: dict[str, str], name: str, hasher: blake3) -> None:
    digests[name] = hasher.hexdigest()
