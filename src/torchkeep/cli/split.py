"""`torchkeep split`: a checkpoint in parts, a file each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .editing import ShardSize, Source
from .output import AsJson, answer, progress


def split(
    source: Source,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="m.safetensors makes m-PART.safetensors of each part; .pth as well.")
    ],
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART=SELECTOR...]", help="A part and what goes into it; top-level modules if none."),
    ] = None,
    rest: Annotated[str | None, typer.Option("--rest", help="The part for all that no selector chooses.")] = None,
    max_shard_size: ShardSize = None,
    as_json: AsJson = False,
) -> None:
    """Write a model's weights in parts, one file each; every tensor goes into exactly one."""
    groups = {name: selector for name, _, selector in (_pair(text) for text in parts)} if parts else None
    found = tk.edit.split(source, groups, rest=rest)
    targets = {name: output.with_name(f"{output.stem}-{_file_name(name)}{output.suffix}") for name in found}
    if not as_json:
        print(f"{source} in {len(found)} parts")
    reports = {}
    for name, part in found.items():
        with progress(f"writing {name}") as step:
            reports[name] = tk.convert(part, targets[name], max_shard_size=max_shard_size, progress=step)
        if not as_json:
            answer(reports[name], as_json)
    if as_json:
        answer({"source": source, "parts": reports}, as_json)


def _pair(text: str) -> tuple[str, str, str]:
    name, equals, selector = text.partition("=")
    if not name or not selector:
        raise typer.BadParameter(f"{text!r} is not of the form PART=SELECTOR")
    return name, equals, selector


def _file_name(part: str) -> str:
    if "/" in part or "\\" in part or "\0" in part:
        raise typer.BadParameter(f"{part!r} cannot be part of a file's name; give the parts names: PART=SELECTOR")
    return part
