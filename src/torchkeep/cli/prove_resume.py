"""`torchkeep prove-resume`: does a training script go on exactly where it was killed?"""

from __future__ import annotations

from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer


def prove_resume(
    command: Annotated[list[str], typer.Argument(help="The command that trains, after --: -- python train.py")],
    kills: Annotated[int, typer.Option("--kills", min=1, help="How often it is killed.")] = 3,
    seed: Annotated[int, typer.Option("--seed", help="Of the choice of moments.")] = 0,
    timeout: Annotated[float | None, typer.Option("--timeout", help="Seconds that one process may take.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a training script whole, and again killed and resumed, and compare both bit for bit.

    The script must use tk.Run; its runs are put into a temporary folder. Exits 0 if the resumed run is the same, 76 if
    it is another: the first thing that differs is printed with its likely cause.
    """
    report = tk.prove_resume(command, kills=kills, seed=seed, timeout=timeout)
    answer(report, as_json)
    if not report.ok:
        raise typer.Exit(76)
