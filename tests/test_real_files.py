"""Weights that were published, from the package index; `make prove` has the larger packages as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from real import SMALL, check


def test_published_weights_open_and_agree_with_torch(tmp_path: Path, capsys: Any) -> None:
    seen = check(SMALL, tmp_path)
    with capsys.disabled():
        print(f"\n{seen}", end="")
    assert " 0 of them" not in seen
