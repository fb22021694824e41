"""Tables in a terminal, drawn by rich."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ..core.table import Table

_STYLES = {
    "MISSING": "bold red",
    "MISMATCHED": "bold red",
    "UNEXPECTED": "yellow",
    "copied": "green",
    "copy": "green",
    "danger": "bold red",
    "warning": "yellow",
}


def render(table: Table) -> RenderableType:
    """A table as something rich can print. All text is taken literally: a file's names are not markup."""
    parts: list[RenderableType] = [Text(table.title, style="bold")]
    if any(value for _, value in table.facts):
        facts = RichTable.grid(padding=(0, 2))
        for key, value in table.facts:
            if value:
                facts.add_row(Text(f"  {key}", style="dim"), Text(value))
        parts.append(facts)
    if table.rows:
        grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(table.columns):
            text = place in {0, len(table.columns) - 1}  # names and reasons may be long, numbers stay on their line
            grid.add_column(Text(column), overflow="fold", no_wrap=not text)
        for row in table.rows:
            grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        parts.append(grid)
    parts += [Text(f"  {note}", style=_STYLES.get(note.split(":")[0], "yellow")) for note in table.notes]
    return Group(*parts)


def draw(table: Table) -> None:
    """Print a table to standard output; plain text, whole lines, where that is no terminal."""
    console = Console(highlight=False)
    widest = max(map(len, str(table).splitlines()))
    if console.is_terminal and widest + len(table.columns) <= console.width:
        console.print(render(table))
    else:  # a narrow terminal wraps whole lines better than a grid wraps its cells
        print(table)
