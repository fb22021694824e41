"""Rescuing: what a pickled model holds, apart from its code: weights, the tree, source texts, classes to complete."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .converting import convert
from .core.blueprint import Blueprint, Part
from .core.checkpoint import Checkpoint
from .core.rescue_report import RescueReport
from .core.tensors import LazyTensor
from .errors import SaveError
from .pointing import checkpoint_of
from .rebuilding.classes import Classes, torch_layer
from .rebuilding.hooks import hooks_of
from .rebuilding.load import SCRIPTS, left_out
from .rebuilding.making import Maker
from .rebuilding.reading import blueprint_of
from .rebuilding.spelling import Spelled, brief, spelled
from .writing import Progress

_LEAD = "source:"
_UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def rescue(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
) -> RescueReport:
    """Write what a pickled model holds, so that it can be used without its code: `tk.rescue("old.pth", "out")`.

    In the folder are `weights.safetensors`; `modules.txt`, the modules as text; `sources/`, the source texts of classes
    that files of torch 1.5 and before carry; and `classes.py`, a Python skeleton of the classes that are not torch's,
    with constructors, for a person to write the forwards of. Nothing of the file is imported, called or run.

    Args:
        source: a file with a whole model in it, or an opened Checkpoint; TorchScript is taken apart as well, and gives
            no classes.
        target: the folder; it must be empty or not be there.
        progress: called with (bytes done, bytes in all) while the weights are written.

    Raises:
        OpenError: the file cannot be read.
        RebuildError: it holds no model.
        SaveError: the folder cannot be written, or has something in it. Nothing half-written is left.
    """
    folder = Path(target)
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise SaveError(f"{folder} is there already, and not an empty folder", hint="rescue into a new one")
    ckpt = checkpoint_of(source).model
    blueprint = blueprint_of(ckpt)
    sources = _sources(ckpt, blueprint)
    made = None if ckpt.format in SCRIPTS else _spelled(blueprint, sources)
    unfinished = folder.absolute().with_name(f".{folder.absolute().name[:80]}.{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        if len(ckpt):
            convert(_weights(ckpt), unfinished / "weights.safetensors", model_only=True, progress=progress)
        _write(unfinished / "modules.txt", "\n".join(_tree(blueprint)) + "\n")
        for name, text in sources.values():
            _write(unfinished / name, text)
        if made is not None and made.classes:
            _write(unfinished / "classes.py", made.text)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        raise SaveError(f"{folder} cannot be written: {error}", hint="rescue into a folder that can be") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return _report(folder, ckpt, blueprint, made)


def _weights(ckpt: Checkpoint) -> Checkpoint:
    """The model without the source texts, which get files of their own."""
    return replace(ckpt, metadata={key: text for key, text in ckpt.metadata.items() if not key.startswith(_LEAD)})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _report(folder: Path, ckpt: Checkpoint, blueprint: Blueprint, made: Spelled | None) -> RescueReport:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return RescueReport(
        source=ckpt.file,
        target=str(folder),
        modules=len(blueprint.parts),
        tensors=len(ckpt),
        nbytes=ckpt.nbytes,
        classes={} if made is None else made.classes,
        files=tuple(files),
        notes=left_out(blueprint),
        steps=tuple(_steps(folder, ckpt, made)),
    )


def _steps(folder: Path, ckpt: Checkpoint, made: Spelled | None) -> Iterator[str]:
    weights = str(folder / "weights.safetensors")
    if made is None:
        yield f"make the model, and put the weights into it: tk.load_into(model, {weights!r})"
    elif not made.classes:
        yield f"the model is of torch.nn alone: tk.load_model({ckpt.file!r})"
    else:
        given = ", ".join(f"{name!r}: classes.{own}" for name, own in made.classes.items())
        yield f"write the forward of {', '.join(made.classes.values())} in {folder / 'classes.py'}"
        yield f"import sys; sys.path.append({str(folder)!r}); import classes"
        yield f"tk.load_model({ckpt.file!r}, classes={{{given}}})"
        if len(ckpt):
            yield f"or without the old file: model = classes.model(); tk.load_into(model, {weights!r})"


# Classes


def _spelled(blueprint: Blueprint, sources: Mapping[str, tuple[str, str]]) -> Spelled:
    """The missing classes; each says where the file's source text of it is written."""
    maker = Maker(blueprint, Classes(), _without_values())
    maker.model()
    modules = {name: name.rpartition(".")[0] for name in blueprint.class_names}
    origins = {
        name: f"its source text is in {sources[module][0]}" for name, module in modules.items() if module in sources
    }
    return spelled(blueprint, maker.module, origins)


