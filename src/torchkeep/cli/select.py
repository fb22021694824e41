"""`torchkeep select`: some tensors of a checkpoint as a new file."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Source, write
from .output import AsJson


def select(
    source: Source,
    selectors: Annotated[
        list[str], typer.Argument(help="What to keep: 'backbone.*', '* but fc', 'first 3', 're:^enc'.")
    ],
    output: Output,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write the chosen tensors of a model's weights, and nothing else."""
    write(tk.edit.select(source, selectors), output, max_shard_size, as_json)
