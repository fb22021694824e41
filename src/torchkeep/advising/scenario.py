"""The rule of thumb of the textbooks: small or large data, similar or different from those of the pretraining.

The four cases are those of the usual two by two table. Stanford's CS231n notes say the same of similar data. For a
small set that is different they put a linear classifier on earlier activations, where others freeze the first blocks
and retrain the rest; for a large one they add that pretrained weights are often still the better start.
No textbook says what small is: `PER_CLASS` and `PER_EXAMPLE` are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..core.table import human_count
from ..core.transfer import AMBIGUOUS, DIFFERENT, SIMILAR
from ..core.transfer_plan import Scenario

PER_CLASS = 50
"""With fewer examples in the median class a set is small."""
PER_EXAMPLE = 10_000
"""With more parameters of the model for each example a set is small for the model."""

_CASES: dict[tuple[bool, str], Scenario] = {
    (True, SIMILAR): "feature-extractor",
    (True, DIFFERENT): "freeze-first",
    (False, DIFFERENT): "from-scratch",
    (False, SIMILAR): "fine-tune-all",
}


@dataclass(frozen=True)
class Size:
    """How large a data set is for a model.

    Attributes:
        examples: in all.
        per_class: examples of the median class.
        per_example: parameters of the model for each example.
    """

    examples: int
    per_class: float
    per_example: float

    @classmethod
    def of(cls, counts: Sequence[int], parameters: int) -> Size:
        """The size of a set with so many examples of each class, for a model with so many parameters."""
        examples = sum(counts)
        return cls(examples, median(counts) if counts else 0, parameters / examples if examples else math.inf)

    @property
    def small(self) -> bool:
        """Whether the textbook would call it small."""
        return self.per_class < PER_CLASS or self.per_example > PER_EXAMPLE

    def __str__(self) -> str:
        word = "small" if self.small else "large"
        figures = (
            f"{self.per_class:g} examples in the median class, {human_count(self.per_example)} parameters an example"
        )
        return f"{word}: {figures} (small is below {PER_CLASS}, or above {human_count(PER_EXAMPLE)})"


def scenario_of(size: Size, verdict: str) -> Scenario:
    """The case of the textbook; `ambiguous` where it cannot be told how similar the data are.

    >>> scenario_of(Size(100, 10, 5_000), "similar"), scenario_of(Size(5_000, 500, 80), "ambiguous")
    ('feature-extractor', 'ambiguous')
    """
    return "ambiguous" if verdict == AMBIGUOUS else _CASES[size.small, verdict]
