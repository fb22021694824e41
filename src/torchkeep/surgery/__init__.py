"""Changing the structure of a model and keeping all else: layers of other sizes, other, fewer or more layers.

Each function leaves a record with the model, which `history` lists, files keep and `replay` does again.
"""

from ..core.operations import Operation
from .dropout import insert_dropout, set_dropout
from .editing import insert, remove, truncate
from .features import Features, extract_features
from .initialising import reinitialise
from .layers import Change, head_of, stem_of
from .recording import history
from .replacing import replace
from .replaying import replay
from .resizing import adapt_input, resize_head

__all__ = [
    "Change",
    "Features",
    "Operation",
    "adapt_input",
    "extract_features",
    "head_of",
    "history",
    "insert",
    "insert_dropout",
    "reinitialise",
    "remove",
    "replace",
    "replay",
    "resize_head",
    "set_dropout",
    "stem_of",
    "truncate",
]
