"""Freezing parts of a model for good: no gradients, no moving normalisation statistics, no dropout.

`requires_grad=False` keeps an optimizer away from a parameter, and nothing more: BatchNorm goes on averaging whatever
passes through it and dropout goes on dropping. So a module all of whose parameters are frozen is also *held* in
eval mode, and stays there through every later `model.train()`.
"""

from .groups import param_groups, set_members
from .holding import held_modules, hold, is_held, restore_held
from .parts import FreezeReport, freeze, unfreeze
from .phases import PhaseReport, enter_phase, restore_freeze
from .presets import freeze_spec, read_spec, write_spec
from .state import freeze_state
from .view import DROPOUTS, NORMS, View, blocks_of

__all__ = [
    "DROPOUTS",
    "NORMS",
    "FreezeReport",
    "PhaseReport",
    "View",
    "blocks_of",
    "enter_phase",
    "freeze",
    "freeze_spec",
    "freeze_state",
    "held_modules",
    "hold",
    "is_held",
    "param_groups",
    "read_spec",
    "restore_freeze",
    "restore_held",
    "set_members",
    "unfreeze",
    "write_spec",
]
