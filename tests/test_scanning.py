"""Scan: whatever could run is named, wherever it hides; what is harmless is left in peace; nothing runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchkeep as tk
from torchkeep import errors, scanning
from torchkeep.cli.app import main
from torchkeep.core.limits import Limits
from torchkeep.core.source import Held
from torchkeep.formats._loose_zip import loose_records
from torchkeep.formats._survey import survey

MARKERS = Path("/tmp/torchkeep-x/evil")  # the payloads of the archive write here and nowhere else
PAYLOAD = b"\x80\x02cposix\nsystem\nX\x04\0\0\0echo\x85R."
TEXT_PAYLOAD = b"cposix\nsystem\n(S'echo'\ntR."
HARMLESS = pickle.dumps({"epoch": 3, "loss": [0.5, 0.25]}, 2)
NAMED = "calls posix.system, which can run code"
CODE = ("posix.system", "builtins.exec", "subprocess.Popen", "os.system", "collect_env.run", "functools.partial")
REALLY_CODE = ("functools.partial", "cloudpickle.", "dill.")  # in the benign corpus: calls and functions, pickled


def dangers(*paths: Path | str, limits: Limits | None = None) -> list[tuple[str, str]]:
    """Message and place of every danger."""
    report = tk.scan(*paths, limits=limits)
    return [(one.message, one.place) for file in report.files for one in file.findings if one.severity == "danger"]


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(members: dict[str, bytes], style: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=style) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def torch_file(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def calling(module: str, name: str, data: bytes) -> bytes:
    """A pickle that calls a function with bytes."""
    return b"\x80\x03c%s\n%s\nB%s%s\x85R." % (module.encode(), name.encode(), struct.pack("<I", len(data)), data)


# -- the archives ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def markers() -> Iterator[Path]:
    shutil.rmtree(MARKERS, ignore_errors=True)
    MARKERS.mkdir(parents=True)
    yield MARKERS
    shutil.rmtree(MARKERS, ignore_errors=True)


@pytest.fixture(scope="module")
def evil_report(evil: Path, markers: Path) -> dict[str, Any]:
    report = tk.scan(evil)
    return {str(Path(file.path).relative_to(evil)): file for file in report.files}


def test_everything_that_would_run_is_a_danger_and_named(evil: Path, evil_report: dict[str, Any]) -> None:
    entries = [entry for entry in json.loads((evil / "manifest.json").read_text()) if entry["kind"] == "exec"]
    assert len(entries) > 14
    for entry in entries:
        files = [file for name, file in evil_report.items() if name.startswith(entry["file"])]
        found = [one for file in files for one in file.findings if one.severity == "danger"]
        if entry["file"] == "legacy_module_source_pid.pth":  # only the text of a class, which nothing runs
            assert not found
        elif entry["file"] == "torchscript_setstate.pt":  # no pickle names code: the code is in the archive, as text
            assert any(one.place.startswith("code/") for one in found), entry
        else:
            assert any(name in one.message and one.place for one in found for name in CODE), entry


def test_damaged_and_hostile_files_are_reported_by_what_they_are(evil: Path, evil_report: dict[str, Any]) -> None:
    for entry in json.loads((evil / "manifest.json").read_text()):
        file = evil_report.get(entry["file"])
        if file is not None and entry["kind"] in {"memory", "corrupt", "safetensors", "path"} and not file.format:
            assert (file.what, file.severity) == ("damaged", "warning"), entry
    for name in ("memo_bomb.pth", "zip_bomb_deflate.pth"):
        assert (evil_report[name].what, evil_report[name].severity) == ("too costly", "danger")
    for name in ("html_error_page.pth", "git_lfs_pointer.pth", "manifest.json"):
        assert evil_report[name].what.startswith("not a checkpoint: ") and evil_report[name].severity == "none"
    for name in ("zip_dup_datapkl.pth", "zip_two_roots.pth", "zip_encrypted_flag.pth", "zip_bad_crc_datapkl.pth"):
        assert any(one.message == NAMED for one in evil_report[name].findings), name
    index = evil_report["hf_index_traversal/model.safetensors.index.json"]
    assert index.severity == "warning" and "passwd" in str(index.findings)


def test_scanning_the_evil_archive_runs_nothing(evil_report: dict[str, Any], markers: Path) -> None:
    assert len(evil_report) > 60 and markers.is_dir() and not list(markers.iterdir())


def test_benign_files_are_no_danger(checkpoints: Path) -> None:
    files = sorted(path for path in checkpoints.rglob("*") if path.is_file() and path.suffix != ".json")
    folders = {path.parent for path in files if path.name == ".metadata"}
    report = tk.scan(*files[::10], *folders)
    assert len(report.files) > 80
    for file in report.files:
        loud = [one for one in file.findings if one.severity == "danger"]
        assert all(any(name in one.message for name in REALLY_CODE) for one in loud), file
        assert file.what in {"", "a part of the checkpoint in its folder"}, file


# -- blind spots of other scanners -----------------------------------------------------------------------------


def test_a_dotted_name_does_not_hide_a_function(tmp_path: Path) -> None:
    data = b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93\x8c\x04echo\x85R."
    (found,) = dangers(written(tmp_path / "a.pkl", data))
    assert found == ("calls torch.serialization.os.system, which can run code", "pickle, byte 34")


@pytest.mark.parametrize(
    "inner", [PAYLOAD, TEXT_PAYLOAD, zipped({"a/data.pkl": PAYLOAD}), calling("pickle", "loads", PAYLOAD)]
)
def test_bytes_that_are_handed_to_an_unpickler_are_read(tmp_path: Path, inner: bytes) -> None:
    nested = calling("torch.storage", "_load_from_bytes", inner)
    found = dangers(written(tmp_path / "a.pkl", nested))
    assert any(message == NAMED and "torch.storage._load_from_bytes" in place for message, place in found)
    found = dangers(
        written(tmp_path / "b.pth", zipped({"x/data.pkl": calling("torch.storage", "_load_from_bytes", nested)}))
    )
    assert any(message == NAMED and place.startswith("x/data.pkl: bytes for ") for message, place in found)


def test_bytes_inside_of_bytes_end_at_a_limit(tmp_path: Path) -> None:
    data = PAYLOAD
    for _ in range(12):
        data = calling("torch.storage", "_load_from_bytes", data)
    assert any("Limits.nesting" in message for message, _ in dangers(written(tmp_path / "a.pkl", data)))


def test_bytes_that_the_file_computes_are_a_danger(tmp_path: Path) -> None:
    data = b"\x80\x03ctorch.storage\n_load_from_bytes\n(czlib\ndecompress\nC\x01x\x85RtR."
    assert any("bytes that the file computes" in message for message, _ in dangers(written(tmp_path / "a.pkl", data)))


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_tar_are_read(tmp_path: Path, style: int) -> None:
    apart = pickle.dumps(2, 2) + pickle.dumps(("1", "cpu"), 2) + struct.pack("<q", 3) + b"\x01\x02\x03" * 8 + PAYLOAD
    old = {"sys_info": HARMLESS, "pickle": HARMLESS, "tensors": pickle.dumps(0, 2), "storages": apart}
    assert (NAMED, f"storages, byte {len(apart) - len(PAYLOAD) + 2}") in dangers(
        written(tmp_path / "a.pth", tarred(old, style))
    )
    (found,) = dangers(written(tmp_path / "b.tar", tarred({"deep/in/notes.txt": b"hello", "deep/x": PAYLOAD}, style)))
    assert found == (NAMED, "deep/x, byte 2")


def test_a_tar_without_a_magic_is_read(tmp_path: Path) -> None:
    data = bytearray(tarred({"storages": PAYLOAD}, tarfile.USTAR_FORMAT))
    data[257:265] = bytes(8)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    assert dangers(written(tmp_path / "a.pth", bytes(data))) == [(NAMED, "storages, byte 2")]


def test_a_hidden_metadata_in_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "run" / "step").mkdir(parents=True)
    written(tmp_path / "run" / "step" / ".metadata", PAYLOAD)
    written(tmp_path / "run" / "step" / "__0_0.distcp", torch_file(torch.ones(2)))
    assert dangers(tmp_path) == [(NAMED, "pickle, byte 2")]


def spoiled(data: bytes, name: bytes, at: int, value: bytes) -> bytes:
    """A zip archive with other bytes in the directory entry of a record, and in the header in front of it."""
    out = bytearray(data)
    central = out.rindex(name) - 46
    local = out.index(name) - 30
    out[central + at : central + at + len(value)] = value
    out[local + at - 2 : local + at - 2 + len(value)] = value
    return bytes(out)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("spoil", ["crc", "encrypted", "none"])
def test_a_bad_record_hides_neither_itself_nor_the_others(tmp_path: Path, spoil: str, method: int) -> None:
    data = zipped({"x/first.pkl": PAYLOAD, "x/data.pkl": HARMLESS, "x/last.pkl": PAYLOAD}, method)
    if spoil == "crc":
        data = spoiled(data, b"x/first.pkl", 16, b"\1\2\3\4")
    elif spoil == "encrypted":
        data = spoiled(data, b"x/first.pkl", 8, b"\1\0")
    found = dangers(written(tmp_path / "a.pth", data))
    assert {(NAMED, "x/first.pkl, byte 2"), (NAMED, "x/last.pkl, byte 2")} <= set(found)


def test_what_cannot_be_inflated_to_its_end_is_read_up_to_there(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).bytes(40_000)
    data = bytearray(zipped({"x/data.pkl": PAYLOAD[:-1] + b"0B" + struct.pack("<I", 40_000) + noise + b"."}, 8))
    data[20_000:20_100] = bytes(100)
    assert dangers(written(tmp_path / "a.pth", bytes(data))) == [(NAMED, "x/data.pkl, byte 2")]
    packed = gzip.compress(PAYLOAD + noise)
    assert dangers(written(tmp_path / "b.pkl.gz", packed[:30_000])) == [(NAMED, "pickle, byte 2")]


def test_other_compressions_are_said_not_to_be_looked_into(tmp_path: Path) -> None:
    report = tk.scan(written(tmp_path / "a.zip", zipped({"x.pkl": PAYLOAD}, zipfile.ZIP_BZIP2)))
    assert report.severity == "warning" and "other methods than deflate" in str(report)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (HARMLESS + PAYLOAD, f"pickle, byte {len(HARMLESS) + 2}"),
        (HARMLESS * 300 + PAYLOAD, f"pickle, byte {len(HARMLESS) * 300 + 2}"),
        (PAYLOAD[:-1] + b"\xff\xfe", "pickle, byte 2"),
        (PAYLOAD[:-1], "pickle, byte 2"),
        (TEXT_PAYLOAD, "pickle, byte 0"),
        (b"\x80\x02]K\1K\2s0" + PAYLOAD[2:], "pickle, byte 9"),  # an item of a list by number: fine for pickle
        (b"\x80\x02c__builtin__\nlist\nX\x02\0\0\0ab\x85R0" + PAYLOAD[2:], "pickle, byte 30"),
        (b"(I1_0\nF1_0\n0" + TEXT_PAYLOAD, "pickle, byte 12"),
        (b"}" * 300 + b"0" * 300 + PAYLOAD[2:], "pickle, byte 600"),
        (b"\x80\x02X\xff\xff\1\0" + b"a" * 0x1FFFF + b"0" + PAYLOAD[2:], f"pickle, byte {0x1FFFF + 8}"),
    ],
)
def test_a_stream_is_read_as_far_as_an_unpickler_would_go(tmp_path: Path, data: bytes, place: str) -> None:
    assert (NAMED, place) in dangers(written(tmp_path / "a.pkl", data))


def test_a_name_that_the_file_computes_is_a_danger(tmp_path: Path) -> None:
    data = b"\x80\x04cbuiltins\nstr\n\x8c\x05posix\x85R\x8c\x06system\x93\x8c\x04echo\x85R."
    assert dangers(written(tmp_path / "a.pkl", data)) == [
        ("names a class that the file computes, which can run code", "pickle, byte 33")
    ]


@pytest.mark.parametrize("slot", range(5))
def test_every_slot_of_a_legacy_file_is_read(tmp_path: Path, slot: int) -> None:
    values: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []]
    slots = [pickle.dumps(value, 2) for value in values]
    slots[slot] = PAYLOAD
    start = sum(map(len, slots[:slot]))
    assert dangers(written(tmp_path / "a.pth", b"".join(slots))) == [(NAMED, f"pickle, byte {start + 2}")]


def test_what_follows_a_legacy_file_is_found(tmp_path: Path) -> None:
    good = torch_file({"w": torch.randn(500)}, _use_new_zipfile_serialization=False)
    assert dangers(written(tmp_path / "a.pth", good + PAYLOAD)) == [(NAMED, f"pickle, byte {len(good) + 2}")]
    behind = dangers(written(tmp_path / "b.pth", good + zipped({"x/data.pkl": PAYLOAD})))
    assert (NAMED, "x/data.pkl, byte 2") in behind
    large = good + np.random.default_rng(1).bytes(40 << 20) + PAYLOAD
    assert (NAMED, f"pickle, byte {len(large) - len(PAYLOAD) + 2}") in dangers(written(tmp_path / "c.pth", large))


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo",)


def test_arrays_of_objects_are_read(tmp_path: Path) -> None:
    array = np.array([Evil(), None], dtype=object)
    np.savez(tmp_path / "a.npz", good=np.ones(3), bad=array)
    np.savez_compressed(tmp_path / "b.npz", good=np.zeros(1_000_000), bad=array)
    np.save(tmp_path / "c.npy", array)
    assert {message for message, _ in dangers(tmp_path / "a.npz")} == {f"calls {os.name}.system, which can run code"}
    assert {place.partition(",")[0] for _, place in dangers(tmp_path / "b.npz")} == {"bad.npy"}
    assert dangers(tmp_path / "c.npy")


def test_archives_within_archives_are_read(tmp_path: Path) -> None:
    inner = zipped({"archive/data.pkl": HARMLESS, "archive/extra/odd": PAYLOAD})
    twice = zipped({"models/inner.pth": inner, "readme.txt": b"see inside"}, zipfile.ZIP_DEFLATED)
    (found,) = dangers(written(tmp_path / "a.zip", twice))
    assert found == (NAMED, "models/inner.pth: archive/extra/odd, byte 2")
    (found,) = dangers(written(tmp_path / "b.tar.gz", gzip.compress(tarred({"m/a.zip": twice}))))
    assert found == (NAMED, "m/a.zip: models/inner.pth: archive/extra/odd, byte 2")


def test_odd_archives_are_read_as_any_reader_would(tmp_path: Path) -> None:
    good, bad = zipped({"a/data.pkl": HARMLESS}), zipped({"b/data.pkl": PAYLOAD})
    for name, data in {
        "behind something": b"#!/bin/sh\n" + bad,
        "first of two": bad + good,
        "last of two": good + bad,
        "first of a hundred": bad + good * 100,
        "trailing": bad + b"something",
        "a comment": spoiled_comment(bad, good),
        "no directory": bad[: bad.rindex(b"PK\1\2")],
        "torch": torch_file(torch.ones(2)) + bad + torch_file(torch.ones(2)),
    }.items():
        assert (NAMED, "b/data.pkl, byte 2") in dangers(written(tmp_path / "a.pth", data)), name


def spoiled_comment(data: bytes, comment: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", len(comment)) + comment


def test_a_duplicate_name_hides_neither_record(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("x/data.pkl", HARMLESS)
        archive.writestr("x/data.pkl", PAYLOAD)
    assert dangers(tmp_path / "a.pth") == [(NAMED, "x/data.pkl, byte 2")]


# -- what is no danger -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"import os\nimport sys\n\nprint(os.name)\n",
        b"class Foo:\n    pass\n",
        b"Copyright (c) 2026\ncopy it\nand run it\nplease\n",
        b"cos\nsin\ntan\n",
        b'{"os.system": 1}',
        b"# Title\n\nos.system is mentioned\n",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\xff\xd8\xff\xe0" + bytes(range(256)),
        b"GIF89a" + bytes(100),
        zipped({"word/document.xml": b"<xml/>"}),
        b"cat\ndog\nbird\n",
    ],
)
def test_what_is_no_checkpoint_is_quiet(tmp_path: Path, data: bytes) -> None:
    (file,) = tk.scan(written(tmp_path / "a.bin", data)).files
    assert file.what.startswith("not a checkpoint: ") and file.severity == "none" and not file.format


def test_good_checkpoints_are_quiet(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(20, 50), torch.nn.ReLU(), torch.nn.Linear(50, 2))
    state = {"model": model.state_dict(), "noise": torch.randn(300_000)}
    torch.save(state, tmp_path / "new.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(model, tmp_path / "whole.pth")
    tk.save(model, tmp_path / "own.safetensors")
    written(tmp_path / "plain.pkl", pickle.dumps(state))
    written(tmp_path / "packed.pth.gz", gzip.compress(torch_file(state)))
    report = tk.scan(tmp_path)
    assert {Path(file.path).name: file.severity for file in report.files} == {
        "new.pth": "none", "old.pth": "none", "whole.pth": "none", "own.safetensors": "none", "plain.pkl": "none",
        "packed.pth.gz": "info",
    }  # fmt: skip
    assert report.summary == "6 files: 1 info, 5 quiet"


def test_a_distributed_checkpoint_is_one_whole(checkpoints: Path, tmp_path: Path) -> None:
    folder = sorted(path.parent for path in checkpoints.rglob(".metadata"))[0]
    report = tk.scan(folder)
    assert {file.format for file in report.files} == {"dcp", "part"} and not report.reaches("danger")
    parts = [Path(file.path) for file in report.files if file.format == "part"]
    (alone,) = tk.scan(written(tmp_path / "alone", parts[0].read_bytes())).files
    assert (alone.what, alone.severity) == ("not read", "info")  # not opened, but every pickle in it was read


def test_of_a_large_file_the_pickle_is_read_and_not_the_tensors() -> None:
    class Counted(Held):
        read_bytes = 0

        def read(self, offset: int, nbytes: int) -> Any:
            self.read_bytes += nbytes
            return super().read(offset, nbytes)

    value = {f"layer{number}": torch.randn(100_000) for number in range(50)}
    source = Counted(torch_file(value), "a.pth")
    found = survey(source, Limits())
    assert found.pickles == 1 and not found.findings
    assert source.size > 20_000_000 and source.read_bytes < 3_000_000


# -- limits ----------------------------------------------------------------------------------------------------


def overlapping(count: int, body: bytes) -> bytes:
    """A zip archive whose records share all their bytes but the first few, by the length of a field in front."""
    data, rows = bytearray(), []
    for number in range(count):
        name = b"%04d.pkl" % number
        extra = (count - 1 - number) * 38 + number  # so that each begins one byte later than the one before it
        rows.append((len(data), name))
        data += struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, len(name), extra) + name
    data += body
    start = len(data)
    for at, name in rows:
        head = (b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, len(body), len(body), len(name), 0, 0, 0, 0, 0, at)
        data += struct.pack("<4s6H3I5H2I", *head) + name
    return bytes(data + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(data) - start, start, 0))


def test_records_that_lie_over_each_other_end_at_a_limit(tmp_path: Path) -> None:
    data = overlapping(1000, b"N0" * 50_000 + PAYLOAD[2:])
    offsets = [record.offset for record in loose_records(Held(data, "a"), 10_000)]
    assert len(offsets) == 1000 and max(offsets) - min(offsets) == 999
    found = dangers(written(tmp_path / "a.pth", data))
    assert any("over each other" in message for message, _ in found)
    with pytest.raises(errors.UnsafeCheckpointError, match="more than 500 records"):
        list(loose_records(Held(data, "a"), 500))


@pytest.mark.parametrize("limits", [Limits(pickle_bytes=1000), Limits(opcodes=200), Limits(nesting=0)])
def test_what_costs_more_than_the_limits_is_a_danger(tmp_path: Path, limits: Limits) -> None:
    data = gzip.compress(pickle.dumps(list(range(5000)), 2))
    (file,) = tk.scan(written(tmp_path / "a.pkl", data), limits=limits).files
    assert file.severity == "danger" and {one.code for one in file.findings} >= {"unsafe"}
    assert tk.scan(tmp_path / "a.pkl").severity == "info"


def test_a_pickle_full_of_mistakes_ends_at_a_limit(tmp_path: Path) -> None:
    data = b"\x80\x02]" + b"K\1K\2s" * 20_000 + PAYLOAD[2:]
    assert any("cannot be" in message for message, _ in dangers(written(tmp_path / "a.pkl", data)))


# -- files and folders -----------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_a_warning_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.pkl", PAYLOAD)
    written(tmp_path / "b.pkl", PAYLOAD)
    (tmp_path / "closed").mkdir()
    real_open, real_scandir = os.open, os.scandir

    def refuse_file(path: Any, *arguments: Any) -> int:
        if str(path).endswith("a.pkl"):
            raise PermissionError(13, "Permission denied", path)
        return real_open(path, *arguments)

    def refuse_folder(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real_scandir(path)

    monkeypatch.setattr(os, "open", refuse_file)
    monkeypatch.setattr(os, "scandir", refuse_folder)
    report = tk.scan(tmp_path)
    assert {Path(file.path).name: file.severity for file in report.files} == {
        "closed": "warning", "a.pkl": "warning", "b.pkl": "danger",
    }  # fmt: skip
    assert str(report).count("Permission denied") == 2


def test_a_reader_that_fails_is_a_danger_and_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "a.pkl", HARMLESS)
    written(tmp_path / "b.pkl", PAYLOAD)

    def fail(source: Any, limits: Limits) -> Any:
        if source.name.endswith("a.pkl"):
            raise ZeroDivisionError("oh")
        return survey(source, limits)

    monkeypatch.setattr(scanning, "survey", fail)
    first, second = tk.scan(tmp_path).files
    assert first.severity == "danger" and "ZeroDivisionError: oh" in first.findings[0].message
    assert second.findings[0].message == NAMED


def test_links_pipes_and_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "a.pkl", PAYLOAD)
    (folder / "self").symlink_to(folder)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "gone").symlink_to(tmp_path / "nothing")
    (folder / "file").symlink_to(folder / "a.pkl")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # the path of a socket must be short
        server.bind("socket")
        report = tk.scan(folder)
    assert sorted(Path(file.path).name for file in report.files) == ["a.pkl", "file"]
    notes = {Path(note.split()[0]).name for note in report.notes}
    assert notes == {"self", "loop", "gone", "pipe", "socket"}
    (tmp_path / "link").symlink_to(folder)
    assert len(tk.scan(tmp_path / "link").files) == 2  # one that is given by name is followed


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tk.scan(tmp_path).summary == "0 files: 0 quiet" and tk.scan(tmp_path).severity == "none"
    with pytest.raises(errors.CheckpointNotFoundError, match="no such file or folder"):
        tk.scan(tmp_path, tmp_path / "missing")
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "x.pkl", PAYLOAD if name == "b" else HARMLESS)
    monkeypatch.chdir(tmp_path)
    steps: list[tuple[int, int]] = []
    report = tk.scan("b", "a", "b/x.pkl", progress=lambda done, total: steps.append((done, total)))
    assert [file.path for file in report.files] == ["b/x.pkl", "a/x.pkl"]
    total = len(PAYLOAD) + len(HARMLESS)
    assert steps == [(len(PAYLOAD), total), (total, total)]


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchkeep", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_exit_codes(call: Any, tmp_path: Path) -> None:
    quiet = written(tmp_path / "quiet.pkl", HARMLESS)
    info = written(tmp_path / "info.pkl", b"\x80\x02cmine\nThing\n)\x81.")
    warning = written(tmp_path / "warning.pkl", b"\x80\x02cmine\nmake\n)R.")
    danger = written(tmp_path / "danger.pkl", PAYLOAD)
    expected = {quiet: (0, 0, 0), info: (72, 0, 0), warning: (73, 73, 0), danger: (74, 74, 74)}
    for path, codes in expected.items():
        assert tuple(call("scan", path, "--fail-on", level)[0] for level in ("info", "warning", "danger")) == codes
    assert call("scan", tmp_path)[0] == 74 and call("scan", quiet, info, warning)[0] == 0
    assert call("scan", tmp_path / "missing")[0] == errors.CheckpointNotFoundError.exit_code
    assert call("scan")[0] == 2 and call("scan", quiet, "--fail-on", "never")[0] == 2
    taken = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert not taken & {72, 73, 74}


def test_the_table_lists_the_worst_first_and_counts_the_quiet(call: Any, tmp_path: Path) -> None:
    written(tmp_path / "a-quiet.pkl", HARMLESS)
    written(tmp_path / "b-info.pkl", b"\x80\x02cmine\nThing\n)\x81.")
    written(tmp_path / "c-danger.pkl", PAYLOAD)
    written(tmp_path / "d-text.txt", b"hello")
    _, out, _ = call("scan", tmp_path)
    lines = out.splitlines()
    assert lines[0] == "4 files: 1 danger, 1 info, 2 quiet (1 of them no checkpoints)"
    assert "c-danger.pkl" in lines[3] and f"{NAMED} (pickle, byte 2)" in lines[3] and "b-info.pkl" in lines[4]
    assert "a-quiet" not in out and "d-text" not in out
    _, out, _ = call("scan", tmp_path, "--all")
    assert "a-quiet.pkl" in out and "not a checkpoint: " in out


def test_json(call: Any, tmp_path: Path) -> None:
    code, out, _ = call("scan", written(tmp_path / "a.pkl", PAYLOAD), written(tmp_path / "b.txt", b"hello"), "--json")
    answer = json.loads(out)
    assert code == 74 and (answer["severity"], answer["notes"]) == ("danger", [])
    first, second = answer["files"]
    finding = {"code": "dangerous-global", "severity": "danger", "message": NAMED, "place": "pickle, byte 2"}
    assert (first["path"], first["format"], first["severity"]) == (str(tmp_path / "a.pkl"), "plain_pickle", "danger")
    assert first["findings"] == [finding]
    assert second["severity"] == "none" and second["format"] == "" and second["what"].startswith("not a checkpoint")


@pytest.mark.parametrize("options", [(), ("--json",), ("--all",), ("--fail-on", "info")])
def test_nothing_that_moves_a_terminal_gets_out(call: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    name = "posix\x1b[2J\x1b]0;owned\x07\x9b31m\u202eexe"
    text = name.encode()
    data = b"\x80\x02c" + text + b"\nsystem\n)R0" + calling("pickle", "loads", b"x")[2:]
    written(tmp_path / "na\x1b[31mme\r\u202e.pkl", data)
    written(tmp_path / "raw.zip", zipped({f"x\x1b[2J{name}.pkl": PAYLOAD}))
    written(tmp_path / "raw.tar", tarred({f"x\x1b[2J{name}": PAYLOAD}))
    (tmp_path / os.fsdecode(b"li\x1bnk\xff")).symlink_to(tmp_path / "nowhere")
    written(tmp_path / os.fsdecode(b"odd\xff\x9b.txt"), b"hello")
    _, out, err = call("scan", tmp_path, *options)
    assert "posix" in out and not re.search(r"[^\n\x20-\x7e]", out + err)
    code, out, err = call("scan", tmp_path / "mis\x1b[31m\x9bsing", *options)
    assert code == 11 and "sing" in out + err and not re.search(r"[^\n\x20-\x7e]", out + err)
