"""`torchkeep doctor`: what the curves of a run say, and what to try."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

import torchkeep as tk

from .output import AsJson, answer

FAILED = 78


def doctor(
    path: Annotated[str, typer.Argument(help="A run, or a CSV, JSON lines, TensorBoard or trainer_state.json file.")],
    classes: Annotated[int | None, typer.Option(help="How many classes there are, for a cross-entropy.")] = None,
    n_val: Annotated[int | None, typer.Option(help="Examples in the validation set.")] = None,
    n_train: Annotated[int | None, typer.Option(help="Examples in the training set.")] = None,
    target_variance: Annotated[float | None, typer.Option(help="Of the targets, for a mean squared error.")] = None,
    parameters: Annotated[int | None, typer.Option(help="Elements of the model.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Its name, e.g. AdamW or sgd.")] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate, before any schedule.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.")] = None,
    batch: Annotated[int | None, typer.Option(help="Training examples a step.")] = None,
    metric: Annotated[str | None, typer.Option(help="The metric that counts, e.g. accuracy.")] = None,
    mode: Annotated[str, typer.Option(help="min or max: which is best, if the metric's name does not say.")] = "",
    name: Annotated[
        list[str] | None, typer.Option(help="ROLE=NAME for what is called otherwise, again for more.")
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write one page with everything here.")] = None,
    plot: Annotated[str | None, typer.Option(help="Write the figure here (.png, .svg, .pdf).")] = None,
    fail_on: Annotated[list[str] | None, typer.Option(help="Exit with 78 on this verdict; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read learning curves: is it underfit, overfit, over-confident, unstable or healthy, and what to do next.

    A CSV with the columns epoch, train_loss, val_loss and perhaps val_accuracy is enough.
    """
    verdicts = [one for given in fail_on or () for one in given.split(",")]
    for verdict in verdicts:
        if verdict not in tk.VERDICTS:
            raise typer.BadParameter(f"{verdict!r} is none of {', '.join(tk.VERDICTS)}", param_hint="--fail-on")
    counts = {
        "--classes": classes,
        "--n-val": n_val,
        "--n-train": n_train,
        "--parameters": parameters,
        "--batch": batch,
    }
    for option, value in {**counts, "--rate": rate}.items():
        if value is not None and value <= 0:
            raise typer.BadParameter(f"{value} is not above 0", param_hint=option)
    if momentum is not None and not 0 <= momentum < 1:
        raise typer.BadParameter(f"{momentum} is not from 0 to below 1", param_hint="--momentum")
    if mode not in ("", "min", "max"):
        raise typer.BadParameter(f"{mode!r} is neither min nor max", param_hint="--mode")
    names = dict(_pair(one) for one in name or ())
    history = tk.read_history(path, names=names or None)
    source = path if tk.is_run(path) else history
    known: dict[str, Any] = {
        "classes": classes, "n_val": n_val, "n_train": n_train, "target_variance": target_variance,
        "parameters": parameters, "optimizer": optimizer, "rate": rate, "momentum": momentum, "batch": batch,
        "metric": metric, "mode": mode, "names": names or None,
    }  # fmt: skip
    diagnosis = tk.diagnose(source, **known)
    for target in (html, plot):
        if target is not None:
            tk.plot(source, target, diagnosis=diagnosis, **known)
    drawable = not as_json and (sys.stdout.encoding or "").lower().startswith("utf")
    if drawable and (lines := tk.sketch(source, **known)):
        print(lines)
    answer(diagnosis, as_json)
    if diagnosis.verdict in verdicts:
        raise typer.Exit(FAILED)


def _pair(text: str) -> tuple[str, str]:
    role, found, name = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{text!r} is not ROLE=NAME", param_hint="--name")
    return role, name
