"""The spec that a model was frozen by, kept with the model."""

from __future__ import annotations

from torch import nn

from ..core.freezespec import FreezeState
from ..core.live import unwrapped

_STATE = "_torchkeep_freeze"


def freeze_state(model: nn.Module) -> FreezeState | None:
    """The spec that a model was frozen by and the phase it is in; None if it was frozen without one, or not at all."""
    return unwrapped(model).__dict__.get(_STATE)


def attach(model: nn.Module, state: FreezeState | None) -> None:
    """Remember a state with the model; it survives copies and pickling, and is no part of the state dict."""
    unwrapped(model).__dict__.pop(_STATE, None)
    if state is not None:
        unwrapped(model).__dict__[_STATE] = state
