"""The same name on both sides."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.plan import Specs


class Exact:
    """Pairs equal names."""

    name = "exact"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source for the names on both sides."""
        return {name: name for name in target if name in source}
