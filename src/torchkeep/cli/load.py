"""`torchkeep load`: would these weights fit this model?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import torchkeep as tk

from .finding import made_by
from .output import AsJson, answer


def load(
    file: Annotated[str, typer.Argument(help="A checkpoint in any format torchkeep reads: file, folder or address.")],
    into: Annotated[
        str, typer.Option("--into", help="What makes the model: package.module:factory, or file.py:factory.")
    ],
    allow: Annotated[
        list[str] | None, typer.Option("--allow", help="Names that may stay unloaded, e.g. 'fc.*'. Repeatable.")
    ] = None,
    strip: Annotated[
        list[str] | None, typer.Option("--strip", help="A prefix to take off the file's names. Repeatable.")
    ] = None,
    match: Annotated[
        str | None, typer.Option("--match", help="One more rule, for names that share nothing: structural.")
    ] = None,
    adapt: Annotated[
        list[str] | None,
        typer.Option("--adapt", help="NAME=ADAPTER fits tensors of other shapes, e.g. conv1=channels. Repeatable."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option("--require", help="What must be covered: 0.9 of the model, or NAME=SHARE. Repeatable."),
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Follow a plan that --save-plan wrote.")] = None,
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", help="Write the plan to this file, to review and edit.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Save the loaded model to this .safetensors file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan; nothing is loaded.")] = False,
    as_json: AsJson = False,
) -> None:
    """Load a checkpoint into your model and show what was loaded and what was not.

    The factory is your own code and is run; nothing from the checkpoint is. Exits 21 if something does not fit that
    --allow does not name, or less is covered than --require says. Adapters: rows, channels, positions, vocabulary,
    slicing, with their defaults; options stand in a plan.
    """
    if plan is not None and (strip or match):
        raise typer.BadParameter("a plan says which name goes to which", param_hint="--strip and --match")
    named: dict[str, Any] = {"rules": None, "match": match, "adapt": _adapters(adapt), "plan": plan}
    needed = _required(require)
    if out is not None and (dry_run or out.suffix != ".safetensors"):
        why = "nothing is loaded with --dry-run" if dry_run else f"{out} does not end in .safetensors"
        raise typer.BadParameter(why, param_hint="--out")
    model = made_by(into, "--into")
    if strip:
        named["rules"] = [*map(tk.strip, strip), "exact", "prefixes"]
    planned = tk.plan_load(model, file, **named) if dry_run or save_plan else None
    if planned is not None and save_plan is not None:
        planned.save_plan(save_plan, allow=[*planned.allowed, *(allow or ())])
    if planned is not None and dry_run:
        planned.check([*planned.allowed, *(allow or ())], needed)
        answer(planned, as_json)
        return
    answer(tk.load_into(model, file, allow=allow, require=needed, **named), as_json)
    if out is None and not as_json:
        print("the loaded model was not kept: give --out FILE.safetensors to save it")
    if out is not None:
        saved = tk.save(model, out)
        if not as_json:
            print(saved)


def _adapters(pairs: list[str] | None) -> dict[str, Any] | None:
    """NAME=ADAPTER as tk.load_into takes it."""
    found: dict[str, Any] = {}
    for pair in pairs or ():
        name, _, adapter = pair.rpartition("=")
        if not name or adapter not in tk.adapters.ADAPTERS:
            known = ", ".join(tk.adapters.ADAPTERS)
            raise typer.BadParameter(f"{pair!r} is not NAME=ADAPTER; adapters are {known}", param_hint="--adapt")
        found[name] = adapter
    return found or None


def _required(texts: list[str] | None) -> Any:
    """Shares as tk.load_into takes them: one number, or one for each name."""
    shares: dict[str, float] = {}
    for text in texts or ():
        name, _, share = text.rpartition("=")
        try:
            shares[name or "*"] = float(share)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not SHARE or NAME=SHARE", param_hint="--require") from None
        if not 0 <= shares[name or "*"] <= 1:
            raise typer.BadParameter(f"{share} is not between 0 and 1", param_hint="--require")
    return shares.get("*") if shares.keys() == {"*"} else shares or None
