"""`torchkeep about`: the facts of a model, and a new file with more of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import torchkeep as tk

from .output import AsJson, answer

_VALUES = ("classes", "preprocessing")


def about(
    file: Annotated[str, typer.Argument(help="A checkpoint in any format torchkeep reads: file, folder or address.")],
    facts: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FACT=VALUE",
            help="licence, source, training_data or text and what it says; classes or preprocessing and it as JSON. "
            "An empty value takes the fact out.",
        ),
    ] = None,
    parents: Annotated[
        list[str] | None, typer.Option("--parent", metavar="FILE", help="A file that the model was made of.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The new file, which has these facts: .safetensors.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show licence, source, classes, preprocessing and lineage of a model, or write a new file that says them."""
    given: dict[str, Any] = dict(map(_fact, facts or []))
    if parents:
        given["parents"] = parents
    if given and output is None:
        raise typer.BadParameter("facts are written into a new file: name it with -o")
    if output is not None and not given:
        raise typer.BadParameter("-o writes a file with new facts: give them with --set and --parent")
    answer(tk.about(file) if output is None else tk.save(tk.open(file), output, about=given), as_json)


def _fact(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not of the form FACT=VALUE")
    if name not in _VALUES:
        return name, value
    try:
        return name, json.loads(value or ("[]" if name == "classes" else "{}"))
    except ValueError as error:
        example = '["cat", "dog"]' if name == "classes" else '{"size": 224}'
        raise typer.BadParameter(f"{value!r} is no JSON; {name} is given like {name}={example}") from error
