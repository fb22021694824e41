"""`torchkeep merge`: several checkpoints as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Sources, write
from .output import AsJson


def merge(
    sources: Sources,
    output: Output,
    prefer: Annotated[
        str | None, typer.Option("--prefer", help="Whose tensor counts where a name has several: first or last.")
    ] = None,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write the weights of several models into one file; PREFIX=FILE puts PREFIX in front of the names of a file.

    Tensors of one name must be the same bit for bit, unless --prefer says whose counts.
    """
    write(tk.edit.merge(*map(_prefixed, sources), prefer=prefer), output, max_shard_size, as_json)


def _prefixed(text: str) -> str | dict[str, str]:
    """A file of this name, or a prefix and a file."""
    prefix, equals, path = text.partition("=")
    return {prefix: path} if equals and prefix and not Path(text).exists() else text
