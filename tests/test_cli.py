"""The command line: every command, its JSON, its exit codes, and that each is documented."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import torchkeep as tk
from models import TinyNet
from torchkeep import errors
from torchkeep.cli.app import app, main

ROOT = Path(__file__).parents[1]
EDITS = ("select", "drop", "rename", "cast", "merge", "split", "average", "diff")
COMMANDS = (*EDITS, "inspect", "about", "convert", "load", "scan", "verify", "runs", "prune", "gc", "tag", "demo")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchkeep", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program in this process: exit code and standard output."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["torchkeep", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), out, err

    return call


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = TinyNet()
    optimizer = torch.optim.Adam(model.parameters())
    path = tmp_path / "train.pth"
    torch.save({"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return path


def test_inspect_json_is_what_other_programs_rely_on(call: Any, checkpoint: Path) -> None:
    code, out, _ = call("inspect", checkpoint, "--json")
    answer = json.loads(out)
    assert code == 0 and answer["format"] == "torch_zip" and answer["kind"] == "training"
    assert answer["findings"] == [] and answer["model"]["key"] == "state_dict"
    (conv,) = (tensor for tensor in answer["tensors"] if tensor["name"] == "state_dict.conv.weight")
    promised = {"dtype": "float32", "shape": [4, 1, 3, 3], "device": "cpu", "requires_grad": False, "nbytes": 144}
    assert promised.items() <= conv.items()
    code, out, _ = call("inspect", checkpoint, "--model", "--json")
    assert {tensor["name"] for tensor in json.loads(out)["tensors"]} == set(TinyNet().state_dict())


def test_inspect_findings_have_code_severity_and_message(call: Any, evil: Path) -> None:
    code, out, _ = call("inspect", evil / "exec_reduce_posix_system.pth", "--json")
    finding = json.loads(out)["findings"][0]
    assert code == 0 and finding["severity"] == "danger" and "posix.system" in finding["message"] and finding["code"]


def test_inspect_for_people(call: Any, checkpoint: Path) -> None:
    code, out, _ = call("inspect", checkpoint)
    assert code == 0
    for word in ("torch_zip", "training", "state_dict.conv.weight", "float32[4, 1, 3, 3]", "model under"):
        assert word in out


def test_convert_verify_and_load_back(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    code, out, _ = call("convert", checkpoint, target)
    assert code == 0 and "converted" in out
    code, out, _ = call("verify", target)
    assert code == 0 and "intact" in out
    old, new = tk.load(checkpoint), tk.load(target)
    assert new["epoch"] == 1 and torch.equal(new["state_dict"]["conv.weight"], old["state_dict"]["conv.weight"])
    assert new["optimizer"]["param_groups"] == old["optimizer"]["param_groups"]
    code, _, _ = call("convert", checkpoint, target, "--model")
    assert set(tk.open(target)) == set(TinyNet().state_dict())
    code, _, err = call("convert", checkpoint, tmp_path / "out.onnx")
    assert code == errors.SaveError.exit_code and ".safetensors" in err
    code, _, err = call("convert", target, target)
    assert code == errors.SaveError.exit_code and "being converted" in err


def test_edits_speak_as_the_library_does(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    names = set(TinyNet().state_dict())

    def edit(*arguments: str | Path, to: str = "out.safetensors") -> set[str]:
        code, out, err = call(*arguments, "-o", tmp_path / to)
        assert code == 0 and "converted" in out, err
        return set(tk.open(tmp_path / to).model)

    head = {"head.weight", "head.bias"}
    assert edit("select", checkpoint, "head", to="head.safetensors") == head
    assert edit("drop", checkpoint, "* but head", "head.bias", to="w.pth") == {"head.weight"}
    assert edit("rename", checkpoint, "head=fc.out", r"re:^(fc|tied)\.=x.\1.") >= {
        "fc.out.bias",
        "x.fc.weight",
        "x.tied.bias",
    }
    assert edit("rename", checkpoint, "=net") == {f"net.{name}" for name in names}
    assert edit("cast", checkpoint, "bf16", "--only", "head", to="c.pth") == names
    assert torch.load(tmp_path / "c.pth")["head.bias"].dtype is torch.bfloat16
    assert edit("average", checkpoint, checkpoint, "--weight", "2", "--weight", "1", to="mean.safetensors") == names
    assert call("diff", checkpoint, tmp_path / "mean.safetensors")[0] == 0
    merged = edit("merge", f"a={checkpoint}", tmp_path / "head.safetensors", to="m.safetensors")
    assert merged == {f"a.{name}" for name in names} | head
    code, out, _ = call(
        "split", tmp_path / "m.safetensors", "a=a.*", "--rest", "b", "-o", tmp_path / "p.safetensors", "--json"
    )
    assert code == 0 and set(json.loads(out)["parts"]) == {"a", "b"}
    assert set(tk.open(tmp_path / "p-b.safetensors")) == head
    code, out, _ = call("split", checkpoint, "-o", tmp_path / "q.pth")
    assert code == 0 and set(torch.load(tmp_path / "q-head.pth")) == head
    code, out, _ = call(
        "select", checkpoint, "conv", "-o", tmp_path / "s.safetensors", "--max-shard-size", "100", "--json"
    )
    assert code == 0 and json.loads(out)["save"]["path"].endswith("index.json")


def test_edits_that_go_wrong_have_codes(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    torch.save(TinyNet(classes=5).state_dict(), tmp_path / "other.pth")
    for code, *arguments in (
        (50, "select", checkpoint, "haed", "-o", out),
        (50, "rename", checkpoint, "haed=x", "-o", out),
        (2, "rename", checkpoint, "head", "-o", out),
        (2, "split", checkpoint, "head", "-o", out),
        (54, "split", checkpoint, "a=head", "-o", out),
        (54, "merge", checkpoint, tmp_path / "other.pth", "-o", out),
        (54, "average", checkpoint, tmp_path / "other.pth", "-o", out),
        (30, "drop", checkpoint, "head", "-o", checkpoint),
        (11, "cast", tmp_path / "nothing.pth", "bf16", "-o", out),
        (2, "select", checkpoint, "head"),
    ):
        assert call(*arguments)[0] == code, arguments
    code, said, _ = call("average", checkpoint, tmp_path / "other.pth", "-o", out, "--json")
    answer = json.loads(said)
    assert answer["error"] == "EditError" and answer["names"] == ["head.weight"] and not out.exists()


def test_diff_has_an_exit_code_and_json(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint)["state_dict"]
    state["head.bias"] = state["head.bias"] * 1.001
    state["new"] = torch.ones(2, 2)
    torch.save(state, tmp_path / "b.pth")
    code, out, _ = call("diff", checkpoint, tmp_path / "b.pth", "--json", "--only-changed")
    answer = json.loads(out)
    assert code == 77 and not answer["equal"] and answer["counts"] == {"added": 1, "moved": 1, "equal": len(state) - 2}
    moved = next(change for change in answer["changes"] if change["what"] == "moved")
    assert moved["name"] == "head.bias" and abs(moved["relative"] - 0.001) < 1e-5 and len(answer["changes"]) == 2
    code, out, _ = call("diff", checkpoint, tmp_path / "b.pth")
    assert code == 77 and "head.bias" in out and "conv.weight" in out
    assert "conv.weight" not in call("diff", checkpoint, tmp_path / "b.pth", "--only-changed")[1]
    del state["new"]
    torch.save(state, tmp_path / "b.pth")
    assert call("diff", checkpoint, tmp_path / "b.pth", "--tolerance", "0.01")[0] == 0
    assert call("diff", checkpoint, checkpoint, "--whole", "--read-all", "--only-changed")[0] == 0
    assert call("diff", checkpoint, tmp_path / "b.pth", "--tolerance", "-1")[0] == 2
    assert call("diff", checkpoint, tmp_path / "none.pth")[0] == 11


def test_verify_exit_codes(call: Any, checkpoint: Path, tmp_path: Path) -> None:
    assert call("verify", checkpoint)[0] == 0
    data = bytearray(checkpoint.read_bytes())
    storage = tk.open(checkpoint)["state_dict.conv.weight"].storage
    assert storage is not None and storage.offset is not None
    data[storage.offset + 5] ^= 1
    (tmp_path / "bad.pth").write_bytes(data)
    code, out, _ = call("verify", tmp_path / "bad.pth", "--json")
    assert code == 70 and not json.loads(out)["ok"]
    legacy = tmp_path / "legacy.pth"
    torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    code, out, _ = call("verify", legacy)
    assert code == 71 and "cannot be verified" in out
    with tk.Run(tmp_path / "run") as the_run:
        the_run.save(0, model=TinyNet())
    assert call("verify", tmp_path / "run")[0] == 0
    (pack,) = (tmp_path / "run" / "packs").iterdir()
    broken = bytearray(pack.read_bytes())
    broken[-1] ^= 1
    pack.write_bytes(broken)
    assert call("verify", tmp_path / "run")[0] == 70


def test_load_plans_and_loads(call: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = f"{ROOT / 'tests' / 'models.py'}:TinyNet"
    code, out, _ = call("load", checkpoint, "--into", factory, "--dry-run", "--json")
    answer = json.loads(out)
    assert code == 0 and not answer["applied"] and answer["coverage"] == 1.0
    code, out, _ = call("load", checkpoint, "--into", factory, "--out", tmp_path / "m.safetensors")
    assert code == 0 and "copied" in out and tk.verify(tmp_path / "m.safetensors").ok
    other = tmp_path / "other.pth"
    state = TinyNet(classes=7).state_dict()
    torch.save(state, other)
    code, out, _ = call("load", other, "--into", factory, "--dry-run", "--json")
    answer = json.loads(out)
    assert code == 21 and answer["report"]["mismatched"] == ["head.weight", "head.bias"]
    assert call("load", other, "--into", factory, "--allow", "head.*")[0] == 0
    torch.save({f"student.{name}": tensor for name, tensor in TinyNet().state_dict().items()}, other)
    assert call("load", other, "--into", factory, "--strip", "student.")[0] == 0
    for wrong in ("models", "nothing.there:Net", f"{ROOT / 'tests' / 'models.py'}:Nope"):
        assert call("load", other, "--into", wrong)[0] == 2


def test_runs_lists_one_run_or_a_folder_of_them(call: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with tk.Run(tmp_path / name) as the_run:
            the_run.log(val_loss=0.5)
            the_run.save(3, model=TinyNet())
    code, out, _ = call("runs", tmp_path / "a", "--json")
    (only,) = json.loads(out)["runs"]
    assert code == 0 and only["snapshots"][0]["step"] == 3 and only["best"] == 1
    code, out, _ = call("runs", tmp_path)
    assert code == 0 and out.count("1 best") == 2
    assert call("runs", tmp_path / "a" / "packs")[0] == errors.LoadError.exit_code
    (tmp_path / "a" / "snapshots" / "1.json").write_bytes(b"{}")
    assert "damaged: snapshot 1" in call("runs", tmp_path / "a")[1]


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 11, "no such file"),
        (b"", 12, "empty"),
        (b"<!DOCTYPE html><html>", 12, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", 12, "git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), 15, "HDF5"),
        (b"\x1f\x8b\x08" + bytes(40), 13, "inflated"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), 15, "zstd"),
        (b"import os\nprint(os.name)\n" * 9, 12, "is text"),
        (bytes(5000), 12, "zero bytes"),
        (b"PK\3\4" + bytes(100), 13, "truncated"),
    ],
)
def test_errors_name_the_file_and_have_a_code_each(
    call: Any, tmp_path: Path, content: bytes | None, code: int, words: str
) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    got, out, err = call("inspect", path)
    assert (got, out) == (code, "") and words in err and str(path) in err
    got, out, err = call("inspect", path, "--json")
    answer = json.loads(out)
    assert got == code == answer["exit_code"] and answer["file"] == str(path) and words in json.dumps(answer)


def test_a_folder_without_a_checkpoint_is_named(call: Any, tmp_path: Path) -> None:
    code, _, err = call("inspect", tmp_path)
    assert code == 12 and "is a folder without a checkpoint" in err


def test_every_error_class_has_a_code_of_its_own_in_the_docs() -> None:
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.TorchkeepError)
    ]
    codes = [cls.exit_code for cls in classes]
    assert len(set(codes)) == len(codes)
    table = (ROOT / "docs" / "cli.md").read_text()
    tree = errors.__doc__ or ""
    for cls in classes:
        assert f"| {cls.exit_code} | `{cls.__name__}`" in table, cls.__name__
        assert cls.__name__ in tree


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json_and_is_documented(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0 and "--json" in result.output
    assert f"## torchkeep {command}" in (ROOT / "docs" / "cli.md").read_text()


def test_it_runs_as_a_module_and_names_every_command(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0 and all(command in result.stdout for command in COMMANDS)
    assert run("--version", cwd=tmp_path).stdout == f"torchkeep {tk.__version__}\n"
    missing = run("inspect", "nope.pth", cwd=tmp_path)
    assert missing.returncode == 11 and "nope.pth" in missing.stderr and "Traceback" not in missing.stderr


def test_a_closed_pipe_is_no_error(checkpoint: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "torchkeep", "inspect", str(checkpoint)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert b"Traceback" not in result.stderr
