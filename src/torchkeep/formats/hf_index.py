"""Sharded checkpoints: an index.json that says in which file each tensor is, and folders that hold one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..core.checkpoint import Checkpoint, Finding, Provenance
from ..core.facts import FileFacts
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import LazyTensor
from ..errors import CorruptCheckpointError, UnknownFormatError, UnsafeCheckpointError
from ._dispatch import open_inner, recognise
from ._facts import of_shards

_INDEX = ".index.json"
_WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".pth.tar", ".pt2", ".ptl", ".npz", ".pkl", ".jit")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
_RUN = "torchkeep.json"


class HfIndex:
    """Reads the index of a sharded checkpoint, of safetensors files or of torch's own."""

    name = "hf_index"

    def sniff(self, probe: Probe) -> bool:
        """A JSON object whose `weight_map` begins within the first bytes; what stands before it is short."""
        text = probe.head.lstrip(b"\xef\xbb\xbf \t\r\n")
        return text[:1] == b"{" and b'"weight_map"' in text

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Open every shard, and take the tensors that the index names.

        Raises:
            CorruptCheckpointError: the index is damaged, or names what is not there or outside of its folder.
            CheckpointNotFoundError: a shard is missing.
        """
        places = read_index(source, limits)
        files = dict.fromkeys(places.values())
        shards = {file: open_inner(self._shard(source, file, limits), limits) for file in files}
        tensors: dict[str, LazyTensor] = {}
        first = next((shard for shard in shards.values() if _tells(shard)), next(iter(shards.values())))
        for shard in shards.values():  # torchkeep's own tell all their names: ties, and tensors stored as parts
            tensors |= dict(shard.tensors) if shard.facts is not None else {}
        for name, file in places.items():
            if shards[file].facts is not None:
                continue
            tensor = shards[file].tensors.get(name)
            if tensor is None:
                raise CorruptCheckpointError(
                    f"says that {name[:200]!r} is in {file}, where it is not",
                    file=source.name,
                    hint="the index and its shards are of different saves; fetch them together",
                )
            tensors[name] = tensor
        findings = [finding for shard in shards.values() for finding in shard.findings]
        others = {file: shard for file, shard in shards.items() if shard.facts is None}
        extra = [name for file, shard in others.items() for name in shard.tensors if places.get(name) != file]
        if extra:
            message = f"{len(extra):,} tensors in the shards are not in the index, such as {extra[0][:100]!r}"
            findings.append(Finding("extra-record", "info", message))
        kinds = sorted({shard.format for shard in shards.values()})
        reason = f"an index of {len(shards)} shards ({', '.join(kinds)}) names no producer"
        producers = {shard.provenance.producer for shard in shards.values()} - {""}
        producer = producers.pop() if len(producers) == 1 else ""
        whole = Checkpoint(
            source.name,
            self.name,
            tensors,
            metadata=first.metadata,
            findings=tuple(dict.fromkeys(findings)),
            provenance=Provenance(producer, (reason,)),
            about=first.about,
        )
        told = [shard for shard in shards.values() if isinstance(shard.facts, FileFacts) and shard.facts.whole]
        return of_shards(told[0] if told else first, whole, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Verify the shards whose format has checksums: (shard and record, whether it holds, bytes)."""
        for file in dict.fromkeys(read_index(source, limits).values()):
            for name, ok, nbytes in _verified(self._shard(source, file, limits), limits):
                yield f"{file}: {name}", ok, nbytes

    def _shard(self, source: Source, file: str, limits: Limits) -> Source:
        shard = source.sibling(file)
        if isinstance(recognise(shard, limits), HfIndex):
            raise CorruptCheckpointError(f"names {file[:100]!r} as a shard, which is an index itself", file=source.name)
        return shard


def _tells(shard: Checkpoint) -> bool:
    """Whether a shard of torchkeep's says what all of them are."""
    return isinstance(shard.facts, FileFacts) and bool(shard.facts.whole)


def read_index(source: Source, limits: Limits) -> dict[str, str]:
    """The file of each tensor, as an index says.

    Raises:
        CorruptCheckpointError: it is no JSON, or has no table of names.
        UnsafeCheckpointError: it is longer than Limits.header_bytes.
    """
    if source.size > limits.header_bytes:
        raise UnsafeCheckpointError(f"is an index of {source.size:,} bytes (Limits.header_bytes)", file=source.name)
    try:
        parsed: Any = json.loads(bytes(source.read(0, source.size)))
        places = parsed.get("weight_map") if isinstance(parsed, dict) else None
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"is an index that is no valid JSON: {error}", file=source.name) from error
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CorruptCheckpointError("has a weight_map that is no table of file names", file=source.name)
    if not places:
        raise CorruptCheckpointError("has an empty weight_map", file=source.name)
    return places


class Folder:
    """Opens the one checkpoint that lies in a folder."""

    name = "folder"

    def sniff(self, probe: Probe) -> bool:
        """Any folder that no other format took."""
        return probe.entries is not None and not probe.size

    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Open the index in the folder, else its only file of weights.

        Raises:
            UnknownFormatError: there is none, or more than one.
        """
        return open_inner(_only(source), limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Verify the one checkpoint of the folder, where its format has checksums."""
        yield from _verified(_only(source), limits)


def _only(source: Source) -> Source:
    """The file that stands for a folder."""
    entries = sorted(getattr(source, "entries", ()))
    indexes = [name for name in entries if name.endswith(_INDEX)]
    weights = [name for name in entries if name.endswith(_WEIGHTS) and name not in _NOT_WEIGHTS]
    for found in (indexes, [name for name in _WHOLE if name in entries][:1], weights):
        if len(found) == 1:
            return source.sibling(found[0])
    if _RUN in entries:
        what, hint = "is the folder of a run", "its weights are tk.Run(path).open(), its list is `torchkeep runs`"
    elif weights:
        listed = ", ".join(map(repr, (indexes or weights)[:5]))
        what, hint = f"is a folder of {len(indexes or weights)} checkpoints: {listed}", "open one of them"
    else:
        what, hint = "is a folder without a checkpoint that torchkeep recognises", "give the file itself"
    raise UnknownFormatError(what, file=source.name, hint=hint)


def _verified(source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
    """What the format of a file finds when it verifies it; nothing where there are no checksums."""
    check = getattr(recognise(source, limits), "verify", None)
    yield from check(source, limits) if check is not None else ()
