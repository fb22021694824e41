"""Freezing and resuming: torchkeep beside Lightning, skorch and transformers.

    pip install lightning skorch transformers accelerate      (in an environment of its own, beside torchkeep)
    python -m benchmarks.freeze_resume [--write docs/peers-resume.md]

A small network has a backbone (convolution, BatchNorm, dropout) and a head of two linear layers of one shape. A script
freezes the backbone in the tool's way and trains with Adam for four epochs of four batches in a fixed order, with a
checkpoint after each epoch. It is killed in the third epoch, and started again in a new process with the tool's way to
resume. This is done with the backbone frozen throughout, and with an unfreezing at the start of the second epoch. What an
optimizer step finds is noted in the same way for all tools, by a hook of torch right before the step.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .freeze_resume_scripts import BATCHES, EPOCHS, KILLED, TOOLS, Net, NoWay, Play, Script, weights

NEEDS = {
    "lightning": ["lightning"],
    "skorch": ["skorch"],
    "transformers": ["transformers", "accelerate"],
    "torchkeep": [],
}
WARM = {"lightning": "lightning.pytorch", "skorch": "skorch.callbacks", "transformers": "transformers.trainer"}

Outcome = dict[str, Any]


def act(play: Play, script: Script, killed: bool) -> Outcome:
    """Play a script and note what every step of the optimizer finds."""
    steps: list[Outcome] = []

    def look(optimizer: Any, *_: Any) -> None:
        if killed and len(steps) == KILLED:
            os._exit(0)
        names = {id(parameter): name for name, parameter in Net.latest.named_parameters()}
        phase = {name: parameter.requires_grad for name, parameter in Net.latest.named_parameters()}
        phase |= {f"mode of {path}": module.training for path, module in Net.latest.backbone.named_modules()}
        moments = {
            f"{names[id(parameter)]}.{key}": state[key].clone()
            for parameter, state in optimizer.state.items()
            for key in ("exp_avg", "exp_avg_sq")
        }
        steps.append({"phase": phase, "moments": moments})

    register_optimizer_step_pre_hook(look)
    torch.manual_seed(0)
    play(script)
    return {"start": Net.latest.start, "steps": steps, "end": weights(Net.latest)}


def played(play: Play, script: Script, killed: bool = False) -> Outcome:
    """Play a script in a process of its own."""
    notes = script.folder.with_suffix(".outcome")
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        try:
            outcome = act(play, script, killed)
        except NoWay:
            outcome = {"cell": "no way"}
        except BaseException as error:  # whatever a tool raises is its outcome
            outcome = {"cell": f"raises {type(error).__name__}", "said": str(error).partition("\n")[0]}
        torch.save(outcome, notes)
        os._exit(0)
    os.waitpid(child, 0)
    return torch.load(notes) if notes.exists() else {"cell": "died"}


def plays(play: Play, folder: Path) -> dict[str, Outcome]:
    """All plays of one tool: uninterrupted ones by a name, resumed ones by the name and what else was changed."""
    found: dict[str, Outcome] = {}
    for unfreeze in ("", "once", "from"):
        for seeded in (False, True):
            name = f"{unfreeze or 'frozen'}{' seeded' * seeded}"
            script = Script(folder / name, unfreeze=unfreeze, seeded=seeded)
            cut = replace(script, folder=folder / f"{name} killed")
            found[name] = played(play, script)
            played(play, cut, killed=True)
            changes: dict[str, dict[str, Any]] = {"resumed": {}}
            if name == "frozen":
                changes |= {"unasked": {"freeze": False}, "swapped": {"swapped": True}}
            for change, options in changes.items():
                again = replace(cut, folder=folder / f"{name} {change}", again=True, **options)
                if cut.folder.exists():
                    shutil.copytree(cut.folder, again.folder)
                outcome = played(play, again)
                if "steps" in outcome and len(outcome["steps"]) != EPOCHS * BATCHES - KILLED:
                    outcome = {"cell": f"{len(outcome['steps'])} steps"}  # it did not go on where it should
                found[f"{name} {change}"] = outcome
    return found


def ask(found: dict[str, Outcome], question: Callable[..., bool], *names: str) -> str:
    """The answer to a question about some plays; if one of them came to nothing, that."""
    for name in names:
        if "cell" in found[name]:
            return str(found[name]["cell"])
    return "yes" if question(*(found[name] for name in names)) else "no"


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether the names are the same, and the tensors of each name."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def buffers(tensors: dict[str, torch.Tensor], wanted: bool) -> dict[str, torch.Tensor]:
    """The running statistics of the backbone, or its parameters."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.") and name.rpartition(".")[2].startswith(("running", "num")) == wanted
    }


def best(*cells: str) -> str:
    """The most favourable of several answers."""
    return min(cells, key=lambda cell: ("yes", "no").index(cell) if cell in {"yes", "no"} else 2)


