"""What the commands that edit checkpoints share: where the result goes, and how it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import answer, progress

Source = Annotated[
    str, typer.Argument(help="A checkpoint in any format torchkeep reads, or a run: DIR, DIR@7, DIR@best or DIR@TAG.")
]
Sources = Annotated[
    list[str], typer.Argument(help="Checkpoints in any format torchkeep reads, or runs: DIR, DIR@7, DIR@best, DIR@TAG.")
]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="The new file: .safetensors, or .pth, .pt, .ckpt, .bin for torch.load.")
]
ShardSize = Annotated[
    str | None, typer.Option("--max-shard-size", help="Write several safetensors files and their index: 5GB, 500MB.")
]


def write(ckpt: tk.Checkpoint, output: Path, max_shard_size: str | None, as_json: bool) -> None:
    """Write an edited checkpoint block by block, and tell what was written."""
    with progress("writing") as step:
        report = tk.convert(ckpt, output, max_shard_size=max_shard_size, progress=step)
    answer(report, as_json)


def pairs(texts: list[str]) -> dict[str, str]:
    """`A=B` as a table; of several `=` in one the last counts."""
    found = {}
    for text in texts:
        left, equals, right = text.rpartition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not of the form A=B")
        found[left] = right
    return found
