"""The old and the new names of weight norm and spectral norm: `weight_g` is `parametrizations.weight.original0`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.plan import Specs

_NEW = ".parametrizations."

# What stands behind `parametrizations.<parameter>.`, and what the old name appends to the parameter, by kind.
_KINDS: tuple[Mapping[str, str], ...] = (
    {"original0": "_g", "original1": "_v"},
    {"original": "_orig", "0._u": "_u", "0._v": "_v"},
)


class WeightNorm:
    """Pairs the names of torch.nn.utils.weight_norm and spectral_norm with those of torch.nn.utils.parametrizations.

    Either side may have the old names. A parameter is paired only if all of its tensors are there, so that the
    `weight_v` of a weight norm is never taken for that of a spectral norm, and only within a module of the same name.
    """

    name = "weight-norm"

    def match(self, target: Specs, source: Specs, paired: Mapping[str, str]) -> dict[str, str]:
        """target -> source."""
        return {
            **{new: old for new, old in old_names(target).items() if old in source},
            **{old: new for new, old in old_names(source).items() if old in target},
        }


def old_names(names: Iterable[str]) -> dict[str, str]:
    """New name -> old name, for the parameters that carry exactly one weight norm or spectral norm.

    >>> old_names(["fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1", "fc.bias"])
    {'fc.parametrizations.weight.original0': 'fc.weight_g', 'fc.parametrizations.weight.original1': 'fc.weight_v'}
    """
    parts: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        owner, found, rest = f".{name}".rpartition(_NEW)
        parameter, _, part = rest.partition(".")
        if found and part:
            parts.setdefault((owner, parameter), {})[part] = name
    return {
        name: f"{owner}.{parameter}{kind[part]}".removeprefix(".")
        for (owner, parameter), own in parts.items()
        for kind in _KINDS
        if own.keys() == kind.keys()
        for part, name in own.items()
    }
