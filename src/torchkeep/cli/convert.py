"""`torchkeep convert`: any checkpoint into safetensors, or into a file for torch.load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress


def convert(
    source: Annotated[str, typer.Argument(help="A checkpoint in any format torchkeep reads: file, folder or address.")],
    target: Annotated[
        Path, typer.Argument(help="The new file: .safetensors, or .pth, .pt, .ckpt, .bin for torch.load.")
    ],
    model: Annotated[bool, typer.Option("--model", help="Keep only the model's weights.")] = False,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Cast floating-point tensors, e.g. to bf16, float16 or float32.")
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option("--max-shard-size", help="Write several safetensors files and their index: 5GB, 500MB."),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--for", metavar="VERSION", help="The version of torch that has to open it: torch==1.4, 1.13.1."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint anew: as safetensors with flags, ties and digests, or for torch.load with weights_only."""
    with progress("converting") as step:
        report = tk.convert(
            source,
            target,
            model_only=model,
            dtype=dtype,
            max_shard_size=max_shard_size,
            for_torch=version,
            progress=step,
        )
    answer(report, as_json)
