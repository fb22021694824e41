"""Writes into the JSON of runs that were trained before what their settings say of the optimizer; nothing else changes.

python -m tests.training_runs.settings FOLDER ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOLD = ("optimizer", "rate", "momentum", "batch")


def tell(path: Path) -> None:
    """Copy what a doctor may be told of the optimizer from how a run was made."""
    noted = json.loads(path.read_text())
    noted["setting"] |= {name: noted["made"][name] for name in TOLD}
    path.write_text(json.dumps(noted, indent=1) + "\n")


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        for file in sorted(Path(folder).glob("*.json")):
            tell(file)
