"""A checkpoint as what another model was made of."""

from __future__ import annotations

import os

from .about import Parent
from .checkpoint import Checkpoint
from .facts import NO_DIGEST, FileFacts


def parent_of(ckpt: Checkpoint, digest: str = "") -> Parent:
    """A checkpoint as a parent, with its own lineage.

    Args:
        ckpt: opened or edited.
        digest: of its file, where torchkeep did not write one into it.
    """
    about = ckpt.about
    return Parent(name_of(ckpt), header_digest(ckpt) or digest, about.licence, about.source, about.parents)


def name_of(ckpt: Checkpoint) -> str:
    """The file as the caller named it, in UTF-8 whatever the name is."""
    return os.fspath(ckpt.file).encode("utf-8", "backslashreplace").decode()


def header_digest(ckpt: Checkpoint) -> str:
    """`header:` and the digest that torchkeep wrote into a file of one piece, which covers all of it; else empty."""
    header = ckpt.facts.header if isinstance(ckpt.facts, FileFacts) else ""
    return f"header:{header}" if header not in {"", NO_DIGEST} else ""
