"""`torchkeep verify`: is every byte as it was written?"""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress


def verify(
    path: Annotated[str, typer.Argument(help="A file, a folder of shards, an address, or the folder of a run.")],
    as_json: AsJson = False,
) -> None:
    """Read every byte and compare it with its digest or checksum.

    Exits 0 only if all of it is as it was written, 70 if something is damaged, 71 if there is nothing to check against.
    """
    with progress("verifying") as step:
        report = tk.verify(path, progress=step)
    answer(report, as_json)
    if not report.ok:
        raise typer.Exit(70 if report.damaged else 71)
