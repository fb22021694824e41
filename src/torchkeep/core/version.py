"""The version, and how files that torchkeep writes name their writer."""

from __future__ import annotations

from importlib.metadata import version

import torch

__version__ = version("torchkeep")
PRODUCER = {"torchkeep": __version__, "torch": str(torch.__version__)}
