"""A local store keeps to its five methods; a mapped source stays in its folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchkeep as tk
from torchkeep.engines.mapped import MappedSource
from torchkeep.errors import CorruptCheckpointError, KeyNotFoundError, SaveError, UnsupportedFeatureError


def read(store: object, key: str) -> bytes:
    source = store.source(key)
    return bytes(source.read(0, source.size))


def test_the_five_methods(tmp_path: Path) -> None:
    store = tk.local_store(tmp_path / "deep" / "run")
    assert store.put("packs/a", [b"one", b"", memoryview(b"two")], nbytes=6)
    assert not store.put("packs/a", [b"other"]), "what is there stays"
    assert read(store, "packs/a") == b"onetwo"
    assert store.put("packs/a", [b"new"], replace=True) and read(store, "packs/a") == b"new"
    store.append("log", b"1\n")
    store.append("log", b"2\n", durable=True)
    assert read(store, "log") == b"1\n2\n"
    store.put("packs/b", [])
    assert store.keys("packs/") == ["packs/a", "packs/b"] and store.keys("none/") == []
    assert read(store, "packs/b") == b""
    store.delete("packs/a")
    store.delete("packs/a")
    assert store.keys("packs/") == ["packs/b"]
    with pytest.raises(KeyNotFoundError, match="has no packs/a"):
        store.source("packs/a")


def test_a_source_reads_its_range_and_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").write_bytes(b"sibling")
    source = MappedSource(tmp_path / "a")
    assert bytes(source.read(2, 3)) == b"234" and bytes(source.read(10, 0)) == b""
    assert bytes(source.sibling("b").read(0, 7)) == b"sibling"
    for offset, nbytes in ((5, 6), (-1, 2), (11, 0), (0, -1)):
        with pytest.raises(CorruptCheckpointError, match="is truncated"):
            source.read(offset, nbytes)
    for name in ("../a", "/etc/hostname", "", ".", "..", "x/y"):
        with pytest.raises(CorruptCheckpointError, match="no plain file name"):
            source.sibling(name)
    with pytest.raises(UnsupportedFeatureError, match="not a regular file"):
        MappedSource("/dev/null")


def test_a_writable_view_never_reaches_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123")
    view = MappedSource(tmp_path / "a").read(0, 4)
    view[0] = ord("X")
    assert (tmp_path / "a").read_bytes() == b"0123"


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="cannot be written"):
        tk.local_store(tmp_path / "file" / "run").put("packs/a", [b"x"])
