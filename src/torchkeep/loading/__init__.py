"""Loading into a model: plan, check, and only then copy."""

from __future__ import annotations

from .load import load_into, plan_load
from .planfile import LoadReport

__all__ = ["LoadReport", "load_into", "plan_load"]
