"""TorchScript archives of torch 1.3 and later, mobile ones (.ptl) too: pickled script objects, and code as text.

Which of a module's tensors are parameters stands in the code alone, as lists in the body of its class. The text is
searched for them; it is never compiled.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core import tree as trees
from ..core.checkpoint import Checkpoint, Finding
from ..core.limits import Limits
from ..core.source import Probe, Source
from ..core.tensors import LazyTensor
from ..core.tree import Global, Record
from ..errors import UnsafeCheckpointError
from ._assemble import Contents, Hint, checkpoint_from
from ._pause import collector_paused
from ._pickle import Dialect, Use, truncation_is_corruption
from ._torch import TensorReader
from ._zip import Archive, find_record, is_zip, read_archive
from .torch_zip import Records

_DATA = re.compile(r"((?:[^/]+/)?)(?:constants\.pkl|bytecode\.pkl|code/.+)")
_CLASS = re.compile(r"^class (\w+)(\([\w., ]*\))?:", re.MULTILINE)
_LIST = re.compile(r"^  (__parameters__|__buffers__) = \[(.*?)\]$", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\"([^\"\n]*)\"|'([^'\n]*)'")
_MANGLED = re.compile(r"\.?___torch_mangle_\d+")
_FILES = re.compile(r"(?:torch|ops\.\w+)\.(save|load|from_file|_save|_load|system)\(")
_METHOD = re.compile(r"^  def __setstate__\(", re.MULTILINE)
_CONSTRUCTORS = ("build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")


class TorchScript:
    """Reads TorchScript archives; the code in them is text and stays text."""

    name = "torchscript"

    def sniff(self, probe: Probe) -> bool:
        """A zip with a data.pkl, and with constants, bytecode or code beside it."""
        if not is_zip(probe.head) or probe.entries is None:
            return False
        roots = {found[1] for found in map(_DATA.fullmatch, probe.entries) if found}
        return any(f"{root}data.pkl" in probe.entries for root in roots)

    @collector_paused()
    @truncation_is_corruption()
    def open(self, source: Source, limits: Limits) -> Checkpoint:
        """Read the objects and the text of their classes, and none of the tensors.

        Raises:
            CorruptCheckpointError: the archive or the pickle is damaged or contradicts itself.
            UnsafeCheckpointError: the code is longer than Limits.pickle_bytes.
        """
        archive = read_archive(source, limits)
        root = find_record(archive, _DATA, "TorchScript archive")[1]
        records = Records(archive, root)
        records.read_small()
        seen: dict[Global, Use] = {}
        reader = TensorReader(source, records.place, limits, swapped=records.swapped)
        value = records.unpickle("data.pkl", reader, limits, seen, _dialect(reader)).value
        code = _Code(archive, root, limits)
        _as_modules(value, code, limits)
        contents = Contents(
            value,
            seen,
            hints=_hints(records, code),
            findings=(*archive.findings, *records.findings, *reader.findings, *code.findings),
            byte_order="big" if records.swapped else "little",
            metadata=code.sources() | _extra_files(archive, root),
        )
        return checkpoint_from(source.name, self.name, contents, limits)

    def verify(self, source: Source, limits: Limits) -> Iterator[tuple[str, bool, int]]:
        """Read every record and compare its checksum: (name, whether it holds, bytes)."""
        yield from read_archive(source, limits).verify()


def _dialect(reader: TensorReader) -> Dialect:
    """Lists of one type are built by functions of torch.jit._pickle."""
    known = reader.dialect()
    builders = {("torch.jit._pickle", name): _as_list for name in _CONSTRUCTORS}
    return replace(known, builders={**known.builders, **builders, ("torch.jit._pickle", "restore_type_tag"): _untagged})


def _as_list(values: Any) -> Any:
    return list(values) if isinstance(values, (list, tuple)) else NotImplemented


def _untagged(value: Any, tag: Any) -> Any:
    return value


class _Code:
    """The classes in the text of an archive, by qualified name, and what is dangerous in it."""

    def __init__(self, archive: Archive, root: str, limits: Limits) -> None:
        self.findings: list[Finding] = []
        self.classes: dict[str, str] = {}
        lead = f"{root}code/"
        names = [name for name in archive.entries if name.startswith(lead) and name.endswith(".py")]
        total = sum(archive.entries[name].nbytes for name in names)
        if total > limits.pickle_bytes:
            raise UnsafeCheckpointError(
                f"has {total:,} bytes of code (Limits.pickle_bytes)", file=archive.source.name, place=lead
            )
        for name in names:
            text = archive.read(name, limits.pickle_bytes).decode("utf-8", "replace")
            module = name.removeprefix(lead).removesuffix(".py").replace("/", ".")
            self._add(module, text, name.removeprefix(root))

    def _add(self, module: str, text: str, place: str) -> None:
        starts = [*_CLASS.finditer(text)]
        for number, found in enumerate(starts):
            end = starts[number + 1].start() if number + 1 < len(starts) else len(text)
            self.classes[f"{module}.{found[1]}"] = text[found.start() : end]
        touching = sorted({found[1] for found in _FILES.finditer(text)})
        if touching:
            message = f"has code that calls {', '.join(touching)} of torch, which read and write files when it is run"
            self.findings.append(Finding("script-code", "danger", message, place))
        loading = len(_METHOD.findall(text))
        if loading:
            message = f"has {loading} methods __setstate__, which torch.jit.load runs"
            self.findings.append(Finding("script-code", "info", message, place))

    def lists(self, cls: str) -> tuple[set[str], set[str] | None] | None:
        """Names of the parameters and buffers of a module class; no buffers before 1.6. None where it is no module."""
        text = self.classes.get(cls)
        if text is None or not text.partition(":")[0].endswith("(Module)"):
            return None
        found = {key: {a or b for a, b in _WORD.findall(names)} for key, names in _LIST.findall(text)}
        return found.get("__parameters__", set()), found.get("__buffers__")

    def sources(self) -> dict[str, str]:
        """The text of each class, under the name that it had before it was compiled."""
        return {f"source:{plain_name(name)}": text for name, text in self.classes.items()}


def plain_name(qualified: str) -> str:
    """The name of a class without what TorchScript put into it."""
    return _MANGLED.sub("", qualified).removeprefix("__torch__.")


def _as_modules(root: Any, code: _Code, limits: Limits) -> None:
    """Give script modules the form of pickled ones: dicts of parameters, buffers and modules."""
    for record in trees.records(root, limits):
        if isinstance(record.cls, Global) and record.cls.module.split(".")[0] == "__torch__":
            lists = code.lists(record.class_name)
            module, _, name = plain_name(record.class_name).rpartition(".")
            record.cls = Global(module or "__torch__", name)
            if lists is not None and isinstance(record.state, dict):
                record.state = _module_state(record.state, *lists)


def _module_state(state: Mapping[Any, Any], parameters: set[str], buffers: set[str] | None) -> dict[Any, Any]:
    out: dict[Any, Any] = {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict()}
    for key, value in state.items():
        tensor = trees.as_tensor(value)
        if isinstance(tensor, LazyTensor):
            if key in parameters:
                out["_parameters"][key] = tensor.replace(kind="parameter")
                continue
            if buffers is None or key in buffers:
                out["_buffers"][key] = value
                continue
        elif value is None and key in parameters:
            out["_parameters"][key] = None
            continue
        elif isinstance(value, Record) and isinstance(value.state, dict):
            out["_modules"][key] = value
            continue
        out[key] = value
    return out


def _extra_files(archive: Archive, root: str) -> dict[str, str]:
    """The text that was saved with the archive as `_extra_files`, where it is short."""
    lead = f"{root}extra/"
    return {
        f"extra:{name.removeprefix(lead)}": archive.read(name, 1 << 20).decode("utf-8", "replace")
        for name, entry in archive.entries.items()
        if name.startswith(lead) and entry.nbytes < 1 << 20 and name[-1] != "/"
    }


def _hints(records: Records, code: _Code) -> tuple[Hint, ...]:
    """What the records and the code tell of the torch that wrote them."""
    if "byteorder" in records.names:
        return (Hint("it is TorchScript with a byteorder record", (2, 1)),)
    version = records.small.get("version", b"")
    bodies = code.classes.values()
    if version == b"1":
        return (Hint("it is TorchScript of archive version 1", (1, 3), (1, 4)),)
    if version == b"2":
        return (Hint("it is TorchScript of archive version 2", (1, 5), (1, 5)),)
    if any("_is_full_backward_hook" in body for body in bodies):
        return (Hint("its script modules have _is_full_backward_hook, and it has no byteorder record", (1, 8), (2, 0)),)
    return (Hint("it is TorchScript of archive version 3 without a byteorder record", (1, 6), (2, 0)),)
