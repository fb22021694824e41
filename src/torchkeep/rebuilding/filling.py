"""What a class of today expects of an instance and a file of yesterday lacks."""

from __future__ import annotations

from torch import nn

from ..core.blueprint import Part


def filled(module: nn.Module, part: Part, is_torch: bool) -> None:
    """Give a restored module what its class has come to expect since the file was written."""
