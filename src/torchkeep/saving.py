"""Saving: a model, or anything made of tensors and plain values, into one safetensors file or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .contents import of_checkpoint, of_module, of_object
from .core.checkpoint import EDITED, Checkpoint
from .core.live import unwrapped
from .core.report import SaveReport
from .edit.casting import cast_notes
from .edit.flat import standing
from .engines.files import AUTO, check_engine
from .errors import SaveError
from .exporting.examples import BATCH
from .exporting.graph import graph_beside
from .exporting.running import GraphModel
from .lineage import Given, as_about
from .recording import factory_of
from .sharding import shard_size
from .writing import check_apart, write_contents

_NO_GRAPH = (
    "the model is a graph and its graph is not saved: tk.load_into takes the weights; "
    "example_inputs=... saves both, for tk.load_model"
)


def save(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    durable: bool = True,
    engine: str = AUTO,
    max_shard_size: int | str | None = None,
    about: Given = None,
    example_inputs: Any = None,
    dynamic_shapes: Any = BATCH,
    factory: str | Callable[..., Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> SaveReport:
    """Save a model, or anything made of tensors, numbers, strings, lists and dicts, as one safetensors file.

    >>> tk.save(model, "flowers.safetensors")                                  # doctest: +SKIP
    >>> tk.save({"weights": model.state_dict(), "epoch": 3}, "e3.safetensors")  # doctest: +SKIP

    The file appears in one step: a reader sees the old one or the new one, and a crash leaves the old one. Beside the
    tensors it keeps requires_grad flags, tied names, a BLAKE3 digest of each tensor and, for a module, what its modules
    are and hold. `tk.load` gives an object back as it was, `tk.load_into` fills a model, `tk.load_model` makes one.

    Args:
        obj: an `nn.Module` (wrappers such as DataParallel are looked through), a nested object, or an opened or edited
            Checkpoint, which is read and written block by block.
        path: ends in `.safetensors`; an existing file is replaced.
        durable: wait until the disk has it; without, a crash of the machine may lose the file, a crash of the process
            never does.
        engine: `direct` writes past the page cache and `buffered` through it; `auto` takes direct for large durable
            files. The report says which one wrote: where direct I/O is refused, it is buffered.
        max_shard_size: bytes of a file, as a number or as `5GB` or `500MiB`. Where one file does not hold all, they are
            `flowers-00001-of-00003.safetensors` and so on, and `flowers.safetensors.index.json`, last, which
            `tk.open` takes; they replace nothing.
        about: facts of the model that travel in the file, a `tk.About` or a dict: `licence`, `source`, `training_data`,
            `classes`, `preprocessing`, `text`, and `parents`, the files it was made of. What its tensors were loaded
            from is among the parents anyway. Of a Checkpoint, a dict changes what it names and parents are added.
        example_inputs: what a model is called with, to save its graph too, in `flowers.pt2` beside
            `flowers.safetensors` and without the weights: a tensor, a tuple of positional or a dict of named arguments.
            The graph is the model in the modes it is in.
        dynamic_shapes: which sizes of the inputs are free in the graph: `batch`, the first one of every tensor; None,
            no size at all; or what torch.export takes.
        factory: of a module, the function that makes it, itself or as `package.module:function`. `tk.load_model` calls
            it for whoever trusts its package. It must be importable under its name; it is not called now.
        kwargs: what the factory is called with: plain values.

    Raises:
        UnsavableError: something in `obj` cannot be written without pickle; `.path` says where.
        NoSpaceError: the disk is full.
        SaveError: the file cannot be written there, or the model cannot be exported as a graph.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise SaveError(
            f"{target} has another ending than .safetensors", hint=f"write to {target.with_suffix('.safetensors')}"
        )
    if factory is None and kwargs is not None:
        raise ValueError("kwargs= is what factory= is called with: give both")
    if factory is not None and not isinstance(obj, nn.Module):
        raise SaveError(f"factory= makes a module, and this is a {type(obj).__name__}", hint="leave factory= out")
    check_engine(engine)
    most = None if max_shard_size is None else shard_size(max_shard_size)
    if example_inputs is not None and (most is not None or not isinstance(obj, nn.Module)):
        raise SaveError(
            "a graph is saved beside the one file of a live model",
            hint="leave out max_shard_size" if most is not None else "example_inputs is for an nn.Module alone",
        )
    if isinstance(obj, Checkpoint):
        obj = standing(obj)
        obj = obj if about is None else replace(obj, about=as_about(about, obj.about))
        check_apart(target, obj, obj.file)
        report = write_contents(of_checkpoint(obj), target, most=most, durable=durable, engine=engine)
        said = (finding.message for finding in obj.findings if finding.code == EDITED)
        return replace(report, notes=(*report.notes, *said, *cast_notes(obj.values())))
    if not isinstance(obj, nn.Module):
        return write_contents(of_object(obj, about=about), target, most=most, durable=durable, engine=engine)
    contents = of_module(obj, about, None if factory is None else factory_of(factory, kwargs))
    if example_inputs is not None:
        with graph_beside(obj, contents, target, example_inputs, dynamic_shapes, durable=durable) as contents:
            return write_contents(contents, target, durable=durable, engine=engine)
    if isinstance(unwrapped(obj), GraphModel):
        contents = replace(contents, notes=(*contents.notes, _NO_GRAPH))
    return write_contents(contents, target, most=most, durable=durable, engine=engine)
