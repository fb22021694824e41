"""The decision: which rules and adapters are meant, and what they make of a model and its sources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ..adapters import ADAPTERS
from ..core.live import live_tensors, spec_of, state_of, tied_names, unwrapped
from ..core.names import Selector, is_under
from ..core.plan import Adapter, Adapting, LoadPlan, Match, Rule, Specs, paired_by, plan_of
from ..core.registry import make_part
from ..core.table import shorten
from ..errors import LoadError
from ..rules import DEFAULT_RULES, RULES
from .sourcing import EXTRA, Part, Weights, joined

Rules = Iterable[str | Rule] | str | Rule | None
Adapt = Mapping[Any, str | Adapter] | None


def rules_of(rules: Rules, match: str | Rule | None) -> list[Rule]:
    """The rules that are meant: the default ones or those that are given, and the one more that is asked for."""
    if rules is not None and (isinstance(rules, str) or not isinstance(rules, Iterable)):
        rules = [rules]
    chosen = [*(DEFAULT_RULES if rules is None else rules), *([] if match is None else [match])]
    return [make_part(RULES, rule, "rule") for rule in chosen]


def adapting_of(adapt: Adapt, target: Specs) -> Adapting:
    """The adapters that are meant, each with the names of the model that it is for.

    Raises:
        SelectorError: a selector chooses nothing of the model.
        ValueError: there is no adapter of that name.
    """
    if adapt is not None and not isinstance(adapt, Mapping):
        raise TypeError("adapt= is a dict from names of the model to adapters, as in adapt={'fc': 'rows'}")
    chosen = [(Selector.of(key), make_part(ADAPTERS, adapter, "adapter")) for key, adapter in (adapt or {}).items()]
    for selector, _ in chosen:
        selector.check(target, "adapt", "the model")
    return chosen


def targets_of(model: nn.Module) -> tuple[Specs, dict[str, str]]:
    """dtype and shape of everything in a model that can be loaded, and which names are one tensor.

    Raises:
        LoadError: something has no shape yet, or only a hook makes it.
    """
    live, extra = state_of(model)
    lazy = [name for name, tensor in live.items() if is_lazy(tensor)]
    if lazy:
        raise LoadError(f"{shorten(lazy, 3)} of the model have no shape yet", hint="run one batch through the model")
    unreachable = sorted(live.keys() - live_tensors(unwrapped(model)).keys())
    if unreachable:
        raise LoadError(
            f"{shorten(unreachable, 3)} of its state dict are no parameters or buffers of the model: a hook makes them",
            hint="load with the model's own load_state_dict",
        )
    specs = {name: spec_of(tensor) for name, tensor in live.items()} | dict.fromkeys(extra, EXTRA)
    return specs, tied_names(live)


def planned(model: nn.Module, weights: Weights, rules: list[Rule], adapt: Adapt) -> LoadPlan:
    """What the rules and adapters make of a model and its sources, each part of them for the module it is for."""
    target, tied = targets_of(model)
    adapting = adapting_of(adapt, target)
    paired: dict[str, Match] = {}
    for part in weights.parts:
        own = _own_names(part, weights, target)
        for to, match in paired_by(own, part.specs, rules).items():
            paired[joined(part.path, to)] = match._replace(source=joined(part.path, match.source))
    return plan_of(target, weights.specs, paired, tied, adapting)


def _own_names(part: Part, weights: Weights, target: Specs) -> Specs:
    """What a part is for, by names below its module: what no part for a module further inside is for."""
    inner = [one.path for one in weights.parts if one.path != part.path and is_under(one.path, part.path)]
    lead = f"{part.path}." if part.path else ""
    return {
        name[len(lead) :]: spec
        for name, spec in target.items()
        if name.startswith(lead) and not any(is_under(name, path) for path in inner)
    }
