"""Finding what makes a model, in a module of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import typer

import torchkeep as tk


def made_by(spec: str, option: str) -> Any:
    """The model that a factory makes.

    Args:
        spec: `package.module:factory`, found from the current folder too, or `file.py:factory`.
        option: how it was given, for messages.

    Raises:
        LoadError: the factory fails.
    """
    factory = _factory(spec, option)
    try:
        model = factory()
    except (typer.BadParameter, tk.errors.TorchkeepError):
        raise
    except Exception as error:
        raise tk.errors.LoadError(
            f"{spec} failed: {type(error).__name__}: {error}",
            hint="it is called without arguments; call it in Python to see where it fails",
        ) from error
    if not hasattr(model, "state_dict"):
        raise typer.BadParameter(f"{spec!r} made a {type(model).__name__}, which is no module", param_hint=option)
    return model


def _factory(spec: str, option: str) -> Any:
    place, _, name = spec.partition(":")
    if not place or not name:
        raise typer.BadParameter(
            f"{spec!r} is not of the form package.module:factory or file.py:factory", param_hint=option
        )
    try:
        module = _module(place)
    except (ImportError, OSError) as error:
        raise typer.BadParameter(f"{place!r} cannot be imported: {error}", param_hint=option) from error
    except Exception as error:  # whatever the module does
        said = f"{type(error).__name__}: {error}"
        raise typer.BadParameter(f"{place!r} cannot be imported: {said}", param_hint=option) from error
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise typer.BadParameter(f"{place!r} has nothing callable named {name!r}", param_hint=option)
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"given_{Path(place).stem}", place)  # never in place of another
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
