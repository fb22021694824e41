"""`torchkeep average`: the average of several checkpoints, or of a run's snapshots."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Output, ShardSize, Sources, write
from .output import AsJson


def average(
    sources: Sources,
    output: Output,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="How much a checkpoint counts, one for each. Repeatable.")
    ] = None,
    decay: Annotated[
        float | None, typer.Option("--decay", help="Each counts this much of what the one after it does, e.g. 0.9.")
    ] = None,
    last: Annotated[int | None, typer.Option("--last", help="Of a run, that many of the newest snapshots.")] = None,
    step: Annotated[
        list[int] | None, typer.Option("--step", help="Of a run, the snapshots of this step. Repeatable.")
    ] = None,
    sequence: Annotated[
        list[int] | None, typer.Option("--sequence", help="Of a run, the snapshot with this number. Repeatable.")
    ] = None,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write the average of the weights of several models, oldest first, or of the snapshots of one run."""
    made = tk.edit.average(*sources, weights=weight, decay=decay, last=last, steps=step, sequences=sequence)
    write(made, output, max_shard_size, as_json)
