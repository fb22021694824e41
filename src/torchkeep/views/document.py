"""Nouns as plain dicts and lists, ready for JSON. The keys are promises to other programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..core import tagged
from ..core.about import About, written
from ..core.checkpoint import Checkpoint, SavedModule
from ..core.diff_report import DiffReport
from ..core.report import LoadReport, VerifyReport
from ..core.salvage_report import SalvageReport
from ..core.scan_report import ScanReport
from ..core.snapshot import RunSummary
from ..core.sweep_report import SweepReport
from ..core.tensors import dtype_name
from ..errors import TorchkeepError


def document(noun: Any) -> Any:
    """A noun as JSON-able data."""
    if isinstance(noun, Checkpoint):
        return _checkpoint(noun)
    if isinstance(noun, LoadReport):
        return _load_report(noun)
    if isinstance(noun, TorchkeepError):
        return _error(noun)
    if isinstance(noun, DiffReport):
        return {"equal": noun.equal} | _plain(noun)
    if isinstance(noun, VerifyReport):
        return {"ok": noun.ok} | _plain(noun)
    if isinstance(noun, SalvageReport):
        return {"ok": noun.ok} | _plain(noun)
    if isinstance(noun, ScanReport):
        files = [{"severity": file.severity} | _plain(file) for file in noun.files]
        return {"severity": noun.severity, "summary": noun.summary, "files": files, "notes": list(noun.notes)}
    if isinstance(noun, RunSummary):
        return _plain(noun) | {"best": noun.best.sequence if noun.best else None}
    return _plain(noun)


def _plain(value: Any) -> Any:
    if isinstance(value, SweepReport):
        return value.as_dict()
    if isinstance(value, About):
        return msgspec.to_builtins(written(value)) | {"preprocessing": _plain(value.preprocessing)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(child) for child in value]
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, Path):
        return str(value)
    return tagged.encode(value)


def _checkpoint(ckpt: Checkpoint) -> dict[str, Any]:
    return {
        "file": ckpt.file,
        "format": ckpt.format,
        "kind": ckpt.kind,
        "model": {"key": ckpt.model_key, "candidates": list(ckpt.candidates)},
        "producer": _plain(ckpt.provenance),
        "metadata": dict(ckpt.metadata),
        "modules": [_module(module) for module in ckpt.modules],
        "findings": _plain(ckpt.findings),
        "surgery": _plain(ckpt.surgery),
        "origins": {name: _plain(origin) for name, origin in ckpt.origins.items()},
        "about": _plain(ckpt.about),
        "tensors": [
            {
                "name": name,
                "dtype": dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "device": tensor.device,
                "requires_grad": tensor.requires_grad,
                "nbytes": tensor.nbytes,
                "kind": tensor.kind,
                "layout": tensor.layout,
            }
            for name, tensor in ckpt.items()
        ],
    }


def _module(module: SavedModule) -> dict[str, Any]:
    """Attributes are shown where they are numbers, text or short lists of them, the others as Python prints them."""
    facts = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    shown = {key: _attribute(value) for key, value in module.attributes.items()}
    return {key: _plain(value) for key, value in facts.items() if key != "attributes"} | {"attributes": shown}


def _attribute(value: Any) -> Any:
    simple = (str, int, float, bool, type(None))
    if isinstance(value, simple) or (
        isinstance(value, (list, tuple)) and len(value) < 100 and all(isinstance(item, simple) for item in value)
    ):
        return _plain(value)
    return (
        f"<{type(value).__name__}>" if isinstance(value, (Mapping, list, tuple, set, frozenset)) else repr(value)[:200]
    )


def _load_report(report: LoadReport) -> dict[str, Any]:
    return {
        "source": report.source,
        "applied": report.applied,
        "coverage": report.coverage,
        "coverage_by_module": report.coverage_by_module,
        "allowed": list(report.allowed),
        "checked": report.checked,
        "loaded": list(report.loaded),
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "mismatched": list(report.mismatched),
        "adapted": list(report.adapted),
        "notes": list(report.notes),
        "moves": [
            {
                "source": move.source,
                "target": move.target,
                "rule": move.rule,
                "confidence": move.confidence,
                "cast_from": move.cast_from,
                "adapter": move.adapter,
                "options": dict(report.plan.adapters[move.target].options) if move.adapter else {},
                "does": move.says,
                "elements": move.taken,
            }
            for move in report.moves
        ],
        "mismatches": _plain(report.mismatches),
    }


def _error(error: TorchkeepError) -> dict[str, Any]:
    known = ("file", "place", "path", "hint", "candidates", "applied", "difference", "names", "needed", "free")
    facts = {name: _plain(getattr(error, name)) for name in known if getattr(error, name, None)}
    report = getattr(error, "report", None)
    return {
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        **facts,
        **({"report": document(report)} if report is not None else {}),
    }
