"""The input channels of a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.plan import Fit
from ..core.tensors import TensorSpec


class Channels:
    """Makes a convolution take another number of channels and compute what it did.

    For one channel the kernels are summed over the old channels: a grey image gives what it gave when it was repeated
    over all of them. More channels than before start with zeros, so they are ignored until they are trained. Any other
    number is refused: nothing says which of the old channels would be meant.
    """

    name = "channels"

    @property
    def options(self) -> Mapping[str, Any]:
        """What makes it again."""
        return {}

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit | None:
        """Kernels that differ in the second dimension alone."""
        if target.shape == source.shape:
            return None
        to, origin = target.shape, source.shape
        if len(to) < 3 or len(to) != len(origin) or (to[0], *to[2:]) != (origin[0], *origin[2:]):
            return Fit(refused=f"from {list(origin)} to {list(to)} more than the input channels differ")
        if not (source.dtype.is_floating_point or source.dtype.is_complex):
            return Fit(refused=f"kernels of {source.dtype} are not adapted")
        if to[1] == 1:
            return Fit(f"{origin[1]} input channels summed into one", selects=False)
        if to[1] > origin[1]:
            return Fit(f"input channels {origin[1]} to {to[1] - 1} start at zero")
        return Fit(refused=f"nothing says which of {origin[1]} input channels {to[1]} stand for")

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """The kernels for as many channels as the model has."""
        return with_channels(value, current.shape[1])


def with_channels(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Kernels of shape (out, in, ...) for one input channel, or for more than they have."""
    if channels == 1:
        # Half precision is summed in single precision and rounded once.
        wide = weight if weight.dtype.itemsize >= 4 else weight.float()
        return wide.sum(1, keepdim=True).to(weight.dtype)
    more = weight.new_zeros(weight.shape[0], channels - weight.shape[1], *weight.shape[2:])
    return torch.cat([weight, more], 1)
