"""A graph beside the weights: written with them, and made a model with them again."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from ..contents import Contents
from ..core.checkpoint import Checkpoint
from ..core.digests import digest_bytes
from ..core.facts import Graph
from ..core.limits import Limits
from ..core.live import live_tensors, spec_of, unwrapped
from ..core.source import Held, Source, read_all
from ..core.table import human_bytes, shorten
from ..engines.files import TEMPORARY, sync_folder, write_file
from ..errors import (
    CheckpointNotFoundError,
    GraphWarning,
    OpenError,
    RebuildError,
    SaveError,
    UnsafeCheckpointError,
    save_error,
)
from ..formats.pt2 import KIND, hazards
from ..opening import PathLike, as_source, load, open_checkpoint
from .examples import BATCH, Example, example_of, sizes
from .programs import EXTRA, check_values, exported, modal_operators, mode_of, reason, undisturbed, without_weights
from .running import GraphModel

_PLAIN = (torch.Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


@contextlib.contextmanager
def graph_beside(
    model: nn.Module,
    contents: Contents,
    path: Path,
    example_inputs: Any,
    dynamic_shapes: Any = BATCH,
    *,
    durable: bool = True,
) -> Iterator[Contents]:
    """Export a model, and put the graph beside the file that is written in the `with` block, if it is written.

    The graph waits under a temporary name while the weights are written, and takes its own after they have theirs. A
    crash in between leaves new weights beside the old graph, which is refused then by its digest.

    Args:
        model: the model of the contents.
        contents: what goes into the file of the weights; the block gets it with the facts of the graph.
        path: of the file of the weights.
        example_inputs: what the model is called with; a tuple is its positional, a dict its named arguments.
        dynamic_shapes: as for `tk.save`.
        durable: wait until the disk has it.

    Raises:
        SaveError: the model cannot be exported, or the graph cannot be written; the block is not run.
    """
    if not path.parent.is_dir():
        raise SaveError(f"{path} cannot be written: there is no folder {path.parent}", hint="make the folder first")
    example = example_of(example_inputs)
    check_values(live_tensors(unwrapped(model)))
    program = exported(model, example, dynamic_shapes)
    _check_names(program, contents)
    _check_plain_inputs(example)
    modal = modal_operators(program)
    data = without_weights(program, example, {EXTRA: json.dumps({"kind": KIND})})
    _check_readable(data)
    graph = Graph(
        name=f"{path.stem}.pt2",
        nbytes=len(data),
        digest=digest_bytes(data),
        inputs=list(sizes(example)),
        batch=dynamic_shapes == BATCH,
        mode=mode_of(model),
        modal=modal,
        torch=str(torch.__version__),
    )
    final = path.with_name(graph.name)
    waiting = path.with_name(f"{TEMPORARY}{path.stem[:40]}-{secrets.token_hex(6)}.pt2")
    write_file(waiting, [data], nbytes=len(data), durable=durable)
    try:
        facts = msgspec.structs.replace(contents.facts, graph=graph)
        yield replace(contents, facts=facts, notes=(*contents.notes, *_notes(graph, contents)))
        _put(waiting, final, durable)
    finally:
        waiting.unlink(missing_ok=True)


def _put(waiting: Path, final: Path, durable: bool) -> None:
    try:
        waiting.replace(final)
        if durable:
            sync_folder(final.parent)
    except OSError as error:
        raise save_error(error, final) from error


def _check_names(program: ExportedProgram, contents: Contents) -> None:
    """The program and the file must call every tensor by the same name, or they cannot be put together again."""
    names = {*contents.facts.parameters, *contents.facts.buffers}
    if odd := sorted(names ^ program.state_dict.keys()):
        raise SaveError(
            f"the graph and the state dict name tensors differently: {shorten(odd, 3)}; nothing was written",
            hint="wrappers inside of the model (DataParallel, compile) and hooks that rename its state are in the way",
        )
    custom = [name for name, value in program.constants.items() if not isinstance(value, torch.Tensor)]
    if custom:
        raise SaveError(
            f"the graph needs objects that are no tensors: {shorten(custom, 3)}; nothing was written",
            hint="save it without example_inputs",
        )


def _check_plain_inputs(example: Example) -> None:
    """What the example has besides tensors is in the file of the graph, and must be plain."""
    odd = {type(leaf).__name__ for leaf in example.leaves if not isinstance(leaf, _PLAIN)}
    if odd:
        raise SaveError(
            f"example_inputs has objects of other kinds: {shorten(sorted(odd), 3)}; nothing was written",
            hint="give tensors, numbers, strings, and lists, tuples and dicts of them",
        )


def _check_readable(data: bytes) -> None:
    """What torch has written it does not always read again."""
    try:
        _opened(data).module()
    except Exception as error:
        raise SaveError(
            f"torch cannot make the model of its own graph again: {reason(error)}; nothing was written",
            hint="save it without example_inputs; a module whose name is a word of Python is in the way, for example",
        ) from error


def _opened(data: bytes) -> ExportedProgram:
    with undisturbed():
        return torch.export.load(io.BytesIO(data))


def _notes(graph: Graph, contents: Contents) -> Iterator[str]:
    what = "any batch" if graph.batch else "the sizes of dynamic_shapes, or of example_inputs alone"
    yield f"the graph is in {graph.name} ({human_bytes(graph.nbytes)}), exported in {graph.mode} mode for {what}"
    if graph.modal:
        yield f"what stays in the graph as it was exported, in {graph.mode} mode: {', '.join(graph.modal)}"
    if contents.facts.tree is not msgspec.UNSET:
        yield "the extra state of the modules is in the file, and a model that is loaded as a graph has none"


def load_graph(
    path: PathLike | Source, *, device: torch.device | str | None = None, limits: Limits | None = None
) -> nn.Module:
    """The model that a file and the graph beside it make, without the model's class.

    torch reads the graph, and evaluates text from it as Python: call it only for files whose writer you trust. Before
    that the graph must have the size and the digest that the file of the weights names.

    Args:
        path: the file of the weights, which `tk.save` wrote with `example_inputs`.
        device: where the model goes; the CPU if None.
        limits: how much the files may cost.

    Returns:
        A module with the names, values, ties and requires_grad flags of the file. Its modes stay as they were
        exported, which a GraphWarning says where they matter.

    Raises:
        RebuildError: there is no graph, or another than that of these weights, or torch cannot read it.
        UnsafeCheckpointError: the graph carries more than a program.
        OpenError: the file cannot be read.
    """
    source = as_source(path)
    limits = limits or Limits()
    ckpt = open_checkpoint(source, limits=limits)
    graph = getattr(ckpt.facts, "graph", None)
    if graph is None:
        raise RebuildError(
            f"{ckpt.file} was saved without a graph",
            hint="tk.save(model, path, example_inputs=...) writes one; else give the class",
        )
    data = _beside(source, graph)
    _check_plain(data, graph, limits)
    program = _read(data, graph, device)
    _give(program, load(source, device=device, limits=limits), ckpt)
    return _as_model(program, ckpt, graph)


def _beside(source: Source, graph: Graph) -> bytes:
    """The bytes of the graph: under the name that the file says, or under the file's own where both were renamed."""
    own = f"{Path(source.name).stem}.pt2"
    if not (graph.name.endswith(".pt2") and graph.name.isprintable()):
        raise UnsafeCheckpointError(
            f"names {graph.name[:100]!r} as its graph, which is no .pt2 file", file=source.name, hint="do not use it"
        )
    found, other = "", ""
    for name in dict.fromkeys((graph.name, own)):
        try:
            beside = source.sibling(name)
        except CheckpointNotFoundError:
            continue
        if beside.size == graph.nbytes:
            data = read_all(beside)
            found = digest_bytes(data)
            if found == graph.digest:
                return data
        other = name
    if not other:
        raise RebuildError(
            f"{source.name} was saved with a graph, {graph.name}, which is not beside it",
            hint="move both files together, under one name; the weights alone go into a model of the class",
        )
    raise RebuildError(
        f"{other} is not the graph that was saved with {source.name}: it has another "
        f"{'digest' if found else 'size'} and was not read",
        hint="it is of another save, or was changed: save the model again, or copy both files again",
    )


