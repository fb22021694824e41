"""`torchkeep salvage`: what is still intact in a broken file?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress

_LOST = 75


def salvage(
    file: Annotated[Path, typer.Argument(help="A truncated or damaged checkpoint.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The new file; FILE.salvaged.safetensors if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is intact and what is lost.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write every intact tensor of a broken file into a new one, and list what is lost.

    Exits 0 if nothing was lost, 75 if something was.
    """
    target = None if dry_run else output or file.with_name(f"{file.stem}.salvaged.safetensors")
    with progress("salvaging") as step:
        report = tk.salvage(file, target, progress=step)
    answer(report, as_json)
    if not report.ok:
        raise typer.Exit(_LOST)
