"""Frozen tensors that a save does not read again, because the caller asked for it, and how that is watched."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import state_bits
from torchkeep.core import digests
from torchkeep.errors import FrozenChangedWarning
from torchkeep.running import archive, trust

BLOCKS = 20


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The addresses of the tensors that a save hashes."""
    found: list[int] = []
    real = digests.digest_tensor

    def single(tensor: torch.Tensor) -> str:
        found.append(tensor.data_ptr())
        return real(tensor)

    monkeypatch.setattr(digests, "digest_tensor", single)
    monkeypatch.setattr(trust, "digest_tensor", single)
    return found


def parts() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    """A frozen backbone with normalisation, and a head."""
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(BLOCKS)]
    model = nn.Sequential(*body, nn.Linear(8, 2))
    tk.freeze(model, f"* but {BLOCKS}")
    return model, torch.optim.AdamW(model[BLOCKS].parameters())


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def frozen(model: nn.Sequential) -> set[int]:
    return {tensor.data_ptr() for name, tensor in model.state_dict().items() if not name.startswith(f"{BLOCKS}.")}


@pytest.mark.parametrize("blocking", [True, False])
def test_what_is_frozen_is_read_once_and_then_by_turns(tmp_path: Path, hashed: list[int], blocking: bool) -> None:
    model, optimizer = parts()
    still = frozen(model)
    turns = []
    with tk.Run(tmp_path, trust_frozen=True) as run:
        for step in range(17):
            train(model, optimizer)
            if blocking:
                run.save(step, model=model, optimizer=optimizer)
            else:
                run.save(step, model=model, optimizer=optimizer, blocking=False).result()
            turns.append(still & set(hashed))
            if step == 0 and blocking:
                assert turns[0] == still
            hashed.clear()
    assert all(0 < len(turn) <= len(still) / 10 for turn in turns[1:]), "a sample, and not all"
    assert set().union(*turns[1:]) == still, "after sixteen saves each had its turn"
    other, other_optimizer = parts()
    with tk.Run(tmp_path) as run:
        run.resume(model=other, optimizer=other_optimizer)
    assert state_bits(other, other_optimizer) == state_bits(model, optimizer)
    assert tk.verify(tmp_path).ok


def test_nothing_is_trusted_unless_it_is_asked_for(tmp_path: Path, hashed: list[int]) -> None:
    model, optimizer = parts()
    with tk.Run(tmp_path) as run:
        for step in range(3):
            hashed.clear()
            run.save(step, model=model, optimizer=optimizer)
            assert frozen(model) <= set(hashed)


def test_only_what_freeze_holds_is_trusted(tmp_path: Path, hashed: list[int]) -> None:
    """A flag that somebody took off, or an eval mode that the next train() ends, says nothing about the future."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    model[:2].requires_grad_(False)
    with tk.Run(tmp_path, trust_frozen=True) as run:
        for step in range(2):
            hashed.clear()
            run.save(step, model=model)
            assert {tensor.data_ptr() for tensor in model.state_dict().values()} <= set(hashed)


def test_a_change_that_torch_counts_is_read_at_once(tmp_path: Path) -> None:
    model, optimizer = parts()
    with tk.Run(tmp_path, trust_frozen=True) as run, warnings.catch_warnings():
        warnings.simplefilter("error")
        run.save(0, model=model, optimizer=optimizer)
        with torch.no_grad():
            model[3][0].weight.add_(1)
        run.save(1)
        model[4][0].weight.data = torch.zeros(8, 8)
        run.save(2)
        tk.load_into(model, {name: torch.full_like(value, 2) for name, value in model.state_dict().items()})
        run.save(3)
        for sequence, name, value in ((2, "3.0.weight", None), (3, "4.0.weight", 0.0), (4, "5.0.weight", 2.0)):
            found = run.open(sequence)[name].load()
            assert not torch.equal(found, run.open(1)[name].load())
            assert value is None or bool((found == value).all())


def test_a_change_that_nobody_counts_is_found_by_the_sample(tmp_path: Path) -> None:
    model, optimizer = parts()
    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model, optimizer=optimizer)
        model[7][0].weight.detach().numpy()[0, 0] += 1
        model[8][0].weight.detach().numpy()[0, 0] += 1
        for step in range(1, 17):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                report = run.save(step)
            if caught:
                break
        assert [one.category for one in caught] == [FrozenChangedWarning]
        assert "0.weight" in str(caught[0].message) and "changed all the same" in report.notes[0]
        for name in ("7.0.weight", "8.0.weight"):
            assert torch.equal(run.open()[name].load(), model.state_dict()[name]), "everything was read"


def test_a_pack_that_is_gone_is_written_again(tmp_path: Path) -> None:
    model, optimizer = parts()
    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model, optimizer=optimizer)
        for pack in (tmp_path / "packs").iterdir():
            pack.unlink()
        report = run.save(1)
        assert report.tensors_written > 2 * BLOCKS
        assert run.open(2).load().keys() == model.state_dict().keys()


def test_what_was_restored_is_read(tmp_path: Path, hashed: list[int]) -> None:
    model, optimizer = parts()
    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model, optimizer=optimizer)
        run.resume(model=model, optimizer=optimizer)
        hashed.clear()
        run.save(1)
        assert frozen(model) <= set(hashed)


# -- what an adversarial review found ---------------------------------------------------------------------------


def test_memory_that_something_trained_shares_is_not_trusted(tmp_path: Path) -> None:
    model, optimizer = parts()
    model[BLOCKS].weight = nn.Parameter(model[0][0].weight.data[:2])  # counts its changes by itself
    optimizer = torch.optim.SGD(model[BLOCKS].parameters(), lr=1.0)
    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model, optimizer=optimizer)
        train(model, optimizer)
        run.save(1)
        weights = run.open(2)
        for name in ("0.0.weight", f"{BLOCKS}.weight"):
            assert torch.equal(weights[name].load(), model.state_dict()[name])


def test_memory_that_was_given_back_is_not_taken_for_the_same(tmp_path: Path) -> None:
    model, _ = parts()
    weight = model[2][0].weight
    with tk.Run(tmp_path, trust_frozen=True) as run:
        for step in range(12):
            weight.data = torch.full((8, 8), float(step))  # may come to lie where the one before the last did
            run.save(step, model=model)
            assert torch.equal(run.open()["2.0.weight"].load(), weight)


def test_tensors_without_a_count_of_changes_are_not_trusted(tmp_path: Path) -> None:
    with torch.inference_mode():
        model, _ = parts()
    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model)
        with torch.inference_mode():
            model[3][0].weight.fill_(4)
        run.save(1)
        assert bool((run.open()["3.0.weight"].load() == 4).all())


def test_what_is_unfrozen_after_the_call_is_saved_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = parts()
    go, real = threading.Event(), archive.Archive.commit

    def commit(*arguments: Any, **options: Any) -> Any:
        assert go.wait(30)
        return real(*arguments, **options)

    with tk.Run(tmp_path, trust_frozen=True) as run:
        run.save(0, model=model, optimizer=optimizer)
        was = {name: value.clone() for name, value in model.state_dict().items()}
        monkeypatch.setattr(archive.Archive, "commit", commit)
        handle = run.save(1, blocking=False)
        tk.unfreeze(model)
        optimizer.add_param_group({"params": list(model[:BLOCKS].parameters())})
        with run.guard():
            train(model, optimizer)
        go.set()
        assert handle.result().sequence == 2
        weights = run.open(2)
        assert all(torch.equal(weights[name].load(), value) for name, value in was.items())
