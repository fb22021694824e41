"""`torchkeep diff`: what differs between two checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .editing import Source
from .output import AsJson, answer, progress

_DIFFERENT = 77


def diff(
    before: Source,
    after: Source,
    only_changed: Annotated[bool, typer.Option("--only-changed", help="List only what differs.")] = False,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Relative norm up to which a tensor that moved counts as equal.")
    ] = 0.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="All tensors of training checkpoints, not only those of the model.")
    ] = False,
    read_all: Annotated[bool, typer.Option("--read-all", help="Trust no digests: read every tensor.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare weights tensor by tensor: added, removed, reshaped, recast, and how far values moved.

    Exits 0 if they are equal, 77 if they differ.
    """
    with progress("comparing") as step:
        report = tk.diff(before, after, tolerance=tolerance, whole=whole, trust_digests=not read_all, progress=step)
    answer(report.only_changed() if only_changed else report, as_json)
    if not report.equal:
        raise typer.Exit(_DIFFERENT)
