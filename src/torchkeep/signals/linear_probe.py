"""Whether a linear rule tells the new classes apart in the frozen features."""

from __future__ import annotations

import torch

from ..core.similarity import Seen, gain, signal_of_gain
from ..core.transfer import Signal


class LinearProbe:
    """Accuracy of a linear probe on the best block, less that on the best block of a copy with fresh weights."""

    code = "linear-probe"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal, with the figures of every block; None without a copy."""
        if not seen.copies:
            return None
        accuracy = seen.probes.mean(dim=2)
        best = accuracy.argmax(dim=1)
        hits = seen.probes[torch.arange(len(best)), best]
        return signal_of_gain(
            self.code, hits, "a linear probe on the best block", 1.0, {"blocks": by_block(seen, seen.probes)}
        )


def by_block(seen: Seen, hits: torch.Tensor) -> list[dict[str, object]]:
    """For each block its accuracy, that with fresh weights, and the standard error of the difference."""
    rows: list[dict[str, object]] = []
    for place, name in enumerate(seen.blocks):
        value, error = gain(hits[:, place])
        accuracy = float(hits[0, place].mean())
        rows.append({"block": name, "accuracy": accuracy, "fresh": accuracy - value, "stderr": error})
    return rows
