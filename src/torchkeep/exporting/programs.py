"""Programs of torch.export: made of live models, and written with their weights or without."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from ..core.live import AnyTensor, unwrapped
from ..core.table import shorten
from ..errors import SaveError
from .examples import BATCH, Example, batched, shapes_of
from .running import computing

EXTRA = "torchkeep.json"
_DROPPING = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "rrelu", "batch_norm")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_SHAPES_LOG = logging.getLogger("torch.fx.experimental.symbolic_shapes")
"""Where torch prints whole graphs before it raises the error that says the same."""
_EXPECTED = (
    r"The tensor attributes? self\..* assigned during export",  # what RNNs do with their flat weights
    "No complete tensor found in the group",  # said of weights that are left out
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Without what torch prints, and what it warns of although it is as it should be."""
    before = _SHAPES_LOG.disabled
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        _SHAPES_LOG.disabled = True
        try:
            yield
        finally:
            _SHAPES_LOG.disabled = before


def check_values(tensors: Mapping[str, AnyTensor]) -> None:
    """Raises SaveError where tensors of a model are on the meta device: a graph of them computes nothing."""
    empty = [name for name, tensor in tensors.items() if str(tensor.device) == "meta"]
    if empty:
        raise SaveError(
            f"the model has no values: {shorten(empty, 3)} are on the meta device; nothing was written",
            hint="load its weights first",
        )


def exported(model: nn.Module, example: Example, dynamic_shapes: Any) -> ExportedProgram:
    """The program of a model in the modes it is in; it holds the tensors of the model themselves.

    Args:
        model: wrappers are looked through.
        example: what it is called with.
        dynamic_shapes: BATCH; None for the shapes of the example alone; else what torch.export takes.

    Raises:
        SaveError: torch cannot export it, or not with these shapes free.
    """
    inner = computing(unwrapped(model))
    shapes = dynamic_shapes
    if isinstance(dynamic_shapes, str):
        if dynamic_shapes != BATCH:
            raise SaveError(
                f"dynamic_shapes={dynamic_shapes!r} is none of the words that are known",
                hint="'batch', None for fixed shapes, or what torch.export takes",
            )
        example = batched(example)
        shapes = shapes_of(inner, example)
    try:
        program = _traced(inner, example, shapes)
    except Exception as error:
        raise _refusal(inner, example, shapes, error) from error
    _without_places(program)
    return program


def _traced(model: nn.Module, example: Example, shapes: Any) -> ExportedProgram:
    own = example.mapped(torch.Tensor.detach)  # torch marks the tensors that it is given, and the marks stay
    errors = io.StringIO()  # where torch prints the whole graph when it fails
    with undisturbed(), _restored(model), contextlib.redirect_stderr(errors):
        program = torch.export.export(model, own.positional, dict(own.named), dynamic_shapes=shapes, strict=False)
    sys.stderr.write(errors.getvalue())
    return program


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """With the attributes of all modules as before: a forward that keeps something keeps what torch traced with."""
    held = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for now, before in held:
            for key in now.keys() - before.keys():
                del now[key]
            now.update(before)


def _refusal(model: nn.Module, example: Example, shapes: Any, error: Exception) -> SaveError:
    """What is in the way: the sizes that were to be free, or the model itself."""
    if shapes is not None:
        with contextlib.suppress(Exception):
            _traced(model, example, None)
            return SaveError(
                f"the graph cannot have the free sizes that dynamic_shapes asks for: {reason(error)}; "
                "nothing was written",
                hint="dynamic_shapes=None exports it for the sizes of example_inputs alone; "
                "what torch.export takes as dynamic_shapes names the sizes that are free",
            )
    return SaveError(
        f"the model cannot be exported as a graph: {reason(error)}{_where(error)}; nothing was written",
        hint="save it without example_inputs, or change what is in the way: branches and sizes must not depend on the "
        "values of tensors, and of example_inputs a tuple is the positional, a dict the named arguments",
    )


def _where(error: BaseException) -> str:
    """The line outside of torch at which an export ended; empty if there is none."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith(own)]
    return f", at {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def reason(error: BaseException) -> str:
    """What torch says, in one line: without its advice on logs and on itself."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    kept = [
        line.partition(" For more information")[0].partition(" If you're using")[0].partition(" See the stack")[0]
        for line in lines[:2]
    ]
    text = " ".join(line for line in kept if not line.startswith(("Caused by", "consider using", "The error above")))
    return f"{type(error).__name__}: {text[:300].rstrip('. ')}"


def _without_places(program: ExportedProgram) -> None:
    """Take out the paths and lines of the source, which are nobody's business where the file goes."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def modal_operators(program: ExportedProgram) -> list[str]:
    """The operators that a mode has decided about: normalisation of batches, and everything that drops."""
    found = set()
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            name = str(node.target).removeprefix("aten.").partition(".")[0].rstrip("_")
            drops = any(isinstance(arg, float) and arg > 0 for arg in node.args)
            if name in _DROPPING or (name in _RECURRENT and drops):
                found.add(name)
    return sorted(found)


def without_weights(program: ExportedProgram, example: Example, extra: Mapping[str, str]) -> bytes:
    """A .pt2 file of a program in which every parameter and buffer of the state is one element, repeated.

    torch opens it, and computes NaN. Constants and buffers that no state dict has are in it.
    """
    for name, tensor in program.state_dict.items():
        program.state_dict[name] = _stand_in(tensor)
    program.example_inputs = _shapes_only(example)
    program = move_to_device_pass(program, "cpu")
    return packed(program, extra)


def packed(program: ExportedProgram, extra: Mapping[str, str]) -> bytes:
    """A .pt2 file of a program."""
    buffer = io.BytesIO()
    with undisturbed():
        torch.export.save(program, buffer, extra_files=dict(extra))
    return buffer.getvalue()


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    one = torch.zeros((), dtype=tensor.dtype)
    if tensor.dtype in {torch.float16, torch.bfloat16, torch.float32, torch.float64}:
        one.fill_(math.nan)
    repeated = one.expand(tensor.shape) if tensor.numel() else torch.zeros(tensor.shape, dtype=tensor.dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(repeated, requires_grad=tensor.requires_grad)
    return repeated


def _shapes_only(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs that torch makes its guards of: the shapes of the example and none of its values."""
    blank = example.mapped(
        lambda tensor: torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    )
    return blank.positional, dict(blank.named)


def mode_of(model: nn.Module) -> str:
    """`train` or `eval` where all modules are in that mode, else `mixed`."""
    modes = {module.training for module in unwrapped(model).modules()}
    return "mixed" if len(modes) > 1 else "train" if modes.pop() else "eval"
