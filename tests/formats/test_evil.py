"""The hostile files: every one is opened in every way there is; nothing runs, nothing explodes, each is reported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MARKERS = Path("/tmp/torchkeep-x/evil")  # the payloads of the corpus write here and nowhere else
SECONDS, MEGABYTES = 5.0, 500.0

# Reads each sample by its sniffed format and by every other format, loads what it can, and reports as JSON lines.
PROBE = """
import json, resource, sys, time
import torchkeep as tk
from torchkeep.core.limits import Limits
from torchkeep.core.registry import make_part
from torchkeep.opening import as_source
from torchkeep.errors import TorchkeepError
from torchkeep.formats import FORMATS

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def attempt(action):
    try:
        return action(), None
    except TorchkeepError as error:
        return None, error

def read_all(ckpt):
    problems = []
    for name, tensor in ckpt.items():
        _, error = attempt(tensor.load)
        problems += [str(error)] if error else []
    return problems

for path in sys.argv[1:]:
    start, before = time.process_time(), peak()
    ckpt, error = attempt(lambda: tk.open(path))
    report = {
        "file": path, "error": type(error).__name__ if error else "",
        "family": [c.__name__ for c in type(error).__mro__],
        "message": str(error) if error else "", "tensors": len(ckpt) if error is None else 0,
        "findings": [[f.code, f.severity, f.message] for f in ckpt.findings] if error is None else [],
        "load": read_all(ckpt) if error is None else [], "text": str(ckpt)[:2000] if error is None else "",
    }
    for name in FORMATS:
        reader = make_part(FORMATS, name, "format")
        other, _ = attempt(lambda: reader.open(as_source(path), Limits()))
        if other is not None:
            read_all(other)
        if hasattr(reader, "verify"):
            attempt(lambda: list(reader.verify(as_source(path), Limits())))
    report |= {"seconds": time.process_time() - start, "megabytes": peak() - before}
    print(json.dumps(report), flush=True)
"""

NAMES_CODE = ("posix.system", "builtins.exec", "subprocess.Popen", "os.system", "collect_env.run", "functools.partial")
SAID_IN_CODE = {"torchscript_setstate.pt": "from_file, save"}  # nothing in its pickle: the code is the payload
NOTHING_TO_RUN = {"legacy_module_source_pid.pth"}  # only text, kept as text
NAMED = {
    "html_error_page.pth": "HTML page",
    "git_lfs_pointer.pth": "git lfs pull",
    "seven_zip.pth": "7z",
    "gguf.bin": "GGUF",
}


@pytest.fixture(scope="module")
def markers() -> Iterator[Path]:
    shutil.rmtree(MARKERS, ignore_errors=True)
    MARKERS.mkdir(parents=True)
    yield MARKERS
    shutil.rmtree(MARKERS, ignore_errors=True)


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


@pytest.fixture(scope="module")
def manifest(evil: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((evil / "manifest.json").read_text())
    return entries


@pytest.fixture(scope="module")
def reports(evil: Path, markers: Path) -> dict[str, dict[str, Any]]:
    files = sorted(path for path in evil.rglob("*") if path.name != "manifest.json")
    done = run_python(PROBE, *map(str, files))
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(files) > 60
    return {str(Path(report["file"]).relative_to(evil)): report for report in found}


def test_nothing_is_executed(reports: dict[str, dict[str, Any]], markers: Path) -> None:
    assert len(reports) > 60
    assert list(markers.iterdir()) == []


def test_the_control_is_executed_by_an_ordinary_unpickler(
    reports: dict[str, dict[str, Any]], evil: Path, markers: Path
) -> None:
    run_python(
        "import sys, torch; torch.load(sys.argv[1], weights_only=False)", str(evil / "exec_reduce_posix_system.pth")
    )
    made = [path.name for path in markers.iterdir()]
    for path in markers.iterdir():
        path.unlink()
    assert made == ["EXECUTED_exec_reduce_posix_system"]


def test_no_file_costs_much(reports: dict[str, dict[str, Any]]) -> None:
    slow = {name: each["seconds"] for name, each in reports.items() if each["seconds"] > SECONDS}
    big = {name: each["megabytes"] for name, each in reports.items() if each["megabytes"] > MEGABYTES}
    assert not slow
    assert not big


def test_each_is_reported_as_its_kind_demands(
    reports: dict[str, dict[str, Any]], manifest: list[dict[str, Any]]
) -> None:
    wrong = []
    for entry in manifest:
        name = entry["file"].rstrip("/")
        report = reports[name]
        complaint = JUDGES[entry["kind"]](name, report)
        if complaint:
            wrong.append(f"{name} ({entry['good_reader']}): {complaint}; {report['message']} {report['findings']}")
    assert not wrong, "\n".join(wrong)


def _judge_exec(name: str, report: dict[str, Any]) -> str:
    if name in NOTHING_TO_RUN:
        return "" if not report["error"] else "did not open"
    said = report["message"] + " ".join(text for _, severity, text in report["findings"] if severity == "danger")
    if name in SAID_IN_CODE:
        return "" if SAID_IN_CODE[name] in said and not report["error"] else "does not say what its code would do"
    return "" if any(code in said for code in NAMES_CODE) else "does not name what it would run"


def _judge_refused(name: str, report: dict[str, Any]) -> str:
    wanted = {"CorruptCheckpointError", "UnsafeCheckpointError"}
    if name == "sparse_index_oob.pth":  # its indices are values, which nobody reads before they are wanted
        return "" if any("outside of its shape" in problem for problem in report["load"]) else "was not refused"
    return "" if wanted & set(report["family"]) else "was not refused"


def _judge_resource(name: str, report: dict[str, Any]) -> str:
    return ""  # what counts is the cost, which is tested for every file


def _judge_oddity(name: str, report: dict[str, Any]) -> str:
    told = report["error"] or any(severity in {"warning", "danger"} for _, severity, _ in report["findings"])
    if "truncated" in name and "truncated" not in report["message"] + str(report["findings"]):
        return "does not say that it is truncated"
    if name in {"zip_missing_storage.pth", "legacy_truncated.pth"} and (report["error"] or not report["load"]):
        return "does not list its tensors, or loads what is not there"
    return "" if told else "is not reported"


def _judge_foreign(name: str, report: dict[str, Any]) -> str:
    return "" if NAMED[name] in report["message"] else "is not named"


def _judge_path(name: str, report: dict[str, Any]) -> str:
    return "" if report["error"] else "was opened"


JUDGES = {
    "exec": _judge_exec,
    "path": _judge_path,
    "memory": _judge_refused,
    "resource": _judge_resource,
    "zip": _judge_oddity,
    "corrupt": _judge_oddity,
    "notckpt": _judge_foreign,
    "safetensors": _judge_refused,
}
