"""Several sources for one model: one plan, one report, and where each tensor came from, kept through every save."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.core.digests import digest_tensor
from torchkeep.errors import CorruptCheckpointError, IncompatibleCheckpointError, LoadError, SelectorError


class Decoder(nn.Module):
    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.up = nn.Linear(4, 6)
        self.out = nn.Linear(6, classes)


class Tasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = TinyNet()
        self.heads = nn.ModuleDict({"depth": Decoder(), "normals": Decoder(3)})
        self.neck = nn.Linear(3, 3)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """A plain file, a training checkpoint with a decoder in it, a saved model; and what is in them."""
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "a": TinyNet(),
        "b": nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": Decoder()}),
        "c": Decoder(3),
    }
    torch.save({f"module.{name}": value for name, value in made["a"].state_dict().items()}, tmp_path / "a.pth")
    torch.save({"epoch": 3, "model": made["b"].state_dict()}, tmp_path / "b.pth")
    tk.save(made["c"], tmp_path / "c.safetensors")
    return made | {"paths": {name: next(tmp_path.glob(f"{name}.*")) for name in "abc"}}


def sources(files: dict[str, Any]) -> dict[str, Any]:
    paths = files["paths"]
    return {"backbone": paths["a"], "heads.depth": (paths["b"], "decoder"), "heads.normals": str(paths["c"])}


def test_each_module_gets_its_own_source(files: dict[str, Any]) -> None:
    model = Tasks()
    own = state_bits(model.neck)
    with pytest.raises(IncompatibleCheckpointError, match=r"2 missing \(neck\.weight, neck\.bias\)"):
        tk.load_into(model, sources(files))
    report = tk.load_into(nn.DataParallel(model), sources(files), allow="neck", require={"heads": 1.0, "backbone": 1.0})
    assert state_bits(model.backbone) == state_bits(files["a"])
    assert state_bits(model.heads["depth"]) == state_bits(files["b"]["decoder"])
    assert state_bits(model.heads["normals"]) == state_bits(files["c"]) and state_bits(model.neck) == own
    moves = {move.target: move for move in report.moves}
    assert moves["backbone.conv.weight"].source == "backbone.module.conv.weight"
    assert moves["heads.depth.up.bias"].source == "heads.depth.up.bias"
    assert "backbone from" in report.source and "b.pth, decoder" in report.source
    assert report.coverage_by_module == {"backbone": 1.0, "heads": 1.0, "neck": 0.0}


def test_anything_that_is_a_source_can_be_part_of_it(files: dict[str, Any], tmp_path: Path) -> None:
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=files["c"])
    ckpt = tk.open(files["paths"]["b"])
    for normals in (
        tmp_path / "run",
        tk.Run(tmp_path / "run"),
        tk.Run(tmp_path / "run").open(),
        files["c"],
        files["c"].state_dict(),
    ):
        model = Tasks()
        given = {"heads.normals": normals, "heads.depth": (ckpt, "decoder."), "backbone": files["a"]}
        tk.load_into(model, given, allow="neck")
        assert state_bits(model.heads["normals"]) == state_bits(files["c"])
        assert state_bits(model.heads["depth"]) == state_bits(files["b"]["decoder"])
    model = Tasks()
    tk.load_into(model, {"heads.depth": files["b"]["decoder"].state_dict()}, allow="* but heads.depth")
    assert state_bits(model.heads["depth"]) == state_bits(files["b"]["decoder"])


def test_a_pair_and_a_run_are_sources_of_their_own(files: dict[str, Any], tmp_path: Path) -> None:
    model = Decoder()
    tk.load_into(model, (files["paths"]["b"], "decoder"))
    assert state_bits(model) == state_bits(files["b"]["decoder"])
    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=files["b"]["decoder"])
    again = Decoder()
    tk.load_into(again, tmp_path / "run")
    assert state_bits(again) == state_bits(model)


def test_a_prefix_may_lie_beside_the_model_that_was_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain, averaged = Decoder(), Decoder()
    parts = {"model": plain.state_dict(), "extra": {"average": averaged.state_dict()}}
    torch.save(parts, tmp_path / "both.pth")
    model = Decoder()
    tk.load_into(model, (tmp_path / "both.pth", "extra.average"))
    assert state_bits(model) == state_bits(averaged)
    assert tk.origins(model)["up.bias"].name == "extra.average.up.bias"
    with pytest.raises(SelectorError, match=r"nothing below 'extra\.averag'") as caught:
        tk.load_into(model, (tmp_path / "both.pth", "extra.averag"))
    assert "'extra.average'" in caught.value.hint
    with pytest.raises(LoadError, match="as one source was"):
        tk.load_into(nn.ModuleDict({"a": Decoder(), "b": Decoder()}), {"a": plain, "b": plain}, freeze=True)


def test_a_module_inside_another_takes_its_own_source(files: dict[str, Any]) -> None:
    torch.manual_seed(1)
    whole, other = Tasks(), Decoder()
    model = Tasks()
    report = tk.load_into(model, {"": whole, "heads.depth": other})
    assert state_bits(model.heads["depth"]) == state_bits(other)
    assert state_bits(model.backbone) == state_bits(whole.backbone) and report.coverage == 1.0
    assert any(
        "4 tensors of a Tasks are not taken: heads.depth has a source of its own" in note for note in report.notes
    )


def test_what_a_part_does_not_fit_is_named_with_its_module(files: dict[str, Any]) -> None:
    model = Tasks()
    given = sources(files) | {"heads.depth": files["paths"]["b"]}
    before = state_bits(model)
    with pytest.raises(IncompatibleCheckpointError, match=r"heads\.depth\.encoder\.weight") as caught:
        tk.load_into(model, given, allow="neck")
    assert caught.value.report.unexpected == ("heads.depth.encoder.weight", "heads.depth.encoder.bias")
    assert state_bits(model) == before
    tk.load_into(model, given, allow=["neck", "heads.depth.encoder"])  # the prefix was found
    for wrong, words in (
        ({"bakbone": "a.pth"}, "no module 'bakbone'"),
        ({"backbone.conv.weight": files["a"]}, "no module 'backbone.conv.weight'"),
        ({"heads.depth": (files["paths"]["b"], "decodre")}, "nothing below 'decodre'"),
    ):
        with pytest.raises(SelectorError, match=words) as odd:
            tk.load_into(model, wrong)
        assert "nearest" in odd.value.hint
    for wrong in ({"backbone": ("b.pth",)}, {"backbone": (files["a"], 3)}):
        with pytest.raises(LoadError, match="no pair"):
            tk.load_into(model, wrong)
    with pytest.raises(LoadError, match="no tensors: a"):
        tk.load_into(model, {"a": {"b": torch.ones(1)}})


def test_a_combination_is_planned_adapted_and_kept_as_a_file(files: dict[str, Any], tmp_path: Path) -> None:
    model = Tasks()
    model.heads["depth"] = Decoder(5)
    adapt = {"heads.depth.out": tk.adapters.rows({0: 4, 1: 0})}
    tk.plan_load(model, sources(files), adapt=adapt).save_plan(tmp_path / "plan.json", allow="neck")
    report = tk.load_into(model, sources(files), plan=tmp_path / "plan.json")
    assert torch.equal(model.heads["depth"].out.weight[[4, 0]], files["b"]["decoder"].out.weight)
    assert tk.origins(model)["heads.depth.out.bias"].adapter == "rows" and report.allowed == ("neck",)


# -- where it came from ------------------------------------------------------------------------------------------


def check_origins(origins: Any, files: dict[str, Any]) -> None:
    paths = files["paths"]
    assert {name.split(".")[0] for name in origins} == {"backbone", "heads"}
    one = origins["backbone.conv.weight"]
    assert (one.file, one.name) == (str(paths["a"]), "module.conv.weight")
    assert one.digest == digest_tensor(files["a"].conv.weight.detach())
    one = origins["heads.depth.up.bias"]
    assert (one.file, one.name, one.adapter) == (str(paths["b"]), "model.decoder.up.bias", "")
    one = origins["heads.normals.out.weight"]
    assert (one.file, one.name) == (str(paths["c"]), "out.weight")
    assert one.digest == tk.open(paths["c"]).facts.digests["out.weight"]


def test_origins_last_through_files_runs_copies_and_wrappers(files: dict[str, Any], tmp_path: Path) -> None:
    model = Tasks()
    assert tk.origins(model) == {}
    tk.load_into(model, sources(files), allow="neck")
    check_origins(tk.origins(model), files)
    check_origins(tk.origins(nn.DataParallel(copy.deepcopy(model))), files)
    assert set(tk.origins(nn.ModuleDict({"x": model}))) == {f"x.{name}" for name in tk.origins(model)}

    torch.save(model, tmp_path / "pickled.pth")
    assert b"torchkeep.core" not in (tmp_path / "pickled.pth").read_bytes(), "who unpickles it needs no torchkeep"

    path = tmp_path / "tasks.safetensors"
    tk.save(model, path)
    assert tk.verify(path).ok
    ckpt = tk.open(path)
    check_origins(ckpt.origins, files)
    assert set(ckpt.sub("heads").origins) == {name[6:] for name in ckpt.origins if name.startswith("heads.")}
    assert "loaded from" in str(ckpt) and "a.pth (" in str(ckpt)
    assert json.loads(json.dumps(tk.to_json(ckpt)))["origins"]["heads.depth.up.bias"]["name"] == "model.decoder.up.bias"
    tk.convert(path, tmp_path / "again.safetensors")
    check_origins(tk.open(tmp_path / "again.safetensors").origins, files)
    tk.convert(path, tmp_path / "half.safetensors", dtype=torch.float16)
    check_origins(tk.open(tmp_path / "half.safetensors").origins, files)

    tk.save(model, tmp_path / "parts.safetensors", max_shard_size=200)
    check_origins(tk.open(tmp_path / "parts.safetensors.index.json").origins, files)

    with tk.Run(tmp_path / "run") as run:
        run.save(0, model=model)
        check_origins(run.open().origins, files)
    fresh = Tasks()
    tk.load_into(fresh, files["c"], allow="*", rules=[tk.add("heads.depth.")])
    with tk.Run(tmp_path / "run") as run:
        assert run.resume(model=fresh) == 1
        check_origins(tk.origins(fresh), files)
        run.save(1)
        check_origins(run.open(2).origins, files)
    assert tk.verify(tmp_path / "run").ok


def test_one_source_is_remembered_too_and_a_later_one_takes_its_place(files: dict[str, Any], tmp_path: Path) -> None:
    model = TinyNet()
    tk.load_into(model, files["a"])
    assert tk.origins(model) == {}, "a module is no file"
    tk.load_into(model, files["paths"]["a"])
    origins = tk.origins(model)
    assert set(origins) == set(model.state_dict()) and origins["fc.bias"].digest == ""
    tk.save(files["a"], tmp_path / "d.safetensors")
    tk.load_into(model, tmp_path / "d.safetensors", allow="* but conv", rules=[tk.strip("nothing."), OnlyConv()])
    origins = tk.origins(model)
    assert origins["conv.bias"].file.endswith("d.safetensors") and len(origins["conv.bias"].digest) == 64
    assert origins["fc.bias"].file.endswith("a.pth")
    tk.surgery.resize_head(model, 9)
    assert "head.weight" not in tk.origins(model), "another shape is another tensor"
    assert len(str(tk.open(tmp_path / "d.safetensors"))) > 0 and tk.open(tmp_path / "d.safetensors").origins == {}


class OnlyConv:
    name = "only conv"

    def match(self, target: Any, source: Any, paired: Any) -> dict[str, str]:
        return {name: name for name in target if name.startswith("conv") and name in source}


def test_a_tied_tensor_is_of_the_file_that_it_was_read_from(files: dict[str, Any], tmp_path: Path) -> None:
    tk.save(files["a"], tmp_path / "a.safetensors")
    model = TinyNet()
    tk.load_into(model, tmp_path / "a.safetensors")
    origins = tk.origins(model)
    assert origins["fc.weight"].digest == origins["tied.weight"].digest != ""
    tk.save(model, tmp_path / "b.safetensors")
    assert tk.open(tmp_path / "b.safetensors").origins.keys() == origins.keys()


def test_a_reader_that_knows_nothing_of_origins_still_reads(files: dict[str, Any], tmp_path: Path) -> None:
    model = Tasks()
    tk.load_into(model, sources(files), allow="neck")
    tk.save(model, tmp_path / "tasks.safetensors")
    from safetensors.torch import load_file

    loaded = load_file(tmp_path / "tasks.safetensors")
    assert torch.equal(loaded["neck.weight"], model.neck.weight)
    other = Tasks()
    tk.load_into(other, tmp_path / "tasks.safetensors")
    assert state_bits(other) == state_bits(model)


@pytest.mark.parametrize(
    "wrong",
    [
        '{"files":[],"tensors":{"a":[0]}}',
        '{"files":["f"],"tensors":{"a":[0,1,2,3,4]}}',
        '{"files":3}',
        '{"files":["f"],"tensors":{"a":["x"]}}',
        '{"files":["f"],"tensors":{"a":[]}}',
    ],
)
def test_origins_that_lie_are_damage(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    from torchkeep.core.origin import Origin, remember
    from torchkeep.formats import layout

    model = nn.Linear(1, 1)
    remember(model, {"weight": Origin("f", "w")})
    encode = msgspec.json.encode

    def lying(value: Any) -> bytes:
        text = encode(value)
        return text.replace(b'{"files":["f"],"tensors":{"weight":[0,"w"]}}', wrong.encode())

    monkeypatch.setattr(layout.msgspec.json, "encode", lying)
    tk.save(model, tmp_path / "m.safetensors")
    monkeypatch.undo()
    with pytest.raises(CorruptCheckpointError):
        _ = tk.open(tmp_path / "m.safetensors").origins


def test_inspect_shows_where_it_came_from(files: dict[str, Any], tmp_path: Path) -> None:
    model = Tasks()
    tk.load_into(model, sources(files), allow="neck")
    tk.save(model, tmp_path / "tasks.safetensors")
    command = [sys.executable, "-m", "torchkeep", "inspect", str(tmp_path / "tasks.safetensors"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["origins"]["heads.depth.out.weight"]["file"] == str(files["paths"]["b"])


def test_modules_of_one_model_trade_their_weights() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    was = copy.deepcopy(net)
    tk.load_into(net, {"a": net["b"], "b": net["a"]})
    assert torch.equal(net["a"].weight, was["b"].weight) and torch.equal(net["b"].weight, was["a"].weight)
    both = nn.Linear(2, 2)
    turned = both.weight.detach().clone().t()
    tk.load_into(both, {"weight": both.weight.detach().t(), "bias": both.weight.detach()[1]})
    assert torch.equal(both.weight, turned) and torch.equal(both.bias, turned[:, 1])
