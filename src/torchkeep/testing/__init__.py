"""Tests that other people's parts can inherit: a format that passes FormatTests fits into torchkeep."""

from __future__ import annotations

from .formats import FormatTests as FormatTests
from .formats import Sample as Sample

__all__ = ["FormatTests", "Sample"]
