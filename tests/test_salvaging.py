"""Salvage: wherever a file was cut and whatever was damaged, what is intact comes out, and nothing else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import torchkeep as tk
from torchkeep.errors import CorruptCheckpointError, OpenError, SaveError, TorchkeepError

KINDS = ("zip", "legacy", "safetensors", "own", "deflated", "rezipped")


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"layer{i}.weight": torch.randn(40 + i, 7) for i in range(12)}


def repacked(data: bytes, method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return out.getvalue()


def written(kind: str, folder: Path) -> bytes:
    """A file of the state in one of the containers."""
    path = folder / ("whole.safetensors" if kind in {"safetensors", "own"} else "whole.pth")
    if kind == "safetensors":
        save_file(state(), path)
    elif kind == "own":
        tk.save(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=kind != "legacy")
    data = path.read_bytes()
    path.unlink()
    methods = {"deflated": zipfile.ZIP_DEFLATED, "rezipped": zipfile.ZIP_STORED}
    return repacked(data, methods[kind]) if kind in methods else data


def ends_of(kind: str, data: bytes) -> dict[str, int]:
    """Where the bytes of each tensor end, found by its own bytes; a compressed one ends somewhere before the next."""
    return {
        name: at + tensor.nbytes for name, tensor in state().items() if (at := data.find(tensor.numpy().tobytes())) >= 0
    }


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_was_cut_off_the_rest_is_saved(kind: str, tmp_path: Path) -> None:
    data, whole = written(kind, tmp_path), state()
    ends = ends_of(kind, data)
    assert kind == "deflated" or len(ends) == len(whole)
    path = tmp_path / ("cut.safetensors" if kind in {"safetensors", "own"} else "cut.pth")
    places = {*range(0, len(data), max(1, len(data) // 150))}
    places |= {end + step for end in ends.values() for step in (-1, 0, 1)}
    saved = 0
    for length in sorted(places):
        path.write_bytes(data[:length])
        try:
            report = tk.salvage(path)
        except OpenError:
            possible = [name for name, end in ends.items() if end <= length]
            assert kind == "deflated" or not possible, f"cut to {length}: {possible} were in it"
            continue
        kept = {*report.intact, *report.unverified}
        assert kept | set(report.lost) == set(whole)
        if kind != "deflated":
            assert kept == {name for name, end in ends.items() if end <= length}, length
        saved += len(kept)
    assert saved > 100


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_bitwise_what_it_was(kind: str, tmp_path: Path) -> None:
    data, whole = written(kind, tmp_path), state()
    path = tmp_path / ("cut.safetensors" if kind in {"safetensors", "own"} else "cut.pth")
    path.write_bytes(data[: len(data) * 2 // 3])
    report = tk.salvage(path, tmp_path / "out.safetensors")
    kept = {*report.intact, *report.unverified}
    assert kept and report.lost and not report.ok
    out = load_file(tmp_path / "out.safetensors")
    assert {name for name in out if name in whole} == kept
    assert all(torch.equal(out[name], whole[name]) for name in kept)
    assert tk.verify(tmp_path / "out.safetensors").ok
    again = tk.load(tmp_path / "out.safetensors", verify=True)
    assert all(torch.equal(again[name], whole[name]) for name in kept)


@pytest.mark.parametrize("kind", ["zip", "own", "rezipped"])
def test_a_flipped_bit_costs_its_own_tensor_alone(kind: str, tmp_path: Path) -> None:
    data = written(kind, tmp_path)
    path = tmp_path / ("bad.safetensors" if kind == "own" else "bad.pth")
    for name, tensor in state().items():
        damaged = bytearray(data)
        damaged[data.index(tensor.numpy().tobytes()) + 5] ^= 4
        path.write_bytes(damaged)
        report = tk.salvage(path)
        assert list(report.lost) == [name] and report.lost[name].startswith("damaged")
        assert len(report.intact) == 11 and not report.unverified


def test_ties_and_parts_are_held_against_the_digests_of_what_is_stored(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30))
    model[1].weight = model[0].weight
    values = torch.arange(1.0, 41.0)
    torch.save({"m": model.state_dict(), "s": torch.diag(values).to_sparse(), "x": torch.ones(5)}, tmp_path / "old.pth")
    tk.convert(tmp_path / "old.pth", tmp_path / "own.safetensors")
    report = tk.salvage(tmp_path / "own.safetensors")
    assert report.ok and not report.unverified and {"m.0.weight", "m.1.weight", "s"} <= set(report.intact)
    data = (tmp_path / "own.safetensors").read_bytes()
    for tensor, names in ((values, {"s"}), (model[0].weight.detach(), {"m.0.weight", "m.1.weight"})):
        damaged = bytearray(data)
        damaged[data.index(tensor.numpy().tobytes()) + 9] ^= 4
        (tmp_path / "bad.safetensors").write_bytes(damaged)
        assert set(tk.salvage(tmp_path / "bad.safetensors").lost) == names


def test_the_rest_of_the_object_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    torch.save({"epoch": 7, "model": model.state_dict(), "name": "x"}, tmp_path / "train.pth")
    data = (tmp_path / "train.pth").read_bytes()
    (tmp_path / "train.pth").write_bytes(data[: len(data) * 3 // 4])
    report = tk.salvage(tmp_path / "train.pth", tmp_path / "out.safetensors")
    loaded = tk.load(tmp_path / "out.safetensors")
    assert loaded["epoch"] == 7 and loaded["name"] == "x"
    assert torch.equal(loaded["model"]["0.weight"], model[0].weight)
    gone = [name.removeprefix("model.") for name in report.lost]
    assert gone and all(loaded["model"][name] is None for name in gone)


def test_storages_without_a_pickle_are_given_as_bytes(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(100.0)}, tmp_path / "w.pth")
    data = bytearray((tmp_path / "w.pth").read_bytes())
    at = data.index(b"\x80\x02}")
    data[at : at + 20] = b"\xff" * 20
    (tmp_path / "w.pth").write_bytes(data)
    report = tk.salvage(tmp_path / "w.pth", tmp_path / "out.safetensors")
    assert report.intact == ("storage.0",) and "without their names" in str(report)
    raw = load_file(tmp_path / "out.safetensors")["storage.0"]
    assert raw.view(torch.float32).tolist() == list(range(100))


def test_a_damaged_key_list_of_a_legacy_file_costs_what_is_behind_it(tmp_path: Path) -> None:
    data = bytearray(written("legacy", tmp_path))
    places = sorted((data.index(tensor.numpy().tobytes()), name) for name, tensor in state().items())
    at = places[6][0]  # storages lie in the order of their addresses, which is another one each time
    data[at - 8 : at] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "w.pth").write_bytes(data)
    report = tk.salvage(tmp_path / "w.pth")
    assert set(report.lost) == {name for _, name in places[6:]}


def test_sound_files_are_reported_as_such(tmp_path: Path) -> None:
    for kind in KINDS:
        path = tmp_path / ("w.safetensors" if kind in {"safetensors", "own"} else "w.pth")
        path.write_bytes(written(kind, tmp_path))
        report = tk.salvage(path)
        assert report.ok and len(report.intact) + len(report.unverified) == 12, kind
        assert "nothing is lost" in str(report)


def test_nothing_is_overwritten_and_garbage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(SaveError, match="exists already"):
        tk.salvage(tmp_path / "w.pth", tmp_path / "there.safetensors")
    with pytest.raises(SaveError, match="another ending"):
        tk.salvage(tmp_path / "w.pth", tmp_path / "out.pth")
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"
    for garbage in (b"", b"PK\3\4" + bytes(100), b"\x80\x02}", bytes(500), b"<html>"):
        (tmp_path / "g.pth").write_bytes(garbage)
        with pytest.raises(OpenError):
            tk.salvage(tmp_path / "g.pth")
    torch.save({"a": torch.ones(1000)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:900])
    with pytest.raises(CorruptCheckpointError, match="no tensor that is intact"):
        tk.salvage(tmp_path / "w.pth")


def test_every_hostile_file_gives_a_report_or_an_error_of_ours(evil: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(path for path in evil.rglob("*") if path.is_file())):
        try:
            tk.salvage(path, tmp_path / f"{number}.safetensors")
        except TorchkeepError as error:
            assert str(error)


def test_the_command_writes_beside_the_file(tmp_path: Path, capsys: Any) -> None:
    from typer.testing import CliRunner

    from torchkeep.cli.app import app

    data = written("zip", tmp_path)
    (tmp_path / "w.pth").write_bytes(data[: len(data) // 2])
    done = CliRunner().invoke(app, ["salvage", str(tmp_path / "w.pth")])
    assert done.exit_code == 75 and "lost" in done.output
    assert len(tk.open(tmp_path / "w.salvaged.safetensors")) > 2
    done = CliRunner().invoke(app, ["salvage", str(tmp_path / "w.pth"), "--dry-run", "--json"])
    assert done.exit_code == 75 and '"ok": false' in done.output
