"""Embeddings and output layers over a vocabulary that has grown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core.plan import Fit
from ..core.tensors import TensorSpec


class Vocabulary:
    """Copies all rows of the source to the front; the rows that are new keep what the model gave them.

    A vocabulary that has become smaller is refused: `slicing` cuts rows off where that is meant, and `rows` chooses
        them.
    """

    name = "vocabulary"

    @property
    def options(self) -> Mapping[str, Any]:
        """What makes it again."""
        return {}

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit | None:
        """More rows, and nothing else that differs."""
        if target.shape == source.shape:
            return None
        if not target.shape or not source.shape or target.shape[1:] != source.shape[1:]:
            return Fit(
                refused=f"from {list(source.shape)} to {list(target.shape)} more than the number of rows differs"
            )
        more = target.shape[0] - source.shape[0]
        if more < 0:
            return Fit(refused=f"the source has {-more} rows more than the model; rows or slicing chooses which stay")
        return Fit(f"{source.shape[0]} rows kept, {more} new", taken=source.numel, keeps=True)

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """What the model has, with the rows of the source in front."""
        out = current.clone()
        out[: value.shape[0]] = value.to(out)
        return out
