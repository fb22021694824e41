"""`torchkeep gc`: free what no snapshot needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer


def gc(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    grace: Annotated[str, typer.Option(help="Leave files that are younger: 90s, 30min, 1h, 2d.")] = "1h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove the packs of a run that no snapshot needs, and what a crash left unfinished. Works while it trains."""
    try:
        report = tk.Run(run).gc(grace=grace, dry_run=dry_run)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--grace") from error
    answer(report, as_json)
