"""The small real data sets that come with scikit-learn."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..core.transfer import Examples
from ..errors import DataError, MissingDependencyError
from ._arrays import Size, examples_of

_PREFIX = "sklearn:"
_KNOWN = ("digits", "wine", "breast_cancer", "iris")


class Bundled:
    """`sklearn:digits` and three tables."""

    name = "sklearn"
    wants = f"{', '.join(_PREFIX + name for name in _KNOWN)}"

    def reads(self, source: Any) -> bool:
        """By the prefix."""
        return isinstance(source, str) and source.startswith(_PREFIX)

    def read(self, source: Any, *, size: Size | None, limit: int | None) -> Examples:
        """Digits as images [n, 1, 8, 8], the tables with each feature brought to mean 0 and variance 1."""
        which = str(source).removeprefix(_PREFIX)
        if which not in _KNOWN:
            raise DataError(f"there is no data set {source!r}", hint=f"there are {self.wants}")
        try:
            found = getattr(importlib.import_module("sklearn.datasets"), f"load_{which}")()
        except ImportError as error:
            raise MissingDependencyError(
                f"{source} needs scikit-learn, which is not installed", hint="pip install 'torchkeep[demo]'"
            ) from error
        if which == "digits":
            inputs, note = found.images[:, None].astype(np.float32) / 16, "pixels were divided by 16"
        else:
            inputs = ((found.data - found.data.mean(axis=0)) / found.data.std(axis=0)).astype(np.float32)
            note = "each feature was brought to mean 0 and variance 1"
        names = [str(name) for name in found.target_names]
        return examples_of(inputs, found.target, title=source, size=size, limit=limit, names=names, notes=[note])
