"""Whether the old classes have to do with the new ones."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..core.similarity import Seen, compact, signal_of_gain
from ..core.transfer import AMBIGUOUS, DIFFERENT, Signal


class OldAnswers:
    """Accuracy of a linear probe on what the old head says, less the same with fresh weights.

    The head keeps of the features what its own classes need. A probe that finds the new classes in that little, where
    in as much of a random network it does not, shows that both tasks ask for the same things, whatever their names.
    That it does not find them shows nothing: features may have what the old head throws away, and a head may be fresh.
    """

    code = "old-answers"

    def measure(self, seen: Seen) -> Signal | None:
        """The signal; None without answers of an old head."""
        answers = [net.answers for net in seen.nets if net.answers is not None]
        if len(answers) < len(seen.nets) or len(answers) < 2:
            return None
        hits = torch.stack([seen.probed(compact(one)) for one in answers])
        found = signal_of_gain(self.code, hits, "a probe on what the old head says", 0.5)
        return replace(found, says=AMBIGUOUS) if found.says == DIFFERENT else found
