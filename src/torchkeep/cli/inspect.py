"""`torchkeep inspect`: what is in a file."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer


def inspect(
    file: Annotated[str, typer.Argument(help="A checkpoint in any format torchkeep reads: file, folder or address.")],
    model: Annotated[
        bool, typer.Option("--model", help="Only the model's weights inside a training checkpoint.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a checkpoint: format, tensors, devices, producer, findings. Runs no code from it."""
    ckpt = tk.open(file)
    answer(ckpt.model if model else ckpt, as_json)
