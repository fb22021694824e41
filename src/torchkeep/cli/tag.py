"""`torchkeep tag`: give a snapshot a name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer


def tag(
    run: Annotated[Path, typer.Argument(help="The folder of a run.")],
    name: Annotated[str, typer.Argument(help="Letters, digits, - _ and a dot inside; a name that exists moves.")],
    snapshot: Annotated[int | None, typer.Argument(help="Its sequence number; the newest if not given.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the name away; the snapshot stays.")] = False,
    as_json: AsJson = False,
) -> None:
    """Give a snapshot a name, so that prune keeps it. Works while another process trains."""
    if delete and snapshot is not None:
        raise typer.BadParameter("a name is taken away from whatever it points to", param_hint="SNAPSHOT")
    the_run = tk.Run(run)
    try:
        if delete:
            the_run.untag(name)
        else:
            the_run.tag(name, snapshot)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    answer({"tags": the_run.tags}, True) if as_json else print(_text(the_run.tags))


def _text(tags: dict[str, int]) -> str:
    return "\n".join(f"{name}: snapshot {sequence}" for name, sequence in sorted(tags.items())) or "no tags"
