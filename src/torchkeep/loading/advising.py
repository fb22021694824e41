"""What would have worked: the hint of a load that was refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..adapters.channels import Channels
from ..adapters.positions import Positions
from ..core.plan import Adapter, Mismatch, Rule, Specs
from ..core.report import LoadReport
from ..rules.suggesting import by_structure_alone, suggestions


def advice(report: LoadReport, source: Specs, rules: Iterable[Rule], allowing: str) -> str:
    """The options that would load more, the one that loads most first, and at last what names the rest.

    Args:
        report: of the load that was refused.
        source: dtype and shape of all that the source has.
        rules: those that were asked already; they are not proposed again.
        allowing: the hint that names what is left over.
    """
    plan = report.plan
    known = {rule.name for rule in rules}
    left = {name: plan.target[name] for name in plan.missing}
    options = list(suggestions(left, {name: source[name] for name in plan.unexpected}, known))
    if not options and plan.missing and "structural" in known and len(known) > 1:
        options = by_structure_alone(plan.target, source, more_than=len(plan.moves))
    if options:
        options[0] = f"if these are meant: {options[0]}"
    adapting = dict(_adapting(plan.mismatched, plan.target, source))
    if adapting:
        options.append(
            f"to make them fit: adapt={{{', '.join(f'{key!r}: {value}' for key, value in adapting.items())}}}"
        )
    return "; or ".join([*options, allowing] if allowing.startswith("if that") else options or [allowing])


def _adapting(mismatched: Iterable[Mismatch], target: Specs, source: Specs) -> Iterator[tuple[str, str]]:
    """Names of the model and the adapters, as one would write them, that keep what such tensors compute."""
    for one in mismatched:
        to, origin = target[one.target], source[one.source]
        for said, adapter in _adapters(one.target):
            fit = adapter.fit(to, origin)
            if fit is not None and not fit.refused:
                yield one.target, said
                break


def _adapters(name: str) -> Iterator[tuple[str, Adapter]]:
    """What may be meant for a tensor of this name: by shapes alone positions could be the kernels of a convolution."""
    if "pos" in name.lower():
        yield "'positions'", Positions()
        yield "tk.adapters.positions(prefix=1)", Positions(1)
    elif name.rpartition(".")[2] == "weight":
        yield "'channels'", Channels()
