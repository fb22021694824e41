"""What the model gets right as it is."""

from __future__ import annotations

import math

import torch

from ..core.similarity import SURE, Seen
from ..core.transfer import AMBIGUOUS, DIFFERENT, SIMILAR, Signal

_HALF, _QUARTER = 0.5, 0.25  # of the way from chance to always right


class ZeroShot:
    """Accuracy of the old head without any training, on the examples whose class it knows by name.

    More than half the way from chance to always right says `similar`, less than a quarter of it `different`. Where the
    names do not map it is a hint: accuracy if each old class stands for what the others of its examples mostly are.
    """

    code = "zero-shot"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal; None without answers of an old head."""
        answers = seen.model.answers
        if answers is None:
            return None
        mapped = _mapped(seen.old_labels, seen.classes) if len(seen.old_labels) == answers.shape[1] else {}
        if len(mapped) < 2:
            return self._hint(seen, answers)
        known = torch.isin(seen.labels, torch.tensor(list(mapped)))
        if not known.any():
            return self._hint(seen, answers)
        columns = torch.tensor([mapped[label] for label in mapped])
        chosen = torch.tensor(list(mapped))[answers[known][:, columns].argmax(dim=1)]
        hits, labels = (chosen == seen.labels[known]).double(), seen.labels[known]
        value, low, high = _share(hits)
        chance = float(torch.bincount(labels).max()) / len(labels)
        says = AMBIGUOUS
        if low > chance + _HALF * (1 - chance):
            says = SIMILAR
        elif high < chance + _QUARTER * (1 - chance):
            says = DIFFERENT
        message = f"as it is the model is right for {value:.0%} of {len(labels)} examples, where chance is {chance:.0%}"
        details = {"chance": chance, "classes": [seen.classes[label] for label in mapped]}
        return Signal(self.code, value, low, high, says, 2.0, message, details)

    def _hint(self, seen: Seen, answers: torch.Tensor) -> Signal:
        value, low, high = _share(_by_majority(answers.argmax(dim=1), seen.labels))
        message = f"if each old class stood for the class that its examples mostly have, {value:.0%} would be right"
        return Signal(self.code, value, low, high, AMBIGUOUS, 0.0, message, {"classes": []})


def _mapped(old: tuple[str, ...], classes: tuple[str, ...]) -> dict[int, int]:
    """Label -> index of the old class of the same name, whatever its case and the marks between words."""
    places = {_plain(name): place for place, name in enumerate(old)}
    return {label: places[_plain(name)] for label, name in enumerate(classes) if _plain(name) in places}


def _plain(name: str) -> str:
    return " ".join("".join(char if char.isalnum() else " " for char in name.casefold()).split()) or name


def _by_majority(chosen: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Hits when each answer stands for the most frequent label of the other examples with that answer."""
    counts = torch.zeros(int(chosen.max()) + 1, int(labels.max()) + 1, dtype=torch.float64)
    counts.index_put_((chosen, labels), torch.ones(len(labels), dtype=torch.float64), accumulate=True)
    others = counts[chosen]
    others[torch.arange(len(labels)), labels] -= 1
    often = torch.bincount(labels).double() / (1 + len(labels))  # decides between equals
    return ((others + often).argmax(dim=1) == labels).double()


def _share(hits: torch.Tensor) -> tuple[float, float, float]:
    """A share with its interval (Wilson 1927)."""
    count, value = len(hits), float(hits.mean())
    middle = (value + SURE**2 / (2 * count)) / (1 + SURE**2 / count)
    half = SURE * math.sqrt(value * (1 - value) / count + SURE**2 / (4 * count**2)) / (1 + SURE**2 / count)
    return value, max(0.0, middle - half), min(1.0, middle + half)
