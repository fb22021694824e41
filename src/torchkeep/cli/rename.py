"""`torchkeep rename`: the same tensors under other names."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Source, pairs, write
from .output import AsJson


def rename(
    source: Source,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="OLD=NEW...",
            help="A tensor or module and its new name; =NEW puts NEW in front of all names, OLD= takes OLD off; "
            r"re:EXPRESSION=NEW replaces what it finds, with \1 and \g<name> for its groups.",
        ),
    ],
    output: Output,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights under other names."""
    write(tk.edit.rename(source, pairs(names)), output, max_shard_size, as_json)
