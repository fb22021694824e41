"""Leaving: what is exported computes what the model computes, or is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchkeep as tk
from models import TinyNet, state_bits
from torchkeep.errors import MissingDependencyError, OutputsDifferError, SaveError
from torchkeep.exporting import leaving, onnxfile

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

IMAGES = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(1))
BOTH = pytest.mark.parametrize("suffix", [".onnx", ".pt2"])


def outputs(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a file computes, by a program that is not torchkeep."""
    if path.suffix == ".pt2":
        found = torch.export.load(path).module()(*inputs)
        return list(found) if isinstance(found, tuple) else [found]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    given = dict(zip(names, [one.numpy() for one in inputs], strict=True))
    return [torch.from_numpy(array) for array in session.run(None, given)]


class Two(nn.Module):
    """Two inputs, one that is not used, and outputs of which one is of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor, unused: torch.Tensor, *, shift: torch.Tensor | None = None) -> Any:
        logits = self.fc(x) if shift is None else self.fc(x) + shift
        return {"logits": logits, "best": logits.argmax(1)}


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Counting(nn.Module):
    """Python that a graph cannot know of."""

    calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Counting.calls += 1
        return x * Counting.calls


@BOTH
def test_the_file_computes_what_the_model_computes_for_any_batch(suffix: str, tmp_path: Path) -> None:
    model = TinyNet()  # in train mode: it is exported in eval mode all the same
    before = state_bits(model)
    path = tmp_path / f"m{suffix}"
    report = tk.export(model, path, IMAGES)
    assert isinstance(report, tk.ExportReport) and report.bytes == path.stat().st_size
    assert report.difference is not None and report.difference < 1e-5
    assert report.checked == ("float32[4, 1, 5, 5]", "float32[5, 1, 5, 5]")
    assert "differs from the model by" in str(report) and "in eval mode: batch_norm, dropout" in str(report)
    assert all(module.training for module in model.modules()) and state_bits(model) == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    model.eval()
    for rows in (1, 7):
        images = torch.randn(rows, 1, 5, 5)
        torch.testing.assert_close(outputs(path, images)[0], model(images))


@BOTH
def test_several_inputs_and_outputs_by_position_and_by_name(suffix: str, tmp_path: Path) -> None:
    model, x, unused = Two(), torch.randn(3, 3), torch.ones(3, 9)
    path = tmp_path / f"m{suffix}"
    tk.export(model, path, (x, unused))
    got = outputs(path, x, unused) if suffix == ".onnx" else None
    assert got is None or torch.equal(got[1], model(x, unused)["best"])
    report = tk.export(model, path, {"shift": torch.ones(3, 5), "unused": unused, "x": x})
    assert report.difference is not None and report.difference < 1e-6


def test_metadata_is_kept(tmp_path: Path) -> None:
    model = TinyNet()
    metadata = {"licence": "CC-BY-4.0", "classes": "cat, dog, größer"}
    tk.export(model, tmp_path / "m.onnx", IMAGES, metadata=metadata)
    written = onnx.load(tmp_path / "m.onnx")
    held = {entry.key: entry.value for entry in written.metadata_props}
    assert held.items() >= metadata.items() and held["model"] == "models.TinyNet"
    assert held["producer"].startswith("torchkeep ") and held["inputs"] == written.graph.input[0].name == "images"
    assert held["outputs"] == written.graph.output[0].name
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    tk.export(model, tmp_path / "m.pt2", IMAGES, metadata=metadata)
    assert tk.open(tmp_path / "m.pt2").metadata == held
    assert tk.open(tmp_path / "m.pt2").findings == ()
    tk.export(TinyNet(), tmp_path / "m.pt2", IMAGES)
    assert tk.open(tmp_path / "m.pt2").metadata["state"] != held["state"]


def test_a_program_with_its_weights_is_opened_by_torchkeep(tmp_path: Path) -> None:
    model = TinyNet().eval()
    tk.export(model, tmp_path / "m.pt2", IMAGES)
    fresh = TinyNet().eval()
    assert tk.load_into(fresh, tmp_path / "m.pt2").coverage == 1
    assert torch.equal(fresh(IMAGES), model(IMAGES))


@pytest.mark.parametrize(("module", "suffix"), [(Noisy, ".onnx"), (Counting, ".pt2")])
def test_a_file_that_computes_something_else_is_not_kept(module: type, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"an older file")
    with pytest.raises(OutputsDifferError, match="the file was not kept") as caught:
        tk.export(module(), path, torch.ones(4, 3))
    assert caught.value.difference > 0.01 and caught.value.place == "output 0"
    assert [file.name for file in tmp_path.iterdir()] == [path.name] and path.read_bytes() == b"an older file"


def test_the_tolerance_is_a_share_of_the_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(path: Path) -> Any:
        return lambda example: [example.tensors[0] * 1000 + 1]

    monkeypatch.setitem(leaving._WRITERS, ".pt2", (leaving._write_pt2, shifted))
    thousand = nn.Linear(1, 1, bias=False)
    nn.init.constant_(thousand.weight, 1000)
    with pytest.raises(OutputsDifferError, match=r"differs by 1, and 0\.1 is accepted"):
        tk.export(thousand, tmp_path / "m.pt2", torch.ones(2, 1))
    report = tk.export(thousand, tmp_path / "m.pt2", torch.ones(2, 1), tolerance=2e-3)
    assert report.difference == pytest.approx(1)


def test_integers_have_to_be_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ids(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1_000_000

    monkeypatch.setitem(
        leaving._WRITERS, ".pt2", (leaving._write_pt2, lambda _: lambda example: [example.tensors[0] * 1_000_000 + 1])
    )
    with pytest.raises(OutputsDifferError, match="0 is accepted"):
        tk.export(Ids(), tmp_path / "m.pt2", torch.ones(2, 1, dtype=torch.int64))


def test_another_number_of_outputs_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(leaving._WRITERS, ".pt2", (leaving._write_pt2, lambda _: lambda example: []))
    with pytest.raises(OutputsDifferError, match="0 outputs where the model has 1"):
        tk.export(nn.Linear(1, 1), tmp_path / "m.pt2", torch.ones(2, 1))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_no_numbers_agree_with_themselves(tmp_path: Path) -> None:
    class Logs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    report = tk.export(Logs(), tmp_path / "m.onnx", torch.tensor([[0.0, 1.0, -1.0], [2.0, 3.0, 4.0]]))
    assert report.difference is not None and report.difference < 1e-5


def test_fixed_shapes(tmp_path: Path) -> None:
    report = tk.export(nn.Linear(3, 2), tmp_path / "m.onnx", torch.ones(4, 3), dynamic_shapes=None)
    assert report.checked == ("float32[4, 3]",)
    with pytest.raises(Exception, match="Got: 5 Expected: 4"):  # onnxruntime has classes of its own
        outputs(tmp_path / "m.onnx", torch.ones(5, 3))


def test_without_a_check_that_is_said(tmp_path: Path) -> None:
    report = tk.export(Noisy(), tmp_path / "m.pt2", torch.ones(4, 3), tolerance=None)
    assert report.difference is None and report.checked == () and "not checked" in str(report)
    with pytest.raises(ValueError, match="tolerance is nan"):
        tk.export(Noisy(), tmp_path / "m.pt2", torch.ones(4, 3), tolerance=float("nan"))


def test_what_onnxruntime_cannot_run_is_no_export(tmp_path: Path) -> None:
    model = nn.Linear(3, 2).to(torch.bfloat16)
    with pytest.raises(SaveError, match="cannot be run") as caught:
        tk.export(model, tmp_path / "m.onnx", torch.ones(4, 3, dtype=torch.bfloat16))
    assert "tolerance=None" in caught.value.hint and list(tmp_path.iterdir()) == []
    assert tk.export(model, tmp_path / "m.pt2", torch.ones(4, 3, dtype=torch.bfloat16)).difference == 0


def test_large_weights_go_into_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxfile, "_MOST", 1000)
    model = nn.Linear(64, 64)
    report = tk.export(model, tmp_path / "m.onnx", torch.ones(4, 64))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert "m.onnx.data" in str(report)
    torch.testing.assert_close(outputs(tmp_path / "m.onnx", torch.ones(9, 64))[0], model(torch.ones(9, 64)))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(SaveError, match="exists already"):
        tk.export(nn.Linear(64, 64), tmp_path / "m.onnx", torch.ones(4, 64))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=f"needs {package}") as caught:
        tk.export(nn.Linear(3, 2), tmp_path / "m.onnx", torch.ones(4, 3))
    assert "torchkeep[export]" in caught.value.hint and list(tmp_path.iterdir()) == []
    assert tk.export(nn.Linear(3, 2), tmp_path / "m.pt2", torch.ones(4, 3)).difference == 0


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match=r"neither .onnx nor .pt2"):
        tk.export(nn.Linear(3, 2), tmp_path / "m.tflite", torch.ones(4, 3))
    with pytest.raises(SaveError, match="there is no folder"):
        tk.export(nn.Linear(3, 2), tmp_path / "gone" / "m.pt2", torch.ones(4, 3))

    with pytest.raises(SaveError, match="on the meta device"):
        tk.export(nn.Linear(3, 2, device="meta"), tmp_path / "m.pt2", torch.ones(4, 3, device="meta"))

    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x)

    with pytest.raises(SaveError, match=r"cannot be written as ONNX: .*No ONNX function found for .*eig"):
        tk.export(Unknown(), tmp_path / "m.onnx", torch.eye(3), dynamic_shapes=None)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_is_exported_on(tmp_path: Path) -> None:
    from torchkeep.exporting.graph import load_graph

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    tk.save(model, tmp_path / "m.safetensors", example_inputs=torch.ones(2, 3))
    tk.export(load_graph(tmp_path / "m.safetensors"), tmp_path / "whole.pt2", torch.ones(2, 3))
    torch.testing.assert_close(outputs(tmp_path / "whole.pt2", torch.ones(5, 3))[0], model(torch.ones(5, 3)))
