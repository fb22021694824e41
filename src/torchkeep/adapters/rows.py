"""The rows of a head: one for each class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..core.plan import Fit
from ..core.tensors import TensorSpec

Label = int | str


class Rows:
    """Copies the rows of the classes that both sides have; without any labels all rows stay the model's own.

    >>> tk.load_into(model, "imagenet.pth", adapt={"fc": tk.adapters.rows(labels={281: 0, 285: 1})})  # doctest: +SKIP

    Rows lie along the first dimension, so one adapter serves the weight and the bias of a head. Rows of the model that
    no label leads to keep the values that the model gave them.

    Args:
        labels: {old: new}: which class of the source is which of the model, by number, or by name where `old` or `new`
            has names.
        old: names of the classes in the source, in the order of the rows.
        new: names of the classes in the model. What is called the same in both is the same class, unless `labels` say
            otherwise.

    Raises:
        ValueError: a name stands twice or is not there, or two rows would become one.
    """

    name = "rows"

    def __init__(
        self,
        labels: Mapping[Label, Label] | Iterable[Sequence[Label]] | None = None,
        *,
        old: Sequence[str] | None = None,
        new: Sequence[str] | None = None,
    ) -> None:
        pairs = [] if labels is None else [*(labels.items() if isinstance(labels, Mapping) else labels)]
        self._given = [(before, after) for before, after in pairs]
        self._old, self._new = _numbered("old", old), _numbered("new", new)
        rows: dict[int, int] = {}
        for before, after in self._given:
            _put(rows, _number("old", before, self._old), _number("new", after, self._new))
        said = set(rows.values()) | {self._old[before] for before, _ in self._given if isinstance(before, str)}
        for label in self._new.keys() & self._old.keys():
            if self._new[label] not in rows and self._old[label] not in said:
                rows[self._new[label]] = self._old[label]
        self.rows = dict(sorted(rows.items()))
        """Row of the model -> row of the source."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What makes it again."""
        options: dict[str, Any] = {"labels": [list(pair) for pair in self._given]} if self._given else {}
        return options | {key: list(names) for key, names in (("old", self._old), ("new", self._new)) if names}

    def fit(self, target: TensorSpec, source: TensorSpec) -> Fit:
        """The rows may differ in number, and in nothing else; without labels nothing is taken at all."""
        if not target.shape or not source.shape:
            return Fit(refused="a single number has no rows")
        count, total = target.shape[0], source.shape[0]
        if not self.rows:
            return Fit(f"all {count} rows stay the model's own", taken=0, keeps=True)
        if target.shape[1:] != source.shape[1:]:
            return Fit(
                refused=f"rows of {list(source.shape[1:])} in the source, of {list(target.shape[1:])} in the model"
            )
        for what, numbers, most in (("model", self.rows.keys(), count), ("source", self.rows.values(), total)):
            beyond = [number for number in numbers if number >= most]
            if beyond:
                return Fit(refused=f"row {beyond[0]} of the {what} is asked for, and it has {most}")
        size = target.numel // count if count else 0
        own = count - len(self.rows)
        says = f"{len(self.rows)} of {count} rows copied" + (f", {own} stay the model's own" if own else "")
        return Fit(says, taken=len(self.rows) * size, keeps=own > 0)

    def apply(self, value: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
        """What the model has, with the rows of the source in their places."""
        out = current.clone()
        if self.rows:
            to, origin = (torch.tensor([*ones], device=value.device) for ones in (self.rows.keys(), self.rows.values()))
            out[to.to(out.device)] = value[origin].to(out)
        return out


def _numbered(what: str, names: Sequence[str] | None) -> dict[str, int]:
    numbered = {name: number for number, name in enumerate(names or ())}
    if len(numbered) != len(names or ()):
        twice = next(name for number, name in enumerate(names or ()) if numbered[name] != number)
        raise ValueError(f"the class {twice!r} stands twice in {what}=")
    return numbered


def _number(what: str, label: Label, numbered: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label not in numbered:
            raise ValueError(f"there is no class {label!r} in {what}=[...], which names the classes in their order")
        return numbered[label]
    if isinstance(label, bool) or not isinstance(label, int) or label < 0:
        raise ValueError(f"{label!r} is no row: rows are counted from 0, or named")
    return label


def _put(rows: dict[int, int], before: int, after: int) -> None:
    if rows.setdefault(after, before) != before:
        raise ValueError(f"rows {rows[after]} and {before} would both become row {after}")
