"""The format page is enough: a short reader with safetensors and JSON alone restores a snapshot and an object.

And what the page promises of files: those of the first form of the facts open, a lie in the facts is an error of ours.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file
from torch import nn

import reader_v1
import torchkeep as tk
from models import TinyNet, train_epoch
from torchkeep.errors import CorruptCheckpointError, UnsupportedFeatureError


def test_the_reader_is_short_and_knows_nothing_of_torchkeep() -> None:
    text = Path(reader_v1.__file__).read_text()
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 90 and not re.search(r"^\s*(import|from) torchkeep", text, re.MULTILINE)


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


# Files


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The facts, the tensors of the header, and the data of a file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return json.loads(header.pop("__metadata__")["torchkeep"]), header, data[8 + length :]


def write_parts(path: Path, facts: dict[str, Any], header: dict[str, Any], data: bytes) -> None:
    """A file with these facts and the right digest of its header, as somebody who means harm would write it too."""
    facts = {**facts, "header": "0" * 64}
    raw = json.dumps({"__metadata__": {"format": "pt", "torchkeep": json.dumps(facts)}, **header}).encode()
    raw = raw.replace(b"0" * 64, blake3(raw).hexdigest().encode(), 1)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def objects() -> dict[str, Any]:
    mixed = OrderedDict((f"{i}.{key}", torch.full((2,), i, dtype=dtype)) for i in range(4) for key, dtype in KEYS)
    return {"model": mixed, "epoch": 3, "other": {"a": torch.ones(3), 5: torch.zeros(1)}, "inf": float("inf")}


KEYS = [("weight", torch.float32), ("count", torch.int64), ("half", torch.bfloat16)]


def test_the_short_reader_reads_a_file_of_an_object(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save(objects(), path)
    facts, tensors, value = reader_v1.saved(str(path))
    assert list(tensors) == list(tk.open(path)) and facts["tree"]["model"]["v"]["$"] == "tensors"
    assert value["epoch"] == 3 and value["inf"] == float("inf") and list(value["other"]) == ["a", 5]
    wanted = objects()["model"]
    assert list(value["model"]) == list(wanted)
    assert all(torch.equal(value["model"][name], tensor) for name, tensor in wanted.items())


def test_data_begin_at_a_page_and_other_programs_read_them(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tk.save(objects(), path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert (8 + length) % 4096 == 0
    wanted = objects()["model"]
    loaded = load_file(path)
    assert all(torch.equal(loaded[f"model.{name}"], tensor) for name, tensor in wanted.items())


def test_twenty_thousand_tensors_cost_a_digest_and_a_line_of_the_header_each(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = {f"layers.{i}.weight": torch.empty(0) for i in range(20_000)}
    tk.save({"model": OrderedDict(state)}, path, durable=False)
    facts, header, _ = read_parts(path)
    assert len(json.dumps(facts)) - 64 * len(header) < 1000
    ckpt = tk.open(path)
    assert "0 of them made" in repr(ckpt.tensors), "opening makes no tensor"
    assert ckpt["model.layers.7.weight"] is ckpt["model.layers.7.weight"]
    assert len(ckpt) == 20_000 and next(iter(ckpt)) == "model.layers.0.weight" and "x" not in ckpt
    assert "1 of them made" in repr(ckpt.tensors)
    assert list(ckpt.model) == list(state) and ckpt.kind == "weights" and ckpt.model_key == "model"


def first_form(path: Path) -> None:
    """Write a file again as its first version had it: digests, flags and dicts of tensors by name, spelt out."""
    facts, header, data = read_parts(path)
    ckpt = tk.open(path)
    facts |= {"version": 1, "digests": dict(ckpt.facts.digests)}
    if "tree" in facts:
        facts["tree"] = ckpt.facts.tree
    for flag in ("parameters", "buffers", "requires_grad", "devices"):
        facts[flag] = getattr(ckpt.facts, flag)
    if ckpt.facts.module is not None:
        facts["module"] = tk.to_json(ckpt.facts.module)
    write_parts(
        path, {key: value for key, value in facts.items() if key not in {"hashes", "runs", "outline"}}, header, data
    )


def told(ckpt: tk.Checkpoint) -> Any:
    """All that a checkpoint says of its tensors, ties among them."""
    first: dict[Any, str] = {}
    return [
        (name, str(t), t.kind, t.requires_grad, t.device, first.setdefault(t.identity, name))
        for name, t in ckpt.items()
    ]


def things() -> dict[str, Any]:
    tied = nn.Parameter(torch.ones(2))
    meta = {f"{i}": torch.empty(i, device="meta") for i in range(4)}
    parts = {"coo": torch.eye(3).to_sparse(), "complex": torch.ones(2, dtype=torch.complex128), "last": torch.ones(1)}
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model.register_buffer("passing", torch.ones(2), persistent=False)
    return {
        "model": model,
        "ties": {"a": tied, "x": torch.ones(2), "b": tied, "y": {"c": tied}},
        "meta": {"meta": meta, "z": torch.ones(1)},
        "parts": parts | {"more": {f"{i}": torch.ones(1) for i in range(5)}},
        "mixed": objects(),
        "nothing": {"a": 1},
        "odd names": {'say "a"': torch.ones(1), "back\\slash": torch.ones(1), "": torch.ones(1), "a.b": torch.ones(1)},
    }


@pytest.mark.parametrize("what", list(things()))
def test_files_of_the_first_form_open_as_they_did(what: str, tmp_path: Path) -> None:
    path, new = tmp_path / "x.safetensors", tmp_path / "new.safetensors"
    torch.save(things()[what], tmp_path / "x.pth")
    tk.save(things()[what] if what != "parts" else tk.open(tmp_path / "x.pth").tree, path)
    new.write_bytes(path.read_bytes())
    first_form(path)
    old, now = tk.open(path, verify=True), tk.open(new, verify=True)
    assert told(old) == told(now) and list(old) == list(now)
    assert (old.kind, old.model_key, old.modules, old.frozen) == (now.kind, now.model_key, now.modules, now.frozen)
    assert old.facts.module == now.facts.module and old.facts.tree == now.facts.tree
    assert dict(old.facts.digests) == dict(now.facts.digests) and tk.verify(path).ok and tk.verify(new).ok
    assert str(old).splitlines()[1:] == str(now).splitlines()[1:]


def test_a_file_that_the_first_version_wrote_opens() -> None:
    path = Path(__file__).parent / "fuzz" / "seeds" / "safetensors" / "own"
    assert "digests" in read_parts(path)[0] and "version" not in read_parts(path)[0]
    value = tk.load(path, verify=True)
    assert value["w"].tolist() == [1, 1] and value["c"].dtype == torch.complex128 and value["plain"] == (1, {"k": None})


def test_devices_are_said_by_runs(tmp_path: Path) -> None:
    state = {f"{i}": tk.open(_saved(tmp_path, torch.ones(1)))["x"].replace(device=f"cuda:{i // 3}") for i in range(6)}
    tk.save(state | {"cpu": torch.ones(1)}, tmp_path / "x.safetensors")
    assert read_parts(tmp_path / "x.safetensors")[0]["runs"] == {"devices": {"cuda:0": [0, 3], "cuda:1": [3, 3]}}
    devices = [tensor.device for tensor in tk.open(tmp_path / "x.safetensors").values()]
    assert devices == ["cuda:0"] * 3 + ["cuda:1"] * 3 + ["cpu"]


def _saved(folder: Path, tensor: torch.Tensor) -> Path:
    tk.save({"x": tensor}, folder / "one.safetensors")
    return folder / "one.safetensors"


def test_a_reader_of_the_first_form_refuses_the_second_by_its_version(tmp_path: Path) -> None:
    """It looks at the version before anything else, and finds none of its own members with another meaning."""
    path = tmp_path / "x.safetensors"
    tk.save(things()["model"], path)
    facts, header, data = read_parts(path)
    names = {"digests", "parameters", "buffers", "requires_grad", "devices", "module"}
    assert facts["version"] == 2 and not facts.keys() & names and "outline" in facts
    write_parts(path, facts | {"version": 3}, header, data)
    with pytest.raises(UnsupportedFeatureError, match="is version 3, this torchkeep reads up to 2"):
        tk.open(path)


LIES: list[tuple[str, dict[str, Any]]] = [
    ("too few digests", {"hashes": "0" * 64}),
    ("no digests", {"hashes": ""}),
    ("digests of another kind", {"hashes": 5}),
    ("a run beyond the end", {"runs": {"parameters": [0, 99]}}),
    ("a run from before the start", {"runs": {"parameters": [-1, 1]}}),
    ("a run without a count", {"runs": {"buffers": [0]}}),
    ("a run of nothing", {"runs": {"buffers": [0, 0]}}),
    ("a name twice", {"runs": {"requires_grad": [0, 2, 1, 1]}}),
    ("a device beyond the end", {"runs": {"devices": {"cuda:0": [3, 9]}}}),
    ("runs of another kind", {"runs": [1]}),
    ("a tree that says tensors too often", {"tree": [{"$": "tensors", "prefix": "", "v": [0, 3]}] * 2}),
    ("a tree of tensors beyond the end", {"tree": {"$": "tensors", "prefix": "", "v": [0, 9]}}),
    ("a tree of a prefix that is none", {"tree": {"$": "tensors", "prefix": "x", "v": [0, 3]}}),
    ("a tree of half a run", {"tree": {"$": "tensors", "prefix": "", "v": [0]}}),
    ("a tree of no run", {"tree": {"$": "tensors"}}),
    ("a tree of what is not there", {"tree": {"$": "tensor", "v": "zzz"}}),
    ("a tree of an unknown tag", {"tree": {"$": "new", "v": 1}}),
    ("a deep tree", {"tree": json.loads("[" * 900 + "]" * 900)}),
    ("an ordered dict of nothing", {"tree": {"$": "OrderedDict"}}),
    ("a module of another kind", {"outline": 5}),
    ("a module that is null", {"outline": None}),
    ("a module without tensors", {"outline": {"class_name": "x", "modules": []}}),
    ("a module of wrong rows", {"outline": {"class_name": "x", "modules": [["a"]], "tensors": []}}),
    ("a module of too many", {"outline": {"class_name": "x", "modules": [], "tensors": [[0, 2], [0, 2]]}}),
    ("a module of odd runs", {"outline": {"class_name": "x", "modules": [], "tensors": [["a", "b"]]}}),
    ("surgery of another kind", {"surgery": 5}),
    ("surgery without a verb", {"surgery": [{"name": "fc"}]}),
    ("a module of odd tensors", {"outline": {"class_name": "x", "modules": [], "tensors": [{"name": "a"}]}}),
]


@pytest.mark.parametrize("padding", [0, 70_000], ids=["short", "long"])
@pytest.mark.parametrize(("what", "lie"), LIES, ids=[what for what, _ in LIES])
def test_lies_in_facts_with_a_right_digest_are_damage(
    what: str, lie: dict[str, Any], padding: int, tmp_path: Path
) -> None:
    """What is decoded late is as well an error that names the file, however one comes to it."""
    path = tmp_path / "x.safetensors"
    tk.save({f"{i}": torch.ones(1) for i in range(3)}, path)
    facts, header, data = read_parts(path)
    if padding and "tree" in lie:
        facts["outline"] = {"class_name": "x" * padding, "modules": [], "tensors": []}
    elif padding:
        facts["tree"] = "x" * padding
    write_parts(path, facts | lie, header, data)
    if padding and lie.keys() & {"tree", "outline"}:
        assert tk.open(path)["1"].load() == 1, "what is long is decoded when it is asked for"
    with pytest.raises(CorruptCheckpointError) as caught:
        ckpt = tk.open(path)
        _ = ckpt.facts.tree, ckpt.facts.module, ckpt.modules, ckpt.frozen
        str(ckpt)
        raise AssertionError(f"{what} was not found")
    assert str(path) in str(caught.value)
