"""What it takes to make the model of a file, class by class."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table


@dataclass(frozen=True, slots=True)
class ClassPlan:
    """One class of modules.

    Attributes:
        name: as the file has it.
        count: of the modules.
        made: where it comes from: `given`, `torch.nn`, `trusted`, or `skeleton` where it is not here.
        source: its text, where the file has it. It is never run.
    """

    name: str
    count: int
    made: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What would be made of a file: `print(plan)`, `plan.missing`.

    Attributes:
        file: what was opened.
        classes: in the order of the modules.
        notes: what is not made again.
    """

    file: str
    classes: tuple[ClassPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The classes without which modules become skeletons."""
        return tuple(one.name for one in self.classes if one.made == "skeleton")

    def table(self) -> Table:
        """One row a class."""
        return Table(
            title=self.file,
            facts=(("modules", str(sum(one.count for one in self.classes))), ("missing", ", ".join(self.missing))),
            columns=("class", "count", "made by", "source in the file"),
            rows=tuple((one.name, str(one.count), one.made, "yes" if one.source else "") for one in self.classes),
            notes=self.notes,
        )

    def __str__(self) -> str:
        return str(self.table())
