"""`torchkeep convert`: any checkpoint into safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress


def convert(
    source: Annotated[Path, typer.Argument(help="A checkpoint in any format torchkeep reads.")],
    target: Annotated[Path, typer.Argument(help="The new file, ending in .safetensors.")],
    model: Annotated[bool, typer.Option("--model", help="Keep only the model's weights.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as safetensors, with flags, ties and digests. The source is only read."""
    with progress("converting") as step:
        report = tk.convert(source, target, model_only=model, progress=step)
    answer(report, as_json)
