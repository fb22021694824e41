"""Freeze specs to begin with: made for a model, and meant to be reviewed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from torch import nn

from ..core.freezespec import FreezeSpec, Phase
from ..core.names import is_under
from ..core.table import human_count
from ..engines.files import read_file, write_file
from ..errors import SelectorError
from .view import DROPOUTS, View, numel

PRESETS = ("head", "lp-ft", "gradual", "full")


def freeze_spec(model: nn.Module, preset: str = "lp-ft", *, epochs: int = 3, head: str | None = None) -> FreezeSpec:
    """A freeze spec for a model to begin with; print it, change it, `tk.freeze(model, spec)`.

    Args:
        model: any module. Its head is taken to be the last step that owns parameters, with the dropout before it.
        preset: `head`: the head alone; `lp-ft`: the head for `epochs`, then everything at a tenth of the rate
            (Kumar et al. 2022);
            `gradual`: the head, then more and more from the top, a third of the network at a time, each phase for
            `epochs` and each third at 1/2.6 of the rate above it (Howard and Ruder 2018); `full`: everything, each step
            towards the stem at 0.9 of the rate above it.
        epochs: how long each phase but the last is.
        head: selector of the head, if it is another.

    Raises:
        SelectorError: there is no such preset, or `head` chooses nothing.
    """
    if preset not in PRESETS:
        raise SelectorError(f"there is no preset {preset!r}", hint=f"there are {', '.join(PRESETS)}")
    view = View(model)
    if not view.parameters:
        raise SelectorError("the model has no parameters")
    top = [head] if head is not None else [*view.steps[-1], *_dropout_before(view)]
    view.chosen_parameters(top)
    if preset == "head":
        return FreezeSpec([Phase(_one(top))])
    if preset == "full":
        return FreezeSpec([Phase("*", layer_decay=0.9)])
    if preset == "lp-ft":
        return FreezeSpec([Phase(_one(top), epochs=epochs), Phase("*", rates={"*": "lr/10"})])
    return FreezeSpec(_gradual(view, top, epochs))


def _gradual(view: View, top: list[str], epochs: int) -> list[Phase]:
    """The head, then a third of what is below it more each time; what is below in the network learns more slowly."""
    in_head = {view.step_of(key) for key in view.chosen_parameters(top)}
    below = [step for number, step in enumerate(view.steps) if number not in in_head]
    third = max(1, -(-len(below) // 3))
    phases = [Phase(_one(top), epochs=epochs)]
    trained, rates, slower = list(top), dict[str, float | str](), 1.0
    for end in range(len(below), 0, -third):
        chunk = [path for step in below[max(0, end - third) : end] for path in step]
        slower *= 2.6
        trained = [*chunk, *trained]
        rates = rates | {", ".join(chunk): f"lr/{slower:.4g}"}
        last = end - third <= 0
        phases.append(Phase("*" if last else _one(trained), epochs=None if last else epochs, rates=rates))
    return phases


def _dropout_before(view: View) -> list[str]:
    """Paths of dropout that stands between the last step but one and the head: it belongs to the head."""
    paths = [names[0] for names in view.module_names.values()]
    bare = [isinstance(module, DROPOUTS) and not view.below[key] for key, module in view.modules.items()]
    before = view.steps[-2] if len(view.steps) > 1 else ()
    start = max((place for place, path in enumerate(paths) if any(is_under(path, one) for one in before)), default=-1)
    stop = paths.index(view.steps[-1][0])
    return [paths[place] for place in range(start + 1, stop) if bare[place]]


def _one(words: list[str]) -> str | list[str]:
    return words[0] if len(words) == 1 else words


def read_spec(path: str | os.PathLike[str]) -> FreezeSpec:
    """A freeze spec from a YAML file.

    Raises:
        CheckpointNotFoundError: there is no such file.
        SelectorError: it cannot be read; the message says where.
    """
    return FreezeSpec.from_yaml(read_file(Path(path)), file=str(path))


def write_spec(spec: FreezeSpec, path: str | os.PathLike[str], *, model: nn.Module | None = None) -> None:
    """Write a freeze spec as YAML; with a model, its blocks and their sizes stand in comments above.

    Raises:
        SaveError: the file cannot be written.
    """
    lines = ["# torchkeep freeze spec"]
    if model is not None:
        lines.append("# steps of the model, from the stem to the head, and their parameters:")
        view = View(model)
        sizes = Counter[int | None]()
        for key, parameter in view.parameters.items():
            sizes[view.step_of(key)] += numel(parameter)
        lines += [f"#   {', '.join(step)}: {human_count(sizes[place])}" for place, step in enumerate(view.steps)]
    write_file(Path(path), ["\n".join([*lines, spec.to_yaml()]).encode()])
