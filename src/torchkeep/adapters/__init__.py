"""How a tensor of another shape is made to fit, or why it cannot be. One adapter a file."""

from __future__ import annotations

from .channels import Channels as channels
from .positions import Positions as positions
from .rows import Rows as rows
from .slicing import Slicing as slicing
from .vocabulary import Vocabulary as vocabulary

ADAPTERS = {
    "rows": "adapters.rows:Rows",
    "channels": "adapters.channels:Channels",
    "positions": "adapters.positions:Positions",
    "vocabulary": "adapters.vocabulary:Vocabulary",
    "slicing": "adapters.slicing:Slicing",
}

__all__ = ["ADAPTERS", "channels", "positions", "rows", "slicing", "vocabulary"]
