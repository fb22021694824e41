"""Tests that other people's parts can inherit: a format that passes FormatTests, or a store StoreTests, fits in."""

from __future__ import annotations

from .formats import FormatTests as FormatTests
from .formats import Sample as Sample
from .stores import StoreTests as StoreTests

__all__ = ["FormatTests", "Sample", "StoreTests"]
