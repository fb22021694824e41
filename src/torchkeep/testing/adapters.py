"""What every adapter promises: it decides by specs alone, changes nothing it is given, and can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from ..core.plan import Adapter
from ..core.tensors import TensorSpec

Shape = tuple[int, ...]


class AdapterTests:
    """Inherit this, make `adapter`, and list shapes that it can adapt and shapes that it has to refuse.

    >>> class TestMine(AdapterTests):                              # doctest: +SKIP
    ...     fitting = (((3, 8), (5, 8)),)
    ...     refused = (((5, 7), (5, 8)),)
    ...     def adapter(self, **options):
    ...         return Mine(**options)

    Attributes:
        fitting: pairs of a shape in the model and one in the source that are made to fit.
        refused: pairs that are not.
    """

    fitting: tuple[tuple[Shape, Shape], ...] = ()
    refused: tuple[tuple[Shape, Shape], ...] = ()

    def adapter(self, **options: Any) -> Adapter:
        """The adapter; with options, one that is made of those and nothing else."""
        raise NotImplementedError("make the adapter that is tested")

    def test_it_says_what_it_does(self) -> None:
        """By specs alone, and the same each time."""
        assert self.fitting, "list shapes that it can adapt"
        for target, source in self._specs(self.fitting):
            fit, again = (self.adapter().fit(target, source) for _ in range(2))
            assert fit is not None and fit.says and not fit.refused and fit == again, (target, source, fit)
            assert fit.taken is None or 0 <= fit.taken <= target.numel

    def test_it_refuses_what_it_cannot_do(self) -> None:
        """With a reason; nothing is reshaped, transposed or cut silently."""
        for target, source in self._specs(self.refused):
            fit = self.adapter().fit(target, source)
            assert fit is not None and fit.refused, (target, source, fit)

    def test_it_makes_the_shape_of_the_model_and_changes_nothing(self) -> None:
        """The result is a tensor of its own; in the dtype of either side."""
        for target, source in self._specs(self.fitting):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                value = _filled(source.shape, dtype)
                current = -_filled(target.shape, torch.float32)
                before = value.clone(), current.clone()
                made = self.adapter().apply(value, current)
                assert tuple(made.shape) == target.shape and made.dtype in {dtype, torch.float32}
                made.zero_()
                assert torch.equal(value, before[0]) and torch.equal(current, before[1])

    def test_its_options_make_it_again(self) -> None:
        """They are plain JSON, for a plan in a file."""
        first = self.adapter()
        options: Mapping[str, Any] = json.loads(json.dumps(dict(first.options)))
        second = self.adapter(**options)
        assert (second.name, dict(second.options)) == (first.name, dict(first.options))
        for target, source in self._specs(self.fitting):
            assert first.fit(target, source) == second.fit(target, source)
            value, current = _filled(source.shape, torch.float32), -_filled(target.shape, torch.float32)
            assert torch.equal(first.apply(value, current), second.apply(value, current))

    def _specs(self, pairs: tuple[tuple[Shape, Shape], ...]) -> list[tuple[TensorSpec, TensorSpec]]:
        return [(TensorSpec(torch.float32, target), TensorSpec(torch.float32, source)) for target, source in pairs]


def _filled(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    count = TensorSpec(dtype, shape).numel
    return (torch.arange(count, dtype=torch.float32) + 1).reshape(shape).to(dtype)
