"""`torchkeep cast`: floating-point tensors in another dtype."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Source, write
from .output import AsJson


def cast(
    source: Source,
    dtype: Annotated[str, typer.Argument(help="float32, float16, bfloat16 or float64, or short: bf16, f16.")],
    output: Output,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Cast these alone, e.g. 'backbone.*'. Repeatable.")
    ] = None,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights with floating-point tensors in another dtype."""
    write(tk.edit.cast(source, dtype, only=only), output, max_shard_size, as_json)
