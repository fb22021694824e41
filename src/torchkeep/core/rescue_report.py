"""What was rescued of a model whose code is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .table import Table, human_bytes


@dataclass(frozen=True, slots=True)
class RescueReport:
    """What `rescue` wrote: `print(report)`.

    Attributes:
        source: the file.
        target: the folder.
        modules: how many the model has.
        tensors, nbytes: of its weights.
        classes: name of each missing class -> its name in `classes.py`.
        files: what is in the folder, relative to it.
        notes: what is left out.
        steps: what to do next, the lines as they are written.
    """

    source: str
    target: str
    modules: int
    tensors: int
    nbytes: int
    classes: Mapping[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()

    def table(self) -> Table:
        """The files, and what to do next."""
        return Table(
            title=f"rescued {self.source}",
            facts=(
                ("written to", self.target),
                ("modules", str(self.modules)),
                ("weights", f"{self.tensors} tensors, {human_bytes(self.nbytes)}"),
                ("missing", ", ".join(self.classes)),
            ),
            columns=("file", "what"),
            rows=tuple((name, _WHAT.get(name, "source text from the file, never run")) for name in self.files),
            notes=(*self.notes, *(f"next: {step}" for step in self.steps)),
        )

    def __str__(self) -> str:
        return str(self.table())


_WHAT = {
    "weights.safetensors": "the weights",
    "modules.txt": "the modules, with attributes, tensors and hooks",
    "classes.py": "Python classes to complete",
}
