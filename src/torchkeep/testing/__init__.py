"""Tests that other people's parts can inherit: a part that passes FormatTests, StoreTests, RuleTests ... fits in."""

from __future__ import annotations

from .adapters import AdapterTests as AdapterTests
from .formats import FormatTests as FormatTests
from .formats import Sample as Sample
from .rules import RuleSample as RuleSample
from .rules import RuleTests as RuleTests
from .stores import StoreTests as StoreTests

__all__ = ["AdapterTests", "FormatTests", "RuleSample", "RuleTests", "Sample", "StoreTests"]
