"""From checkpoint to checkpoint: nothing is read until the result is saved, and then a few megabytes at a time.

Each function takes checkpoints, or paths of files and runs, and gives a checkpoint of the model's weights back, which
`tk.save`, `tk.convert`, `tk.load_into` and `tk.diff` take. No file is changed and no code from a file is run.
"""

from .averaging import average
from .casting import cast
from .choosing import drop, rename, select, split
from .merging import merge

__all__ = ["average", "cast", "drop", "merge", "rename", "select", "split"]
