"""The story of tuning dropout: train without, judge, try, and go by what comes of it."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .core.curves import Setting
from .core.digests import digest_bytes, digest_tensor
from .core.dropout_report import DropoutReport, DropoutTrial, paired
from .core.live import state_of
from .core.names import Selector, selection_of
from .core.transfer import Candidate, Examples, Recipe, Stage
from .diagnosing import diagnose
from .errors import DataError
from .gathering import check_examples, tried
from .surgery import set_dropout
from .surgery.trial import kept_generators
from .trials.memory import Dict, Journal, Memory
from .trials.training import evaluate, fit, split

_TOO_MUCH = ("overfit", "generalisation-gap", "over-confident")
_LEAST = 0.05
_GAP = 0.1  # of the loss of chance
_USUAL = (0.3, 0.5)
_GIVE = "return it, or log it: log(epoch=epoch, train_loss=..., val_loss=...)"

Record = Mapping[str, Any]
TrainFn = Callable[[nn.Module, float, int, Callable[..., None]], Any]


def tune_dropout(
    make_model: Callable[[], nn.Module],
    train_fn: TrainFn | None = None,
    *,
    examples: Examples | None = None,
    recipe: Recipe | None = None,
    selector: Any = "*",
    seeds: int | Sequence[int] = 3,
    folder: str | os.PathLike[str] | None = None,
    start: float = 0.5,
    step: float = 0.2,
    most: float = 0.8,
    trials: int = 4,
    setting: Setting | None = None,
) -> DropoutReport:
    """Find how much dropout a model should be trained with, by the procedure of practitioners.

    >>> report = tk.tune_dropout(make_model, examples=examples, folder="runs/dropout")         # doctest: +SKIP
    >>> tk.surgery.set_dropout(model, report.p)                                                # doctest: +SKIP

    It trains without dropout, and the doctor judges. A model that underfits is left alone, and so is a healthy one
    without much of a gap. One that overfits is trained with `start`; then, by the validation loss over paired seeds,
    with 0.2 less or more, half of that at each change of direction, until the difference is within one standard error
    of it, or less than 0.05 is left to step. It mostly lands at 0.3 to 0.5.

    Args:
        make_model: gives a fresh model with dropout in it; it is called with torch's generator seeded.
        train_fn: `train_fn(model, p, seed, log)` trains the model in place. It returns the validation loss, or a list
            of records with `val_loss`, or calls `log(epoch=..., train_loss=..., val_loss=..., val_accuracy=...)`, which
            the doctor reads; the loss that counts is the last one. Losses are to be evaluated in eval mode. None trains
            by AdamW on 70 % of the examples, and validates on the others.
        examples: what to train on, where there is no train_fn.
        recipe: how long and how fast, for these.
        selector: which dropout is tuned, as in `tk.surgery.set_dropout`.
        seeds: how many, or which; each decides split, weights, order and dropout of one training of each probability.
        folder: where finished trainings are remembered, by optuna; after an interruption the same call goes on. None
            forgets them.
        start, step, most: the first probability, the first step, and the highest probability.
        trials: the most probabilities that are tried, p = 0 among them.
        setting: what the doctor is to know beside the curves of train_fn: `tk.Setting(classes=10, n_val=200)`.

    Raises:
        SelectorError: there is no dropout to tune; `tk.surgery.insert_dropout` puts some in.
        DataError: there is nothing to train on, or train_fn gave no validation loss.
        ValueError: an argument makes no sense.
    """
    if (train_fn is None) == (examples is None):
        raise DataError("say how to train: train_fn, or examples= to train on, and one of them only")
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if len(numbers) < 2 or len(set(numbers)) < len(numbers):
        raise ValueError(f"seeds is {seeds!r}; it takes two different ones or more to see what chance does")
    if not 0 < start <= most < 1 or not 0 < step <= 1 or trials < 2:
        wanted = "it must be 0 < start <= most < 1, 0 < step <= 1, and 2 trials or more"
        raise ValueError(f"start={start}, step={step}, most={most}, trials={trials}: {wanted}")
    recipe, setting = recipe or Recipe(), setting or Setting()
    probe = _made(make_model, numbers[0])
    if examples is not None:
        check_examples(examples)
        outputs, classes = tried(probe, examples).shape[1], len(examples.classes)
        if outputs < classes:
            said = f"the model has {outputs:,} outputs, and there are {classes:,} classes"
            raise DataError(said, hint="let make_model resize the head: tk.surgery.resize_head(model, classes)")
        train_fn = partial(_train, examples=examples, recipe=recipe)
        splits = [split(examples, number) for number in numbers]
        judged = torch.cat([held for _, held in splits]).unique()  # by one seed or another
        if not len(judged):
            raise DataError("no class has two examples, so none can be held out", hint="give more examples")
        told: dict[str, Any] = {"classes": len(examples.classes), "n_train": len(splits[0][0]), "n_val": len(judged)}
        setting = replace(setting, **told)
    assert train_fn is not None
    set_dropout(probe, 0.0, selector)
    named = _fingerprint(probe, selector, [examples, recipe] if examples is not None else [_code_of(train_fn)])
    memory: Memory = Dict() if folder is None else Journal(Path(folder), f"dropout {named}")
    work = _Work(make_model, train_fn, selector, numbers, memory, setting, probe)
    first = work.trial(0.0)
    if not math.isfinite(first.loss):
        raise DataError(
            "training without dropout ends with a validation loss that is no number",
            hint="mend that first: look at the inputs, or lower the learning rate",
        )
    if reason := _left_alone(first, setting):
        return DropoutReport(0.0, first.verdict, False, reason, (first,), numbers, trained=work.trained)
    found, steps = climb(work.trial, first, start=start, step=step, most=most, trials=trials)
    best = min(found, key=lambda trial: trial.loss)
    said = f"without dropout: {first.verdict or 'no curves to judge by, so it goes by outcome'}"
    said += ", yet much better on what it was trained on" if first.verdict == "healthy" else ""
    if not _USUAL[0] <= best.p <= _USUAL[1]:
        steps = (*steps, f"it mostly lands at {_USUAL[0]:g} to {_USUAL[1]:g}: look twice")
    why = _why(best, first)
    return DropoutReport(best.p, first.verdict, True, why, tuple(found), numbers, (said, *steps), trained=work.trained)


def _left_alone(first: DropoutTrial, setting: Setting) -> str:
    """Why there is nothing to try; empty where there is."""
    verdict = first.verdict
    if not verdict or verdict in {*_TOO_MUCH, "cannot-say"} or _has_gap(first, setting):
        return ""
    reasons = {
        "underfit": "it underfits without dropout, which would only hold it back more: train longer or make it larger",
        "unstable": "training is unstable without dropout: lower the learning rate first",
    }
    return reasons.get(verdict, "it does not overfit, so dropout has nothing to cure")


def _has_gap(first: DropoutTrial, setting: Setting) -> bool:
    """Whether a healthy model is better on what it has seen by half of what the doctor calls a gap: a try is cheap."""
    chance = math.log(setting.classes) if setting.classes else setting.target_variance
    if first.verdict != "healthy" or not chance or not first.train_losses:
        return False
    mean, error = paired(first.losses, first.train_losses)
    return mean > max(_GAP * chance, error)


def _why(best: DropoutTrial, first: DropoutTrial) -> str:
    if best is first:
        return "every dropout that was tried made the validation loss worse"
    mean, error = best.against(first)
    gain = f"the validation loss is {-mean:.3g} +- {error:.2g} lower than without ({best.loss:.4g}, {first.loss:.4g})"
    return gain if -mean > error else f"{gain}, which is within seed noise"


def climb(
    measure: Callable[[float], DropoutTrial],
    first: DropoutTrial,
    *,
    start: float = 0.5,
    step: float = 0.2,
    most: float = 0.8,
    trials: int = 4,
) -> tuple[list[DropoutTrial], tuple[str, ...]]:
    """Up and down from the start, in steps that halve at each change of direction; what was tried, and why.

    Args:
        measure: trains with a probability.
        first: the trial without dropout.
        start, step, most, trials: as for `tune_dropout`.
    """
    known = {first.p: first}
    at = known.setdefault(start, measure(start))
    better, said = _compared(at, first)
    up = better and at.verdict in _TOO_MUCH
    steps = [f"{said}{f', and still {at.verdict}' if up else ''}: {'up' if up else 'down'}"]
    while True:
        step = _short_of_worse(known.values(), at, step if up else -step)
        if step < _LEAST - 1e-9:
            steps.append(f"less than {_LEAST:g} is left to step")
            break
        goal, moved = round(min(most, max(0.0, at.p + (step if up else -step))), 4), False
        if goal != at.p:
            if goal not in known and len(known) >= trials:
                steps.append(f"{trials} probabilities were tried, which is as many as may be")
                break
            new = known.get(goal) or known.setdefault(goal, measure(goal))
            moved, said = _compared(new, at)
            mean, error = new.against(at)
            at = new if moved else at
            if abs(mean) <= error:
                steps.append(f"{said}: within seed noise, so this is it")
                break
            steps.append(said)
        if not moved:
            up, step = not up, step / 2
    return list(known.values()), tuple(steps)


def _short_of_worse(known: Iterable[DropoutTrial], at: DropoutTrial, step: float) -> float:
    """The size of a step, halved while it would come nearer to what is known to be worse than to where it began."""
    beyond = [abs(one.p - at.p) for one in known if (one.p - at.p) * step > 0 and one.loss > at.loss]
    size = abs(step)
    while beyond and size > min(beyond) / 2 + 1e-9:
        size /= 2
    return size


def _compared(new: DropoutTrial, old: DropoutTrial) -> tuple[bool, str]:
    """Whether a trial is better than another, and both in words."""
    mean, error = new.against(old)
    word = "lower" if mean < 0 else "higher"
    return mean < 0, f"p = {new.p:g} gives {new.loss:.4g}, {abs(mean):.3g} +- {error:.2g} {word} than p = {old.p:g}"


@dataclass
class _Work:
    """Trains with a probability and every seed, unless that is remembered."""

    make_model: Callable[[], nn.Module]
    train_fn: TrainFn
    selector: Any
    seeds: tuple[int, ...]
    memory: Memory
    setting: Setting
    probe: nn.Module
    trained: int = 0

    def trial(self, p: float) -> DropoutTrial:
        """A probability with all its seeds."""
        records = [self._record(p, seed) for seed in self.seeds]
        told = replace(self.setting, dropout=p)
        curves = [record["rows"] for record in records]
        verdict = diagnose(_mean(curves), setting=told).verdict if all(curves) else ""
        ends = [float(rows[-1]["train_loss"]) for rows in curves if rows and "train_loss" in rows[-1]]
        losses = tuple(math.inf if record["loss"] is None else float(record["loss"]) for record in records)
        return DropoutTrial(p, losses, tuple(ends) if len(ends) == len(curves) else (), verdict)

    def _record(self, p: float, seed: int) -> Record:
        key = f"p={p:g} seed={seed}"
        known = self.memory.get(key)
        if known is not None:
            return known
        began = time.perf_counter()
        model = _made(self.make_model, seed)
        if model is self.probe:
            raise DataError("make_model gives the same model at each call", hint="let it make a fresh one")
        set_dropout(model, p, self.selector)
        rows: list[dict[str, Any]] = []

        def log(record: Record | None = None, /, **metrics: Any) -> None:
            rows.append({**(record or {}), **metrics})

        with kept_generators(model):
            torch.manual_seed(seed)
            given = self.train_fn(model, p, seed, log)
        self.trained += 1
        given = _plain(given)
        if given is not None and not isinstance(given, (int, float)):
            rows = _rows_in(given)
        rows = [{str(name): _plain(value) for name, value in row.items()} for row in rows]
        loss = _loss_of(given, rows)
        record = {"p": p, "seed": seed, "loss": loss, "rows": rows, "seconds": time.perf_counter() - began}
        self.memory.put(key, record)
        return record


def _loss_of(given: Any, rows: list[dict[str, Any]]) -> float | None:
    """The validation loss of a training; None for one that is no number."""
    if not isinstance(given, (int, float)):
        logged = [row["val_loss"] for row in rows if row.get("val_loss") is not None]
        if not logged or not isinstance(logged[-1], (int, float)):
            found = f", but {logged[-1]!r:.60}" if logged else ""
            raise DataError(f"train_fn gave no validation loss{found}", hint=_GIVE)
        given = logged[-1]
    return float(given) if math.isfinite(given) else None


def _rows_in(given: Any) -> list[dict[str, Any]]:
    """The records that train_fn returned."""
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping)) else [given]
    odd = next((row for row in rows if not isinstance(row, Mapping)), given if isinstance(given, Mapping) else None)
    if odd is not None:
        raise DataError(f"train_fn gave {odd!r:.60}, which is neither a loss nor a list of records", hint=_GIVE)
    return rows


def _mean(curves: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """One history: at each record the mean of what all of them have as a number there."""
    out = []
    for rows in zip(*curves, strict=False):
        names = [name for name in rows[0] if all(isinstance(row.get(name), (int, float)) for row in rows)]
        out.append({name: statistics.fmean(row[name] for row in rows) for name in names})
    return out


def _plain(value: Any) -> Any:
    """A tensor or NumPy array of a single number as that number."""
    single = value.numel() == 1 if isinstance(value, torch.Tensor) else getattr(value, "size", 0) == 1
    return value.item() if single and hasattr(value, "item") else value


def _made(make_model: Callable[[], nn.Module], seed: int) -> nn.Module:
    if isinstance(make_model, nn.Module):
        raise DataError("make_model is a model", hint="give a function that makes a fresh one at each call")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_model()


def _train(
    model: nn.Module, p: float, seed: int, log: Callable[..., None], *, examples: Examples, recipe: Recipe
) -> None:
    """Train what is not frozen; both losses are evaluated in eval mode after each epoch."""
    train, held = (examples.take(places) for places in split(examples, seed))

    def look(row: Record) -> None:
        found = {"epoch": row["epoch"]}
        for name, part in (("train", train), ("val", held)):
            hits, losses = evaluate(model, part, 256)
            found[f"{name}_loss"] = float(losses.double().mean())
            found[f"{name}_accuracy"] = float(hits.double().mean())
        log(found)

    fit(model, train, Candidate("full", [Stage(_trained(model))]), recipe, seed=seed, log=look)


def _trained(model: nn.Module) -> str | list[str]:
    """A selector of what is trained as the model was made."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return "*" if len(names) == sum(1 for _ in model.parameters()) else [selection_of(name) for name in names]


