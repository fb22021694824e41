"""Showing: any noun of torchkeep as a table in the terminal, or as JSON."""

from __future__ import annotations

from typing import Any

from .views import terminal
from .views.document import document


def show(noun: Any) -> None:
    """Print a checkpoint, a report, a run's summary or a model's description to the terminal.

    >>> tk.show(tk.open("model.safetensors"))                      # doctest: +SKIP
    """
    table = getattr(noun, "table", None)
    if table is not None:
        terminal.draw(table())
    else:
        print(noun)


def to_json(noun: Any) -> Any:
    """The same as dicts and lists, as the command line prints with `--json`."""
    return document(noun)
