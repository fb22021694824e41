"""From a pretrained model and a data set to a plan: facts, similarity, the textbook's case, and what was measured."""

from .advise import advise
from .applying import ApplyReport, apply, plan_of, read_plan, write_plan

__all__ = ["ApplyReport", "advise", "apply", "plan_of", "read_plan", "write_plan"]
