"""How deep into the network the new classes get easier to tell apart."""

from __future__ import annotations

import torch

from ..core.similarity import Seen, gain
from ..core.transfer import AMBIGUOUS, Signal


class ProbeDepth:
    """At which block a linear probe is best, from 0, the first, to 1, the last; the interval has what is no worse.

    A hint where to cut or what to freeze. It counts nothing in the verdict: blocks differ in how many features they
    have, and with fresh weights there is a best one too.
    """

    code = "probe-depth"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal; None for a network of one block."""
        if len(seen.blocks) < 2:
            return None
        hits = seen.probes[0]
        accuracy = hits.mean(dim=1)
        best = int(accuracy.argmax())
        ties = [place for place in range(len(hits)) if _as_good(hits[place], hits[best])]
        steps = len(hits) - 1
        fresh = seen.probes[1:].mean(dim=2).argmax(dim=1).double() / steps
        details = {
            "block": seen.blocks[best],
            "as good": [seen.blocks[place] for place in ties],
            "fresh": [float(one) for one in fresh],
        }
        message = f"a linear probe is best on {seen.blocks[best]} and as good from {seen.blocks[ties[0]]} on"
        return Signal(self.code, best / steps, ties[0] / steps, ties[-1] / steps, AMBIGUOUS, 0.0, message, details)


def _as_good(hits: torch.Tensor, best: torch.Tensor) -> bool:
    """Whether accuracy lies within one standard error of the best, paired."""
    value, error = gain(torch.stack([best, hits]))
    return value <= error