def _fingerprint(model: nn.Module, selection: Any, told: list[Any]) -> str:
    """Equal for trainings that give the same: the model and its first values, the examples, and how it is trained."""
    tensors, _ = state_of(model)
    lines = [repr(model), *Selector.of(selection).texts]
    lines += [f"{name} {digest_tensor(tensor)}" for name, tensor in tensors.items() if not is_lazy(tensor)]
    for one in told:
        if isinstance(one, Examples):
            lines += [f"{name} {digest_tensor(tensor)}" for name, tensor in [*one.tensors.items(), ("y", one.labels)]]
        else:
            lines.append(str(one))
    return digest_bytes("\n".join(lines).encode())[:16]


def _code_of(one: Any) -> str:
    """A function as text that changes with what it does, as far as its code and the numbers that it closes over say."""
    if isinstance(one, partial):
        return _code_of((one.func, *one.args, *sorted(one.keywords.items())))
    if isinstance(one, tuple):
        return f"({', '.join(map(_code_of, one))})"
    if not isinstance(one, FunctionType):
        return repr(one) if isinstance(one, (bool, int, float, str)) else type(one).__qualname__
    cells = [cell.cell_contents for cell in one.__closure__ or () if cell != CellType()]
    held = (*(value for value in cells if value is not one), *(one.__defaults__ or ()))
    return f"{one.__qualname__} {_bytes_of(one.__code__)} {_code_of(held)}"


def _bytes_of(code: CodeType) -> str:
    constants = [_bytes_of(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"
