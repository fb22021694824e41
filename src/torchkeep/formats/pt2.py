"""The weights of programs that torch.export saved (.pt2), in each of the four layouts there were.

2.1 to 2.7 have a save of the state dict as one record; 2.8 has it below data/weights; later ones have a record for
each tensor and a table that describes them. The program itself is not read, except for what its signature says.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..core.checkpoint import Checkpoint, Finding, Provenance
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import DTYPES, LazyTensor, StorageRef, TensorSpec, check_geometry, contiguous_stride
from ..core.tree import as_tensor, first_record
from ..errors import CorruptCheckpointError, OpenError, UnsupportedFeatureError
from ._dispatch import open_inner
from ._pause import collector_paused
from ._zip import Archive, find_record, is_zip, read_archive

_PROGRAM = re.compile(r"serialized_exported_program\.json|(?:[^/]+/)?models/[^/]+\.json")
_STATE = re.compile(r"serialized_state_dict\.(?:json|pt)|(?:[^/]+/)?data/weights/[^/]+\.pt")
_TABLE = re.compile(r"((?:[^/]+/)?data/weights/)[^/]+_weights_config\.json")
_PICKLED = re.compile(
    r"serialized_(?:constants|example_inputs)\.(?:json|pt)|(?:[^/]+/)?data/(?:constants|sample_inputs)/[^/]+\.pt"
)
_OURS = re.compile(r"(?:[^/]+/)?(?:extra|extra_files)/torchkeep\.json")
KIND = "graph-without-weights"
_CONFIG = re.compile(r"(?:[^/]+/)?data/(?:weights|constants)/[^/]+_config\.json")
_FOREIGN = re.compile(r"(?:[^/]+/)?data/(?:aotinductor|executorch)/.*|.*/(?:custom|opaque)_obj_[^/]*")
_SCALARS = {  # torch's numbers for dtypes: ScalarType of torch/_export/serde/schema.py
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
_STRIDED = 7
_ELSEWHERE = "the weights of this graph are in the .safetensors file that was saved with it: open that"
_PREFIX = "L__self___"  # what 2.1 put in front of the names


class Pt2:
    """Reads the weights of exported programs; no graph is rebuilt."""

    name = "pt2"

    def sniff(self, probe: Probe) -> bool:
        """A zip with a program, and with its state as one save or as a table."""
        names = probe.entries or frozenset()
        return (
            is_zip(probe.head)
            and any(map(_PROGRAM.fullmatch, names))
            and any(_STATE.fullmatch(name) or _TABLE.fullmatch(name) for name in names)
        )

    @collector_paused()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read what describes the tensors, and none of them.

        Raises:
            CorruptCheckpointError: the archive is damaged, or the table does not fit the records.
        """
        archive = read_archive(source, limits)
        program = _json(archive, find_record(archive, _PROGRAM, "program of torch.export")[0], limits)
        table = next(filter(_TABLE.fullmatch, archive.entries), None)
        findings = list(archive.findings)
        if table is not None:
            found = _Table(archive, table, limits).tensors()
        else:
            state = find_record(archive, _STATE, "program of torch.export")[0]
            inside = open_inner(archive.record(state), limits)
            findings += [finding for finding in inside.findings if finding.code != "no-checksums"]
            found = dict(inside.tensors)
        kinds = _signature(program)
        tensors = {}
        for name, tensor in found.items():
            plain = name.removeprefix(_PREFIX)
            tensors[plain] = tensor.replace(kind=kinds.get(plain, tensor.kind))
        findings += _pickles(archive, limits)
        about = _about(archive, limits)
        if about.get("kind") == KIND:
            tensors = {name: _weightless(tensor) for name, tensor in tensors.items()}
            findings.append(Finding("no-weights", "warning", _ELSEWHERE))
        version = program.get("torch_version")
        known = isinstance(version, str) and re.fullmatch(r"\d+\.\d+[\w.+]{0,20}", version) is not None
        return Checkpoint(
            source.name,
            self.name,
            tensors,
            metadata={key: value for key, value in about.items() if isinstance(value, str)},
            findings=tuple(findings),
            provenance=Provenance(
                f"torch {version}" if known else "torch 2.1 or later",
                ("the program names its torch",) if known else ("it is a program of torch.export",),
            ),
        )

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes)."""
        yield from read_archive(source, limits).verify()


def _json(archive: Archive, name: str, limits: Limits) -> dict[str, Any]:
    try:
        parsed: Any = json.loads(archive.read(name, limits.header_bytes))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"is no valid JSON: {error}", file=archive.source.name, place=name) from error
    if not isinstance(parsed, dict):
        raise CorruptCheckpointError("is no JSON object", file=archive.source.name, place=name)
    return parsed


def _about(archive: Archive, limits: Limits) -> dict[str, Any]:
    """What torchkeep wrote about the program, where it wrote it."""
    name = next(filter(_OURS.fullmatch, archive.entries), None)
    return {} if name is None else _json(archive, name, limits)


def _weightless(tensor: LazyTensor) -> LazyTensor:
    """A tensor of which only dtype and shape are in the file."""
    return tensor.replace(storage=None, stride=contiguous_stride(tensor.spec.shape), storage_offset=0, device="meta")


def _signature(program: dict[str, Any]) -> dict[str, str]:
    """Which names are parameters and which are buffers, as the signature of the graph says."""
    kinds: dict[str, str] = {}
    graph = program.get("graph_module")
    signature = graph.get("signature") if isinstance(graph, dict) else None
    inputs = signature.get("input_specs") if isinstance(signature, dict) else None
    for one in inputs if isinstance(inputs, list) else ():
        for kind in ("parameter", "buffer"):
            described = one.get(kind) if isinstance(one, dict) else None
            name = described.get(f"{kind}_name") if isinstance(described, dict) else None
            if isinstance(name, str):
                kinds[name.removeprefix(_PREFIX)] = kind
    return kinds


def hazards(source: Source, limits: Limits) -> list[str]:
    """The records of which torch.export.load would load code or unpickle more than plain values: the trouble in each.

    Raises:
        CorruptCheckpointError: the archive is damaged.
    """
    archive = read_archive(source, limits)
    found = [
        f"{name}, which is code or an object of another kind" for name in filter(_FOREIGN.fullmatch, archive.entries)
    ]
    for name in filter(_CONFIG.fullmatch, archive.entries):
        held = _json(archive, name, limits).get("config")
        rows = held.values() if isinstance(held, dict) else ()
        if any(not isinstance(row, dict) or row.get("use_pickle") is not False for row in rows):
            found.append(f"{name}, which has pickled tensors")
    for name in archive.entries:
        if archive.entries[name].nbytes and (_PICKLED.fullmatch(name) or _STATE.fullmatch(name)):
            inside = open_inner(archive.record(name), limits)
            dangers = [finding.message for finding in inside.findings if finding.severity == "danger"]
            if dangers or first_record(inside.tree) is not None:
                found.append(f"{name}, which has {dangers[0] if dangers else 'objects of other classes'}")
    return found


def _pickles(archive: Archive, limits: Limits) -> list[Finding]:
    """What the saves beside the state would run; torch.export.load reads them."""
    found = []
    for name in filter(_PICKLED.fullmatch, archive.entries):
        if archive.entries[name].nbytes == 0:
            continue
        try:
            inside = open_inner(archive.record(name), limits).findings
        except OpenError as error:
            inside = (*error.findings, Finding("odd-structure", "warning", f"cannot be read: {error.message}", name))
        found += [replace(one, place=f"{name}: {one.place}") for one in inside if one.severity != "info"]
    return found


class _Table:
    """The table of tensors that torch 2.9 and later write: each in a record of its own."""

    def __init__(self, archive: Archive, name: str, limits: Limits) -> None:
        self.archive = archive
        self.name = name
        self.folder = name.rpartition("/")[0] + "/"
        self.config = _json(archive, name, limits).get("config")
        self.limits = limits
        self._storages: dict[str, StorageRef] = {}

    def tensors(self) -> dict[str, LazyTensor]:
        """Every tensor by its name in the state dict."""
        if not isinstance(self.config, dict):
            raise CorruptCheckpointError("has no table of weights", file=self.archive.source.name, place=self.name)
        return {name: self._tensor(name, described) for name, described in self.config.items()}

    def _tensor(self, name: str, described: Any) -> LazyTensor:
        place = f"{self.name}, {name[:100]!r}"
        path = described.get("path_name") if isinstance(described, dict) else None
        if (
            not isinstance(path, str)
            or posixpath.basename(path) != path
            or self.folder + path not in self.archive.entries
        ):
            raise CorruptCheckpointError(
                f"is said to be in record {str(path)[:100]!r}, which is not there",
                file=self.archive.source.name,
                place=place,
            )
        record = self.folder + path
        if described.get("use_pickle") is True:
            tensor = as_tensor(open_inner(self.archive.record(record), self.limits).tree)
            if not isinstance(tensor, LazyTensor):
                raise CorruptCheckpointError(
                    "is a record without a tensor", file=self.archive.source.name, place=record
                )
            return tensor
        meta = described.get("tensor_meta")
        if not isinstance(meta, dict):
            raise CorruptCheckpointError("is not described", file=self.archive.source.name, place=place)
        dtype = DTYPES.get(_SCALARS.get(meta.get("dtype", 0), ""))
        if dtype is None or meta.get("layout", _STRIDED) != _STRIDED:
            raise UnsupportedFeatureError(
                f"has dtype {meta.get('dtype')!r} and layout {meta.get('layout')!r}, which torchkeep cannot read",
                file=self.archive.source.name,
                place=place,
            )
        sizes, strides = (tuple(map(_integer, _listed(meta, key))) for key in ("sizes", "strides"))
        offset = _integer(meta.get("storage_offset", 0))
        storage = self._storages.setdefault(record, self.archive.storage(record))
        spec = TensorSpec(dtype.torch, sizes)
        check_geometry(spec, strides, offset, storage.nbytes, file=self.archive.source.name, place=place)
        device = meta.get("device")
        kind = "parameter" if described.get("is_param") is True else "buffer"
        return LazyTensor(
            self.archive.source,
            storage,
            spec,
            strides,
            offset,
            device=_device(device),
            kind=kind,
            requires_grad=meta.get("requires_grad") is True,
        )


def _listed(meta: dict[str, Any], key: str) -> list[Any]:
    values = meta.get(key)
    return values if isinstance(values, list) and len(values) <= 64 else [None]


def _integer(value: Any) -> int:
    """A size as the schema writes it; one that is symbolic has no number."""
    if isinstance(value, dict):
        value = value.get("as_int")
    return value if type(value) is int else -1


def _device(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    index = value.get("index") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        return "cpu"
    return f"{kind[:20]}:{index}" if type(index) is int and 0 <= index < 10_000 else kind[:20]
