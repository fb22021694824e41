"""Leaving: a model as one file that other programs run, checked against the model before it appears."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..core.digests import digest_tensors
from ..core.live import state_of, unwrapped
from ..core.report import ExportReport
from ..core.version import PRODUCER
from ..engines.files import TEMPORARY, sync_folder
from ..errors import OutputsDifferError, SaveError, save_error
from ..loading.outputs import differences, quietly, run
from .examples import BATCH, Example, example_of, longer, sizes
from .onnxfile import check_installed, onnx_outputs, write_onnx
from .programs import EXTRA, check_values, exported, modal_operators, packed, undisturbed

Runner = Callable[[Example], list[torch.Tensor]]


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic_shapes: Any = BATCH,
    tolerance: float | None = 1e-4,
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> ExportReport:
    """Write a model in eval mode as an ONNX file or as a program of torch.export, and check what was written.

    >>> print(tk.export(model, "flowers.onnx", torch.randn(1, 3, 224, 224)))  # doctest: +SKIP

    The written file is run, by onnxruntime or by torch, on the example inputs and, where the batch is free, on a
    batch of another size; only if it computes what the model computes it gets its name. The model keeps its modes.

    Args:
        model: wrappers such as DataParallel are looked through.
        path: ends in `.onnx`, or in `.pt2` for a program with its weights; an existing file is replaced.
        example_inputs: what the model is called with: a tensor, a tuple of positional or a dict of named arguments.
        dynamic_shapes: which sizes of the inputs are free: `batch`, the first one of every tensor; None, no size at
            all; or what torch.export takes.
        tolerance: the largest difference that is accepted, as a share of the largest number in an output; outputs of
            integers have to be equal. None writes the file unchecked.
        metadata: what the file says of the model, e.g. its licence, beside what torchkeep says: the writer, the digest
            of the state, the inputs. In ONNX they are its metadata_props; `tk.open` shows those of a `.pt2`.
        durable: wait until the disk has it.

    Raises:
        OutputsDifferError: the file computes something else; it is gone, and an older one is untouched.
        SaveError: torch cannot export the model, or the file cannot be run or written.
        MissingDependencyError: `.onnx` needs packages that are not installed.
    """
    target = Path(path)
    if target.suffix not in _WRITERS:
        raise SaveError(f"{target} ends in neither .onnx nor .pt2", hint=f"write to {target.with_suffix('.onnx')}")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it is a share of the outputs, 0 or above, or None for no check")
    if target.suffix == ".onnx":
        check_installed(checked=tolerance is not None)
    example = example_of(example_inputs)
    write, runner = _WRITERS[target.suffix]
    inner = unwrapped(model)
    check_values(state_of(inner)[0])
    with quietly(inner):
        program = exported(inner, example, dynamic_shapes)
    said = _facts(inner, example, program, metadata)
    modal = modal_operators(program)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=target.parent) as folder:
            made = Path(folder) / target.name
            notes = write(program, made, said)
            examples = _examples(inner, example, dynamic_shapes)
            difference = None if tolerance is None else _checked(runner, made, inner, examples, tolerance)
            nbytes = _publish(Path(folder), target, durable=durable)
    except OSError as error:
        raise save_error(error, target) from error
    if modal:
        notes = (*notes, f"in eval mode: {', '.join(modal)}")
    return ExportReport(
        path=str(target),
        bytes=nbytes,
        difference=difference,
        checked=() if difference is None else tuple(", ".join(sizes(one)) for one in examples),
        notes=notes,
    )


def _facts(
    model: nn.Module, example: Example, program: ExportedProgram, metadata: Mapping[str, str] | None
) -> dict[str, str]:
    """What the file says of the model: text by name."""
    state = state_of(model)[0]
    digests = dict(zip(state, digest_tensors(list(state.values())), strict=True))
    own = {
        "producer": ", ".join(f"{name} {version}" for name, version in PRODUCER.items()),
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "state": blake3(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        "inputs": ", ".join(map(str, program.graph_signature.user_inputs)),
        "outputs": ", ".join(map(str, program.graph_signature.user_outputs)),
        "example": "; ".join(sizes(example)),
    }
    return own | {str(key): str(value) for key, value in (metadata or {}).items()}


def _examples(model: nn.Module, example: Example, dynamic_shapes: Any) -> list[Example]:
    """The example and, where any batch goes, one of another size, if the model itself takes that."""
    if dynamic_shapes != BATCH:
        return [example]
    other = longer(example)
    try:
        run(model, other.call)
    except Exception:
        return [example]
    return [example, other]


def _checked(
    runner: Callable[[Path], Runner], made: Path, model: nn.Module, examples: list[Example], tolerance: float
) -> float:
    """The largest difference between what the file and what the model computes.

    Raises:
        OutputsDifferError: it is above the tolerance.
        SaveError: the file cannot be run.
    """
    expected = [tensors_in(run(model, example.call)) for example in examples]
    try:
        runs = runner(made)
        got = [runs(example) for example in examples]
    except Exception as error:
        raise SaveError(
            f"{made.name} was written and cannot be run: {type(error).__name__}: {str(error)[:300]}",
            hint="nothing was left behind; tolerance=None writes it unchecked",
        ) from error
    worst = 0.0
    for example, one, other in zip(examples, got, expected, strict=True):
        worst = max(worst, _difference(one, other, f"{made.name}, on {'; '.join(sizes(example))}", tolerance))
    return worst


def _difference(got: list[torch.Tensor], expected: list[torch.Tensor], title: str, tolerance: float) -> float:
    """The largest difference between outputs, each held against the size of its numbers."""
    worst = 0.0
    if len(got) != len(expected):
        raise OutputsDifferError(f"{title}, has {len(got)} outputs where the model has {len(expected)}")
    for number, (one, other) in enumerate(zip(got, expected, strict=True)):
        difference = max(distance for _, distance in differences(one, other, ""))
        accepted = tolerance * _size(other)
        if not difference <= accepted:
            raise OutputsDifferError(
                f"{title}, does not compute what the model computes: output {number} differs by {difference:.3g}, and "
                f"{accepted:.3g} is accepted; the file was not kept",
                difference=difference,
                place=f"output {number}",
                hint="tolerance= accepts more; a model that draws random numbers or counts in eval mode never agrees",
            )
        worst = max(worst, difference)
    return worst


def _size(tensor: torch.Tensor) -> float:
    """The largest number in a tensor of floating-point numbers; others have to be equal."""
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return 0.0
    sizes = tensor.detach().abs().double()
    finite = sizes[sizes.isfinite()]
    return max(float(finite.max()), torch.finfo(tensor.dtype).eps) if finite.numel() else 0.0


def tensors_in(outputs: Any) -> list[torch.Tensor]:
    """The tensors of nested outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def _publish(folder: Path, target: Path, *, durable: bool) -> int:
    """Give the files their names, the one that is opened last; answers their bytes."""
    files = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    there = [file.name for file in files[:-1] if target.with_name(file.name).exists()]
    if there:
        raise SaveError(
            f"{target.with_name(there[0])} exists already",
            hint="two files cannot be replaced in one step: write to another name",
        )
    nbytes = 0
    for file in files:
        nbytes += file.stat().st_size
        if durable:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        file.replace(target.with_name(file.name))
    if durable:
        sync_folder(target.parent)
    return nbytes


def _write_pt2(program: ExportedProgram, path: Path, said: Mapping[str, str]) -> tuple[str, ...]:
    path.write_bytes(packed(program, {EXTRA: json.dumps(dict(said))}))
    return ()


def _pt2_outputs(path: Path) -> Runner:
    with undisturbed():
        module = torch.export.load(path).module()

    def runs(example: Example) -> list[torch.Tensor]:
        copied = example.mapped(lambda tensor: tensor.detach().clone())
        with torch.no_grad():
            return tensors_in(module(*copied.positional, **copied.named))

    return runs


_WRITERS: dict[
    str, tuple[Callable[[ExportedProgram, Path, Mapping[str, str]], tuple[str, ...]], Callable[[Path], Runner]]
] = {".onnx": (write_onnx, onnx_outputs), ".pt2": (_write_pt2, _pt2_outputs)}
