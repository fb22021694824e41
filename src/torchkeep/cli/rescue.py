"""`torchkeep rescue`: what does a pickled model hold, and how do I go on without its code?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer, progress


def rescue(
    file: Annotated[Path, typer.Argument(help="A file with a whole model in it: a pickle, or what tk.save wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The new folder; FILE.rescued if not given.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say which classes it takes, and which are missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights, its modules as text, the source texts in the file, and Python classes to complete."""
    if plan:
        answer(tk.plan_model(file), as_json)
        return
    with progress("rescuing") as step:
        report = tk.rescue(file, output or file.with_name(f"{file.stem}.rescued"), progress=step)
    answer(report, as_json)
