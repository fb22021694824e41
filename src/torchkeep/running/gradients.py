"""Which gradients still wait to be used: those of an accumulation, and not those that an optimizer has applied."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Any

import torch

_APPLIED = "_torchkeep_applied"
_WATCHED: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(optimizers: Iterable[Any]) -> None:
    """Have optimizers mark the gradients that they apply.

    A mark is an attribute of the gradient: the version it had. Accumulating more raises the version, and a new gradient
    has no mark, so that nothing which still waits is ever taken for used.
    """
    for optimizer in optimizers:
        with contextlib.suppress(TypeError):  # a wrapper that cannot be hashed marks nothing, so all gradients wait
            if optimizer not in _WATCHED and hasattr(optimizer, "register_step_post_hook"):
                _WATCHED.add(optimizer)
                optimizer.register_step_post_hook(_mark)


def _mark(optimizer: Any, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                setattr(parameter.grad, _APPLIED, parameter.grad._version)


def waits(gradient: torch.Tensor) -> bool:
    """Whether a gradient was not yet applied, as far as is known."""
    return getattr(gradient, _APPLIED, None) != gradient._version
