"""`torchkeep drop`: a checkpoint without some tensors as a new file."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Source, write
from .output import AsJson


def drop(
    source: Source,
    selectors: Annotated[list[str], typer.Argument(help="What to leave out: 'fc', 'head.*', 'last 2', 're:^aux'.")],
    output: Output,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights without the chosen tensors."""
    write(tk.edit.drop(source, selectors), output, max_shard_size, as_json)
