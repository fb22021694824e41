"""`torchkeep runs`: the snapshots of a run, or the runs of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer


def runs(
    folder: Annotated[Path, typer.Argument(help="A run, or a folder with runs in it.")],
    as_json: AsJson = False,
) -> None:
    """List the snapshots of a run: step, metrics, tags, what each one wrote, which is best."""
    if not folder.exists():
        raise tk.errors.CheckpointNotFoundError("there is no such folder", file=str(folder), hint="check the path")
    found = [folder] if tk.is_run(folder) else sorted(path for path in _folders(folder) if tk.is_run(path))
    if not found:
        raise tk.errors.LoadError(
            f"{folder} is no run and has none in it", hint="give the folder that tk.Run was given"
        )
    summaries = [tk.Run(path).summary() for path in found]
    if as_json:
        answer({"runs": [tk.to_json(summary) for summary in summaries]}, as_json)
        return
    for summary in summaries:
        answer(summary, as_json)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