def row(found: dict[str, Outcome]) -> list[str]:
    """The cells of one tool, in the order of QUESTIONS."""

    def stays(name: str, statistics: bool) -> str:
        return ask(found, lambda one: same(buffers(one["start"], statistics), buffers(one["end"], statistics)), name)

    def phase(name: str, change: str = "resumed") -> str:
        return ask(
            found, lambda one, two: one["steps"][KILLED]["phase"] == two["steps"][0]["phase"], name, f"{name} {change}"
        )

    def equal(name: str) -> str:
        return ask(found, lambda one, two: same(one["end"], two["end"]), name, f"{name} resumed")

    def moments(one: Outcome, two: Outcome) -> bool:
        return same(one["steps"][KILLED]["moments"], two["steps"][0]["moments"])

    def trains(name: str) -> str:
        stayed = stays(name, False)
        return {"yes": "no", "no": "yes"}.get(stayed, stayed)

    seeded = (equal("frozen seeded"), best(equal("once seeded"), equal("from seeded")))
    return [
        stays("frozen", False),
        stays("frozen", True),
        best(trains("once"), trains("from")),
        phase("frozen"),
        phase("frozen", "unasked"),
        phase("once"),
        phase("from"),
        ask(found, moments, "frozen", "frozen swapped"),
        equal("frozen"),
        best(equal("once"), equal("from")),
        next((cell for cell in seeded if cell != "yes"), "yes"),
    ]


QUESTIONS = {
    "parameters stay": "the parameters of the frozen backbone are bitwise unchanged after training",
    "statistics stay": "so are the running statistics of its BatchNorm",
    "unfreezing trains": "after the unfreezing the parameters of the backbone change",
    "phase, frozen": "after resuming, requires_grad of every parameter and the mode of every module are as they were; the script freezes again before it resumes, as it did at first",
    "phase, not asked": "the same; the script that resumes leaves the freezing out",
    "phase, unfrozen": "the same after an unfreezing before the checkpoint; the script unfreezes *in* the second epoch",
    "phase, unfrozen from": "the same; the script unfreezes in every epoch *from* the second one on",
    "moments": "after resuming into a model that registers the two layers of its head in the other order, the optimizer has Adam's moments at the right names",
    "equal, frozen": "resumed equals uninterrupted, bitwise, in all weights and statistics; the backbone is frozen throughout",
    "equal, unfrozen": "the same after the unfreezing, with the better of the two scripts",
    "equal, seeded": "both once more, with the random generator seeded before every forward pass: what is left if dropout is not to blame",
}


def versions() -> str:
    """What was measured."""
    packages = ["torch", *(name for names in NEEDS.values() for name in names), "torchkeep"]
    listed = [f"{name} {version(name)}" for name in packages if find_spec(name) is not None]
    return ", ".join([*listed, f"Python {platform.python_version()}"])


def page(rows: dict[str, list[str]], raised: dict[str, list[str]]) -> str:
    """The page of the docs."""
    intro = (__doc__ or "").split("\n\n", 2)[2].strip()
    lines = [f"| | {' | '.join(QUESTIONS)} |", f"| --- |{' --- |' * len(QUESTIONS)}"]
    lines += [f"| {tool} | {' | '.join(cells)} |" for tool, cells in rows.items()]
    return "\n".join(
        [
            "# Freezing and resuming beside Lightning, skorch and transformers",
            "",
            "Written by `python -m benchmarks.freeze_resume --write docs/peers-resume.md`, in an environment of its own that",
            f"has the peers (`pip install lightning skorch transformers accelerate`): {versions()}, on a CPU.",
            "",
            intro,
            "",
            *lines,
            "",
            *(f"- *{name}*: {what}." for name, what in QUESTIONS.items()),
            "",
            *NOTES,
            "",
            "What was raised:",
            "",
            *(f"- {what} in {', '.join(f'`{name}`' for name in names)}" for what, names in raised.items()),
            "",
        ]
    )


NOTES = [
    "No way: `BackboneFinetuning` takes the number of one epoch, and a `Freezer` for every epoch would freeze again after a",
    "single unfreezing. `BackboneFinetuning` leaves BatchNorm trainable, whose parameters then count as changed here.",
    "`train_bn=False` stops the statistics, and BatchNorm goes on to normalise by the batch. `eval()` is what Lightning's guide",
    "to transfer learning does; skorch and the Trainer call `train()` in every step. `Freezer` acts in the first epoch of the",
    "history, so a resumed run trains everything, which is right after an unfreezing. The optimizer of the Trainer has the",
    "parameters that required gradients when it was made; what is unfrozen later is not in it, so nothing of it trains, and",
    "that is equal in both runs. The finetuning callbacks of Lightning save the names of what the optimizer holds, which is why",
    "the order does not matter with them. In loops and hooks, how the condition on the epoch is written is the user's choice;",
    "hence two columns for it. A script that leaves the frozen parameters out of the optimizer makes it without them when it is",
    "started again, also after the unfreezing; torchkeep then puts them back into it.",
]


def main() -> None:
    """Play everything, print the table, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    raised: dict[str, list[str]] = {}
    for tool, play in TOOLS.items():
        package = tool.partition(":")[0]
        if any(find_spec(name) is None for name in NEEDS[package]):
            rows[tool] = ["not installed"] * len(QUESTIONS)
            continue
        importlib.import_module(WARM.get(package, package))  # once, and not in every process
        with tempfile.TemporaryDirectory() as folder:
            found = plays(play, Path(folder))
        rows[tool] = row(found)
        for name, one in found.items():
            if "said" in one:
                raised.setdefault(f"{tool}: *{one['said']}*", []).append(name)
    text = page(rows, raised)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
