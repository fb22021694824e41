"""Remote files by range requests: what opening and loading cost, and what goes wrong on a network."""

from __future__ import annotations

import builtins
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import torchkeep as tk
from torchkeep.engines.ranges import RangeSource
from torchkeep.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    MissingDependencyError,
    OpenError,
)


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, with ranges unless told otherwise, and counts what it sends."""

    folder: Path
    ranges = True
    status = 0
    tag = "one"
    requests = 0
    sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.requests += 1
        path = self.server.folder / self.path.lstrip("/").partition("?")[0]
        if self.server.status or not path.is_file():
            self.send_error(self.server.status or 404)
            return
        data = path.read_bytes()
        start, stop = 0, len(data)
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted and self.server.ranges:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{self.server.tag}"')
        self.end_headers()
        if self.command == "GET":
            self.server.sent += stop - start
            self.wfile.write(data[start:stop])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.folder = tmp_path
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def state() -> dict[str, torch.Tensor]:
    return {f"layer{i}.weight": torch.full((50_000,), float(i)) for i in range(200)}


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_one_tensor_costs_one_tensor(server: Server, kind: str) -> None:
    path = server.folder / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind == "zip")
    ckpt = tk.open(f"{server.address}/weights.{kind}")
    assert len(ckpt) == 200
    scattered = kind == "legacy"  # the count in front of each storage is somewhere else in the file
    assert server.sent < path.stat().st_size if scattered else server.sent < 1_000_000
    assert server.requests < 450 if scattered else server.requests < 10
    before = server.sent, server.requests
    assert ckpt["layer7.weight"].load().tolist() == [7.0] * 50_000
    assert server.sent - before[0] < 200_000 + 4 * 65_536
    assert server.requests - before[1] <= 4


def test_rows_cost_rows_and_large_tensors_come_in_parts(server: Server) -> None:
    whole = torch.arange(5_000_000.0).view(1000, 5000)
    torch.save({"w": whole}, server.folder / "w.pth")
    ckpt = tk.open(f"{server.address}/w.pth")
    before = server.sent
    assert torch.equal(ckpt["w"][500:502], whole[500:502])
    assert server.sent - before < 40_000 + 3 * 65_536
    assert torch.equal(ckpt["w"].load(), whole)


def test_shards_of_a_folder_are_found_by_their_index(server: Server) -> None:
    save_file({"a": torch.ones(2)}, server.folder / "one.safetensors")
    (server.folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    ckpt = tk.open(f"{server.address}/model.safetensors.index.json")
    assert ckpt["a"].load().tolist() == [1, 1]


def test_lying_records_of_remote_archives_are_refused_when_they_are_read(server: Server) -> None:
    torch.save({"a": torch.ones(40_000)}, server.folder / "w.pth")
    data = bytearray((server.folder / "w.pth").read_bytes())
    at = data.index(b"w/data/0")
    data[at : at + 8] = b"w/data/9"
    (server.folder / "w.pth").write_bytes(data)
    ckpt = tk.open(f"{server.address}/w.pth")
    with pytest.raises(CorruptCheckpointError, match="is called"):
        ckpt["a"].load()


def test_what_goes_wrong_is_said(server: Server) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no such file"):
        tk.open(f"{server.address}/nothing.pth")
    torch.save({"a": torch.ones(300_000)}, server.folder / "w.pth")
    server.status = 403
    with pytest.raises(OpenError, match="credentials"):
        tk.open(f"{server.address}/w.pth")
    server.status = 0
    ckpt = tk.open(f"{server.address}/w.pth")
    server.tag = "two"
    with pytest.raises(CorruptCheckpointError, match="changed while it was open"):
        ckpt["a"].load()
    server.ranges = False
    with pytest.raises(OpenError, match=r"range|bytes"):
        tk.open(f"{server.address}/w.pth")


def test_an_unreachable_server_is_named() -> None:
    with pytest.raises(OpenError, match=r"127\.0\.0\.1"):
        tk.open("http://127.0.0.1:1/w.pth")


def test_siblings_stay_below_their_folder(server: Server) -> None:
    (server.folder / "a.bin").write_bytes(b"a" * 10)
    source = RangeSource(f"{server.address}/a.bin")
    for name in ("../a.bin", "/etc/passwd", "x/y", ".."):
        with pytest.raises(CorruptCheckpointError, match="no plain file name"):
            source.sibling(name)
    assert bytes(source.sibling("a.bin").read(0, 10)) == b"a" * 10


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"obstore"):
        tk.open("https://example.invalid/w.pth")
