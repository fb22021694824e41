"""`torchkeep load`: would these weights fit this model?"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import torchkeep as tk

from .output import AsJson, answer


def load(
    file: Annotated[str, typer.Argument(help="A checkpoint in any format torchkeep reads: file, folder or address.")],
    into: Annotated[
        str, typer.Option("--into", help="What makes the model: package.module:factory, or file.py:factory.")
    ],
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="Names that may stay unloaded, e.g. 'fc.*'. Repeatable.")
    ] = None,
    strip: Annotated[
        list[str] | None, typer.Option("--strip", help="A prefix to take off the file's names. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the loaded model to this .safetensors file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan; nothing is loaded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a checkpoint into your model and show what was loaded and what was not.

    The factory is your own code and is run; nothing from the checkpoint is. Exits 21 if something does not fit that
    --allow does not name.
    """
    if out is not None and (dry_run or out.suffix != ".safetensors"):
        why = "nothing is loaded with --dry-run" if dry_run else f"{out} does not end in .safetensors"
        raise typer.BadParameter(why, param_hint="--out")
    try:
        model = _factory(into)()
    except (typer.BadParameter, tk.errors.TorchkeepError):
        raise
    except Exception as error:
        raise tk.errors.LoadError(
            f"{into} failed: {type(error).__name__}: {error}",
            hint="it is called without arguments; call it in Python to see where it fails",
        ) from error
    if not hasattr(model, "state_dict"):
        raise typer.BadParameter(f"{into!r} made a {type(model).__name__}, which is no module", param_hint="--into")
    rules: Any = [*map(tk.strip, strip), "exact", "prefixes"] if strip else None
    if dry_run:
        report = tk.plan_load(model, file, rules=rules)
        report.check(allow)
        answer(report, as_json)
        return
    answer(tk.load_into(model, file, allow=allow, rules=rules), as_json)
    if out is None and not as_json:
        print("the loaded model was not kept: give --out FILE.safetensors to save it")
    if out is not None:
        saved = tk.save(model, out)
        if not as_json:
            print(saved)


def _factory(spec: str) -> Any:
    place, _, name = spec.partition(":")
    if not place or not name:
        raise typer.BadParameter(
            f"{spec!r} is not of the form package.module:factory or file.py:factory", param_hint="--into"
        )
    try:
        module = _module(place)
    except (ImportError, OSError) as error:
        raise typer.BadParameter(f"{place!r} cannot be imported: {error}", param_hint="--into") from error
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise typer.BadParameter(f"{place!r} has nothing callable named {name!r}", param_hint="--into")
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"into_{Path(place).stem}", place)  # never in place of another
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
