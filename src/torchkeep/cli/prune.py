"""`torchkeep prune`: which snapshots stay?"""

from __future__ import annotations

import functools
import operator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import torchkeep as tk

from .output import AsJson, answer


class Mode(StrEnum):
    """Which value of a metric is best."""

    MIN = "min"
    MAX = "max"


def prune(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    keep_last: Annotated[int | None, typer.Option(min=1, help="Keep the newest N.")] = None,
    keep_every: Annotated[int | None, typer.Option(min=1, help="Keep those whose step is a multiple of N.")] = None,
    keep_best: Annotated[int | None, typer.Option(min=1, help="Keep the best N by --metric.")] = None,
    metric: Annotated[str | None, typer.Option(help="The metric of --keep-best, e.g. val_loss.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="Is the lowest or the highest best? Else as the name says.")] = None,
    max_bytes: Annotated[
        str | None, typer.Option(help="Drop more until the packs fit: 20GB, 500MiB. Tagged ones and the newest stay.")
    ] = None,
    keep_tagged: Annotated[
        bool, typer.Option("--keep-tagged/--no-keep-tagged", help="Keep the snapshots that have a tag.")
    ] = True,
    damaged: Annotated[bool, typer.Option("--damaged", help="Drop damaged snapshots and tags too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only say what would go.")] = False,
    collect: Annotated[bool, typer.Option("--gc", help="Then free the bytes, as `torchkeep gc` does.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop the snapshots of a run that no rule keeps. At least one rule must be given; what any of them keeps stays.

    Works while another process trains. The newest intact snapshot always stays.
    """
    rules: list[Any] = []
    try:
        rules += [] if keep_last is None else [tk.keep_last(keep_last)]
        rules += [] if keep_every is None else [tk.keep_every(keep_every)]
        rules += _best(keep_best, metric, mode)
        if not rules:
            raise ValueError("say what stays: --keep-last, --keep-every or --keep-best")
        policy = functools.reduce(operator.or_, [*rules, *([tk.keep_tagged()] if keep_tagged else [])])
        policy = policy if max_bytes is None else policy.at_most(max_bytes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    the_run = tk.Run(run)
    report = the_run.prune(policy, dry_run=dry_run, damaged=damaged)
    freed = the_run.gc(dry_run=dry_run) if collect else None
    if as_json:
        answer({"prune": tk.to_json(report), "gc": None if freed is None else tk.to_json(freed)}, as_json)
        return
    answer(report, as_json)
    if freed is not None:
        answer(freed, as_json)


def _best(count: int | None, metric: str | None, mode: Mode | None) -> list[Any]:
    if (count is None) != (metric is None):
        raise ValueError("--keep-best and --metric go together")
    if count is None or metric is None:
        return []
    return [tk.keep_best(count, metric, None if mode is None else mode.value)]
