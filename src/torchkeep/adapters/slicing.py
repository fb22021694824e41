"""Cutting off and filling up, where that is what is meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.plan import Fit
from ..core.tensors import TensorSpec

OWN = "own"


class Slicing:
    """Takes the leading part of every dimension that is larger in the source.

    What this computes is in general not what the source computed. A dimension that is smaller in the source is refused
    unless `pad` says what comes behind.

    Args:
        pad: a number, or `own` for what the model has there.

    Raises:
        ValueError: `pad` is neither.
    """

    name = "slicing"

    def __init__(self, pad: float | str | None = None) -> None:
        if not (pad is None or pad == OWN or (isinstance(pad, (int, float)) and not isinstance(pad, bool))):
            raise ValueError(f"pad is {pad!r}; it is a number or {OWN!r}")
        self.pad = pad

    @property
    def options(self) -> Mapping[str, Any]:
        """What makes it again."""
        return {} if self.pad is None else {"pad": self.pad}

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit | None:
        """Tensors of as many dimensions."""
        if target.shape == source.shape:
            return None
        to, origin = target.shape, source.shape
        if len(to) != len(origin):
            return Fit(refused=f"{list(origin)} and {list(to)} have not as many dimensions")
        common = TensorSpec(target.dtype, tuple(map(min, to, origin)))
        padded = common.shape != to
        if padded and self.pad is None:
            return Fit(refused=f"{list(origin)} is smaller than {list(to)}, and pad= does not say what comes behind")
        says = f"{list(common.shape)} of {list(origin)}" + (f", padded with {self.pad}" if padded else "")
        return Fit(says, taken=common.numel, keeps=padded and self.pad == OWN, selects=self.pad in (None, OWN, 0))

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The part that both have; behind it what `pad` says."""
        out = current.clone()
        if isinstance(self.pad, (int, float)):
            out.fill_(self.pad)
        part = tuple(slice(0, min(a, b)) for a, b in zip(value.shape, current.shape, strict=True))
        out[part] = value[part].to(out)
        return out
