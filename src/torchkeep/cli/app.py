"""The program `torchkeep`: one file per command, one exit code per error class."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

import torchkeep as tk

from . import (
    about,
    advise,
    average,
    cast,
    convert,
    demo,
    diff,
    doctor,
    drop,
    gc,
    inspect,
    load,
    merge,
    prove_resume,
    prune,
    rename,
    rescue,
    runs,
    salvage,
    scan,
    select,
    split,
    tag,
    verify,
)
from .output import fail

app = typer.Typer(
    name="torchkeep",
    help="Looks after the parameters of PyTorch models: opens any checkpoint safely, loads loudly, resumes exactly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"torchkeep {tk.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Every command has --help and --json. Errors have a name, a hint and an exit code (docs/cli.md)."""


app.command()(inspect.inspect)
app.command()(about.about)
app.command()(convert.convert)
app.command()(select.select)
app.command()(drop.drop)
app.command()(rename.rename)
app.command()(cast.cast)
app.command()(merge.merge)
app.command()(split.split)
app.command()(average.average)
app.command()(diff.diff)
app.command()(load.load)
app.command()(scan.scan)
app.command()(salvage.salvage)
app.command()(rescue.rescue)
app.command()(verify.verify)
app.command()(runs.runs)
app.command()(prune.prune)
app.command()(gc.gc)
app.command()(tag.tag)
app.command()(doctor.doctor)
app.command()(advise.advise)
app.command()(prove_resume.prove_resume)
app.command()(demo.demo)


def main() -> None:
    """Run the program; an error of torchkeep ends it with the exit code of its class."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in files need not be valid text
    try:
        app()
    except tk.errors.TorchkeepError as error:
        sys.exit(fail(error, "--json" in sys.argv))
