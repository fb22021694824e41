"""Saving and loading beside the peers and beside the limits of the machine.

    make .venv-peers/.installed
    .venv-peers/bin/python -m benchmarks.disk [--write docs/benchmarks-disk.md]

A peer that is not installed, or that fails, stands in the tables with the reason. `--scale 0.02` is a quick look at
whether everything works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .harness import Plan, Results, measure
from .page import write
from .shapes import SHAPES


def main() -> None:
    """Measure, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of the names of what is measured")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each peer")
    parser.add_argument("--repeats", type=int, default=3, help="saves or loads in a process, after a first one")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the processes")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk that is measured")
    parser.add_argument("--keep", type=Path, help="a JSON file for every sample, added to those that it holds")
    parser.add_argument("--again", action="store_true", help="measure nothing: write the page of what --keep holds")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    plan = Plan(
        shapes=options.shapes,
        only=options.only,
        scale=options.scale,
        rounds=options.rounds,
        repeats=options.repeats,
        python=options.python,
        parent=options.folder.resolve(),
        keep=options.keep,
    )
    results = Results.read(options.keep) if options.again and options.keep else measure(plan)
    text = write(results, plan)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
