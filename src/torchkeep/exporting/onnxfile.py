"""ONNX files: written by torch.onnx, and run by onnxruntime."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import MissingDependencyError, SaveError
from .examples import Example
from .programs import reason, undisturbed

_MOST = 1_900_000_000  # bytes of weights in one file; a message of protobuf, which it is, ends at 2**31


def check_installed(*, checked: bool) -> None:
    """Raises MissingDependencyError where a package that writes ONNX, or that runs it if `checked`, is missing."""
    for package in ("onnx", "onnxscript", *(("onnxruntime",) if checked else ())):
        _imported(package)


def write_onnx(program: ExportedProgram, path: Path, said: Mapping[str, str]) -> tuple[str, ...]:
    """Write a program as an ONNX file; answers notes on it.

    Weights that one file cannot hold go into a second one beside it, called after it.

    Raises:
        SaveError: torch.onnx cannot translate the program.
    """
    try:
        with undisturbed(), _quiet_registry():
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        raise SaveError(
            f"the model cannot be written as ONNX: {_why(error)}; nothing was written",
            hint="`.pt2` takes every operator of torch",
        ) from error
    assert made is not None
    made.model.metadata_props.update(said)
    made.model.producer_name, made.model.producer_version = "torchkeep", said["producer"].split()[1].rstrip(",")
    _name_batch(made)
    held = [*program.state_dict.values(), *program.constants.values()]
    apart = sum(tensor.nbytes for tensor in held if isinstance(tensor, torch.Tensor)) > _MOST
    made.save(str(path), external_data=apart)
    return (f"its weights are in {path.name}.data, which goes where it goes",) if apart else ()


def _why(error: BaseException) -> str:
    """The causes of an error of torch.onnx, which itself says only which step of three failed."""
    causes = []
    while error.__cause__ is not None:
        error = error.__cause__
        causes.append(reason(error))
    return "; ".join(causes) or reason(error)


@contextlib.contextmanager
def _quiet_registry() -> Iterator[None]:
    """Without a warning for each operator of torchvision, where that is not installed."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        yield
    finally:
        registry.setLevel(level)


def _name_batch(made: Any) -> None:
    """Call the free first dimension of the inputs `batch`, where it is one and the same."""
    firsts = {
        str(value.shape[0]) for value in made.model.graph.inputs if value.shape and not isinstance(value.shape[0], int)
    }
    if len(firsts) == 1 and hasattr(made, "rename_axes"):
        made.rename_axes({firsts.pop(): "batch"})


def onnx_outputs(path: Path) -> Callable[[Example], list[torch.Tensor]]:
    """What onnxruntime computes, on the CPU."""
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