def _check_plain(data: bytes, graph: Graph, limits: Limits) -> None:
    """Hold what torch would read against what torchkeep writes: torch runs native code, and unpickles, when it reads.

    Raises:
        UnsafeCheckpointError: there is more in it.
        RebuildError: it is no program.
    """
    try:
        trouble = hazards(Held(data, graph.name), limits)
    except OpenError as error:
        raise RebuildError(f"{graph.name} cannot be read: {error.brief}", hint="save the model again") from error
    if trouble:
        raise UnsafeCheckpointError(
            f"has {trouble[0]}, and a graph that torchkeep writes has none", file=graph.name, hint="do not use it"
        )


def _read(data: bytes, graph: Graph, device: torch.device | str | None) -> ExportedProgram:
    try:
        program = _opened(data)
        if device is not None and torch.device(device).type != "cpu":
            program = move_to_device_pass(program, device)
    except Exception as error:
        raise RebuildError(
            f"torch {torch.__version__} cannot load {graph.name}: {reason(error)}",
            hint=f"torch {graph.torch} wrote it: load it with that version, or give the class",
        ) from error
    return program


def _give(program: ExportedProgram, state: Mapping[str, torch.Tensor], ckpt: Checkpoint) -> None:
    """Put the weights in the place of their stand-ins."""
    own = {name: value for name, value in state.items() if ckpt.tensors[name].kind in {"parameter", "buffer"}}
    wanted = program.state_dict
    odd = [f"{name!r}, which is on one side only" for name in sorted(own.keys() ^ wanted.keys())]
    odd += [
        f"{name!r}, which is a parameter on one side only"
        for name, value in own.items()
        if name in wanted and isinstance(value, nn.Parameter) is not isinstance(wanted[name], nn.Parameter)
    ]
    odd += [
        f"{name!r}, {spec_of(value)} in the file and {spec_of(wanted[name])} in the graph"
        for name, value in own.items()
        if name in wanted and spec_of(value) != spec_of(wanted[name])
    ]
    if odd:
        raise RebuildError(
            f"{ckpt.file} and its graph do not fit: {shorten(odd, 3)}", hint="save the model again with its graph"
        )
    wanted.update(own)


def _as_model(program: ExportedProgram, ckpt: Checkpoint, graph: Graph) -> GraphModel:
    module = ckpt.facts.module
    flags = {entry.path: entry.training for entry in module.modules} if module is not None else {}
    with undisturbed():
        made = GraphModel(program.module(), graph.name, graph.mode, flags)
    if graph.modal:
        warnings.warn(
            f"{graph.name} was exported in {graph.mode} mode, and stays so whatever train() and eval() say: "
            f"{', '.join(graph.modal)}",
            GraphWarning,
            stacklevel=5,
        )
    return made