def _without_values() -> Any:
    """What makes a tensor without values, one for each of the file."""
    made: dict[tuple[object, ...], torch.Tensor] = {}

    def tensor(lazy: LazyTensor, name: str) -> torch.Tensor:
        key = (*lazy.identity, lazy.kind)
        if key not in made:
            dtype = torch.float32 if lazy.parts else lazy.spec.dtype
            empty = torch.empty(lazy.spec.shape, dtype=dtype, device="meta")
            made[key] = nn.Parameter(empty, lazy.requires_grad) if lazy.kind == "parameter" else empty
        return made[key]

    return tensor


# Source texts


def _sources(ckpt: Checkpoint, blueprint: Blueprint) -> dict[str, tuple[str, str]]:
    """Module -> the file that its source text goes to, and the text; torch's own classes are left out."""
    classes = set(blueprint.class_names)
    by_module: dict[str, list[str]] = {}
    for key, text in ckpt.metadata.items():
        name = key.removeprefix(_LEAD)
        if key.startswith(_LEAD) and torch_layer(name) is None and text:
            module = name.rpartition(".")[0] if name in classes or ckpt.format in SCRIPTS else name
            by_module.setdefault(module, []).append(text)
    found: dict[str, tuple[str, str]] = {}
    used: set[str] = set()
    for module, texts in by_module.items():
        name, number = _file_of(module), 2
        while name.lower() in used:
            name, number = f"{_file_of(module).removesuffix('.py')}-{number}.py", number + 1
        used.add(name.lower())
        found[module] = (name, "\n\n".join(text.strip("\n") for text in texts) + "\n")
    return found


def _file_of(module: str) -> str:
    """Where the source of a module goes: one flat name, whatever the module is called."""
    name = _UNFIT.sub("_", module).strip(".")[:100] or "unnamed"
    return f"sources/{'_' + name if _RESERVED.fullmatch(name) else name}.py"


# The tree as text


def _tree(blueprint: Blueprint) -> Iterator[str]:
    """One paragraph a module."""
    yield _line(f"{blueprint.file}: {len(blueprint.parts)} modules")
    for part in blueprint.parts:
        mode = {True: "training", False: "eval", None: "mode unknown"}[part.training]
        yield ""
        yield _line(f"{part.path or '(the model)'}: {part.class_name}, {mode}")
        for line in _lines(part, blueprint):
            yield f"    {_line(line)}"


def _lines(part: Part, blueprint: Blueprint) -> Iterator[str]:
    for key, value in part.attributes.items():
        yield f"{key} = {brief(value)}"
    for kind, held in (("parameter", part.parameters), ("buffer", part.buffers)):
        for key, tensor in held.items():
            more = "" if tensor is None or kind == "buffer" or tensor.requires_grad else ", frozen"
            more += ", not in the state dict" if key in part.transient else ""
            yield f"{kind} {key}: {'none' if tensor is None else tensor.spec}{more}"
    for key, at in part.children.items():
        yield f"child {key}: {'none' if at is None else blueprint.parts[at].class_name}"
    hooks = hooks_of(part)
    for known, _ in hooks.known:
        yield f"hook of torch.nn: {known.cls.__name__}"
    for name, what in hooks.left:
        yield f"hook, left out: {what} ({name})"


def _line(text: str) -> str:
    """One line of a file, whatever the names in it are."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:2000])
