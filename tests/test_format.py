"""The format page is enough: a reader of about sixty lines, with safetensors and JSON alone, restores a snapshot."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import reader_v1
import torchkeep as tk
from models import TinyNet, train_epoch


def test_the_reader_is_short_and_knows_nothing_of_torchkeep() -> None:
    text = Path(reader_v1.__file__).read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 70 and not re.search(r"^\s*(import|from) torchkeep", text, re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = TinyNet()
    tk.freeze(model, tk.FreezeSpec([tk.Phase("head, bn", epochs=1), tk.Phase("*")]))
    optimizer = torch.optim.Adam(tk.param_groups(model, lr=0.01))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with tk.Run(tmp_path) as run:
        for step in range(2):
            train_epoch(model, optimizer)
            run.save(step, model=model, optimizer=optimizer, scheduler=scheduler, extra={"pair": (1, {2})})
    return tmp_path


def test_it_restores_what_torchkeep_restores(folder: Path) -> None:
    body, tensors, state = reader_v1.snapshot(str(folder))
    model = TinyNet()
    optimizer = torch.optim.Adam(tk.param_groups(model, lr=0.5))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with tk.Run(folder) as run:
        run.resume(model=model, optimizer=optimizer, scheduler=scheduler)
    assert body["sequence"] == 2 and body["step"] == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[f"model/{name}"], tensor)
    assert state["scheduler"]["state"]["best"] == float("inf") == scheduler.best
    assert state["extra"] == {"pair": (1, {2})}
    assert state["model"]["freeze"]["spec"]["phases"][0] == {"train": "head, bn", "epochs": 1}
    moments = state["optimizer"]["state"]["head.weight"]
    assert torch.equal(moments["exp_avg"], optimizer.state[model.head.weight]["exp_avg"])
    assert state["optimizer"]["groups"][0]["options"]["betas"] == optimizer.param_groups[0]["betas"]
    assert torch.equal(state["rng"]["torch"], torch.get_rng_state())


def test_it_falls_back_as_torchkeep_does(folder: Path) -> None:
    path = folder / "snapshots" / "2.json"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert reader_v1.snapshot(str(folder))[0]["sequence"] == 1
