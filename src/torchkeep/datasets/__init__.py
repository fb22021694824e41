"""Where labelled examples come from: one kind a file, each recognised by what is given and asked in turn."""

from __future__ import annotations

from typing import Any, Protocol

from ..core.transfer import Examples

DATASETS = {
    "folder": "datasets.folder:ImageFolder",
    "npz": "datasets.npz:ArrayFile",
    "sklearn": "datasets.bundled:Bundled",
    "module": "datasets.named:Named",
    "pairs": "datasets.pairs:Pairs",
}


class Dataset(Protocol):
    """Reads one kind of data set.

    Attributes:
        name: short, as in the table above.
        wants: what it takes, in words, for the error of a source that nobody knows.
    """

    name: str
    wants: str

    def reads(self, source: Any) -> bool:
        """Whether this is one. Never raises."""
        ...

    def read(self, source: Any, *, size: tuple[int, int] | None, limit: int | None) -> Examples:
        """The examples, with what was changed or left out in their notes.

        Args:
            source: what `reads` said yes to.
            size: height and width that images are brought to; as they are if None.
            limit: at most so many examples.

        Raises:
            DataError: they cannot be read, or are no examples of classes.
        """
        ...
