"""Verify: exits clean only when every byte of a run is as it was written."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import torchkeep as tk
from models import OPTIMIZERS, TinyNet, state_bits, train_epoch


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = TinyNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with tk.Run(tmp_path / "run") as run:
        for epoch in range(3):
            loss = train_epoch(model, optimizer)
            run.log(epoch=epoch, val_loss=loss)
            run.save(epoch, model=model, optimizer=optimizer)
    return tmp_path / "run"


def parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in {"lock", "guard"})


def flips(folder: Path, count: int, seed: int) -> None:
    """Each flipped bit, wherever in the run, is found by verify; none is loaded silently by resume."""
    files = parts(folder)
    sizes = np.array([path.stat().st_size for path in files])
    generator = np.random.default_rng(seed)
    good = {one.sequence: _restored(folder, one.sequence) for one in tk.Run(folder).snapshots}
    for number in range(count):
        # Half of the flips by size, half evenly over the files, so that small manifests are hit too.
        weights = sizes / sizes.sum() if number % 2 else np.full(len(files), 1 / len(files))
        path = files[int(generator.choice(len(files), p=weights))]
        data = path.read_bytes()
        place, bit = int(generator.integers(len(data))), int(generator.integers(8))
        broken = bytearray(data)
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        assert not tk.verify(folder).ok, f"bit {bit} of byte {place} of {path.name}"
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        try:
            sequence, state = _resumed(copy)
            assert state == good[sequence], f"bit {bit} of byte {place} of {path.name} was loaded"
        except tk.errors.TorchkeepError:
            pass
        shutil.rmtree(copy)
        path.write_bytes(data)
    assert tk.verify(folder).ok


def flips_of_a_file(path: Path, count: int, seed: int) -> None:
    """Each flipped bit of a file that tk.save wrote is found by verify, and none is loaded by open(verify=True)."""
    data = path.read_bytes()
    good = {name: tensor.clone() for name, tensor in tk.open(path).load().items()}
    generator = np.random.default_rng(seed)
    for _ in range(count):
        broken = bytearray(data)
        place, bit = int(generator.integers(len(data))), int(generator.integers(8))
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        try:
            found = not tk.verify(path).ok
        except tk.errors.OpenError:
            found = True
        assert found, f"bit {bit} of byte {place} of {path.name}"
        with contextlib.suppress(tk.errors.OpenError):
            loaded = tk.open(path, verify=True).load()
            same = loaded.keys() == good.keys() and all(torch.equal(loaded[name], good[name]) for name in good)
            assert same, f"bit {bit} of byte {place} of {path.name} was loaded"
    path.write_bytes(data)


def _restored(folder: Path, sequence: int) -> list[tuple[str, bytes]]:
    copy = folder.with_name(f"good{sequence}")
    shutil.copytree(folder, copy)
    return _resumed(copy, sequence)[1]


def _resumed(folder: Path, sequence: int | None = None) -> tuple[int, list[tuple[str, bytes]]]:
    model = TinyNet()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with tk.Run(folder) as run, warnings.catch_warnings():
        warnings.simplefilter("ignore", tk.errors.ResumeWarning)  # a snapshot that is damaged is skipped
        run.resume(model=model, optimizer=optimizer, snapshot=sequence)
        assert run.last_resume is not None
        return run.last_resume.sequence, state_bits(model, optimizer)


def test_random_bit_flips_are_found_and_never_loaded(run_folder: Path) -> None:
    flips(run_folder, 60, seed=1)
    tk.save(TinyNet(), run_folder.with_name("model.safetensors"))
    flips_of_a_file(run_folder.with_name("model.safetensors"), 200, seed=1)


def test_what_is_missing_is_named(run_folder: Path) -> None:
    assert tk.verify(run_folder).ok
    packs = sorted((run_folder / "packs").iterdir(), key=lambda path: path.stat().st_mtime)
    packs[0].unlink()
    report = tk.verify(run_folder)
    assert not report.ok
    assert {damage.what for damage in report.damaged} == {"snapshot 1", "snapshot 2", "snapshot 3"}
    assert "is missing" in str(report)


def test_a_pack_of_an_unfinished_save_is_a_note_and_no_damage(run_folder: Path) -> None:
    (run_folder / "snapshots" / "3.json").unlink()
    (run_folder / "tags" / "best.json").unlink(missing_ok=True)
    report = tk.verify(run_folder)
    assert report.ok and any("belongs to no intact snapshot" in note for note in report.notes)


def test_progress_reaches_the_end(run_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    tk.verify(run_folder, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)
    target = tmp_path / "m.safetensors"
    source = tmp_path / "m.pth"
    torch.save(TinyNet().state_dict(), source)
    seen.clear()
    tk.convert(source, target, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (target.stat().st_size, target.stat().st_size)


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tk.errors.UnknownFormatError, match="a folder without a checkpoint"):
        tk.verify(tmp_path)
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(tk.errors.LoadError, match="neither a run nor a file"):
        tk.verify(tmp_path)


def test_a_snapshot_that_is_gone_from_the_middle_is_damage(run_folder: Path) -> None:
    (run_folder / "snapshots" / "2.json").unlink()
    report = tk.verify(run_folder)
    assert not report.ok and "it is missing, and later ones are there" in str(report)


def test_a_zip_without_checksums_is_not_called_intact(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    report = tk.verify(tmp_path / "x.pth")
    assert not report.ok and "left out the checksums" in str(report)


def test_a_damaged_marker_is_named_with_the_line_that_mends_it(run_folder: Path) -> None:
    marker = run_folder / "torchkeep.json"
    good = marker.read_text()
    marker.write_bytes(b"\xeb" + marker.read_bytes())
    assert not tk.verify(run_folder).ok
    with pytest.raises(tk.errors.SaveError, match="is damaged") as caught:
        tk.Run(run_folder).resume(model=TinyNet())
    marker.write_text(caught.value.hint.partition("torchkeep.json: ")[2])
    assert marker.read_text() == good and tk.verify(run_folder).ok


def test_a_damaged_pack_names_the_snapshots_and_tensors_that_it_hurts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
    with tk.Run(tmp_path) as run:
        run.save(0, model=model)
        with torch.no_grad():
            model[1].weight.add_(1)
        run.save(1)
        model[0].weight.requires_grad_(False)
        run.save(2)
        tensor = run._archive.load(1).lazy["model/1.weight"]
    place = Path(tensor.source.name)
    data = bytearray(place.read_bytes())
    data[tensor.storage.offset + 5] ^= 1  # a tensor that the first snapshot alone needs
    place.write_bytes(data)
    hurt = {damage.what: damage.tensors for damage in tk.verify(tmp_path).damaged if damage.tensors}
    assert hurt == {"snapshot 1": ("model/1.weight",)}
    place.unlink()
    hurt = {damage.what: set(damage.tensors) for damage in tk.verify(tmp_path).damaged if damage.tensors}
    others = {"model/0.weight", "model/0.bias", "model/1.bias"}
    assert {name: lost & (others | {"model/1.weight"}) for name, lost in hurt.items()} == {
        "snapshot 1": others | {"model/1.weight"},
        "snapshot 2": others,
        "snapshot 3": others,
    }
    with tk.Run(tmp_path) as run:  # and what is saved next relies on none of it
        assert run.save(3, model=model).sequence == 4
    fourth = [damage for damage in tk.verify(tmp_path).damaged if damage.what == "snapshot 4"]
    assert fourth == []
