"""Tests that other people's parts can inherit: a format that passes FormatTests, a store StoreTests ..., fits in."""

from __future__ import annotations

from .adapters import AdapterTests as AdapterTests
from .formats import FormatTests as FormatTests
from .formats import Sample as Sample
from .stores import StoreTests as StoreTests

__all__ = ["AdapterTests", "FormatTests", "Sample", "StoreTests"]
