"""ONNX files: written by torch.onnx, and run by onnxruntime."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import MissingDependencyError, SaveError
from .examples import Example
from .programs import reason, undisturbed

_MOST = 1_900_000_000  # bytes of weights in one file; a message of protobuf, which it is, ends at 2**31


def write_onnx(program: ExportedProgram, path: Path, said: Mapping[str, str]) -> tuple[str, ...]:
    """Write a program as an ONNX file; answers notes on it.

    Weights that one file cannot hold go into a second one beside it, called after it.

    Raises:
        MissingDependencyError: onnx or onnxscript is not installed.
        SaveError: torch.onnx cannot translate the program.
    """
    for package in ("onnx", "onnxscript"):
        _imported(package)
    try:
        with undisturbed():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise SaveError(
            f"the model cannot be written as ONNX: {reason(error)}; nothing was written",
            hint="`.pt2` takes every operator of torch",
        ) from error
    assert made is not None
    made.model.metadata_props.update(said)
    made.model.producer_name, made.model.producer_version = "torchkeep", said["producer"].split()[1].rstrip(",")
    held = [*program.state_dict.values(), *program.constants.values()]
    apart = sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor)) > _MOST
    made.save(str(path), external_data=apart)
    return (f"its weights are in {path.name}.data, which goes where it goes",) if apart else ()


def onnx_outputs(path: Path) -> Callable[[Example], list[torch.Tensor]]:
    """What onnxruntime computes, on the CPU.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    runtime = _imported("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def runs(example: Example) -> list[torch.Tensor]:
        names = [one.name for one in session.get_inputs()]
        given = [tensor.detach().cpu().numpy() for tensor in example.tensors]
        return [torch.from_numpy(array) for array in session.run(None, dict(zip(names, given, strict=True)))]

    return runs


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting to ONNX needs {package}, which is not installed", hint="pip install 'torchkeep[export]'"
        ) from error
