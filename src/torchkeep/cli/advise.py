"""`torchkeep advise`: from a pretrained model and data to a plan of what to load, replace, freeze and train."""

from __future__ import annotations

import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .finding import made_by
from .output import AsJson, answer

_ENDINGS = {"--html": (".html", ".htm"), "--plot": (".png", ".svg", ".pdf", ".html", ".htm")}


def advise(
    model: Annotated[
        str, typer.Option("--model", help="What makes the model: package.module:factory, or file.py:factory.")
    ],
    data: Annotated[str, typer.Option("--data", help="Folder of images, x.npz, sklearn:digits, or module:dataset.")],
    weights: Annotated[str | None, typer.Option("--weights", help="Its pretrained weights, loaded whole.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Measure the ways of training: minutes.")] = False,
    folder: Annotated[Path | None, typer.Option("--folder", help="Keep the trials here; a sweep goes on.")] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of a candidate, at most.")] = 5,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of each training.")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Base learning rate: that of the head.")] = None,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Pixels that images are made wide and high.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the plan here (.yaml).")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write one page with everything here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write the figure here (.png, .svg, .pdf).")] = None,
    as_json: AsJson = False,
) -> None:
    """Say how to bring a pretrained model to new data: what to load, replace, freeze and train, at which rates.

    Without --sweep it is the textbook's start, by size and similarity. The factory and the module of the data are your
    own code and are run; nothing from the weights is.
    """
    if plot is not None and not sweep:
        raise typer.BadParameter("there is nothing measured to draw: add --sweep", param_hint="--plot")
    if folder is not None and not sweep:
        raise typer.BadParameter("trials are kept there: add --sweep", param_hint="--folder")
    if lr is not None and not lr > 0:
        raise typer.BadParameter(f"{lr} is not above 0", param_hint="--lr")
    _check_targets({"--plan": plan, "--html": html, "--plot": plot})
    sys.path.insert(0, str(Path.cwd()))
    with redirect_stdout(sys.stderr):  # what the user's own code prints is no part of the answer
        advice = tk.advise(
            lambda: made_by(model, "--model"), data, weights=weights, sweep=sweep, folder=folder, seeds=seeds,
            epochs=epochs, lr=lr, size=size, progress=_told if sys.stderr.isatty() else None,
        )  # fmt: skip
    if plan is not None:
        tk.write_plan(advice.plan, plan)
    for target in (html, plot):
        if target is not None:
            tk.plot(advice, target)
    if as_json:
        answer(advice, as_json)
        return
    for table in advice.tables():
        tk.show(table)
        print()
    if not sweep:
        print(f"to measure:\n  {shlex.join(['torchkeep', *sys.argv[1:], '--sweep'])}\n")
    print("to go on:", *_lines(advice, model, plan), sep="\n  ")


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _check_targets(targets: dict[str, Path | None]) -> None:
    """Refuse what could not be written after minutes of measuring."""
    for option, target in targets.items():
        if target is None:
            continue
        endings = _ENDINGS.get(option, (target.suffix,))
        if target.suffix.lower() not in endings:
            raise typer.BadParameter(f"{target} ends in none of {', '.join(endings)}", param_hint=option)
        if not target.absolute().parent.is_dir():
            raise tk.errors.SaveError(
                f"{target} cannot be written: there is no folder {target.parent}", hint="make the folder first"
            )


def _lines(advice: tk.Advice, model: str, plan: Path | None) -> list[str]:
    """Python that trains by the plan."""
    place, _, name = model.partition(":")
    module = Path(place).stem if place.endswith(".py") else place
    found = Path(place).absolute().parent if place.endswith(".py") else Path.cwd()
    finds = [] if found == Path.cwd() else [f"import sys; sys.path.insert(0, {str(found)!r})"]
    reads = f"tk.read_plan({str(plan)!r})" if plan is not None else "tk.read_plan('plan.yaml')  # --plan writes it"
    return ["import torch, torchkeep as tk", *finds, f"import {module}", *advice.go_on(f"{module}.{name}()", reads)]
