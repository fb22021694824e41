"""The documentation runs: Python blocks of a page share one namespace and folder, console blocks show true output."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import pytest

from torchkeep.cli.app import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str, int]]:
    text = page.read_text()
    return [(found[1], found[2], text.count("\n", 0, found.start()) + 2) for found in BLOCK.finditer(text)]


def shown(block: str) -> list[tuple[str, str]]:
    """Commands of a console block, each with the output that the page shows."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    assert not parts[0].strip(), "a console block begins with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def matches(expected: str, got: str) -> bool:
    """Line by line, trailing spaces ignored; `...` stands for anything."""

    def clean(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().splitlines())

    pattern = ".*?".join(map(re.escape, clean(expected).split("...")))
    return re.fullmatch(pattern, clean(got), re.DOTALL) is not None


def answered(command: str, path: str) -> tuple[int, str, str]:
    """Exit code and output of a command. torchkeep alone runs in this process, which has imported torch already."""
    words = shlex.split(command)
    if words[0] != "torchkeep" or set("|<>;&$*") & set(command):
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False
        )
        return done.returncode, done.stdout, done.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    with mock.patch("sys.argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return code, texts[0], texts[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    module = types.ModuleType("docs_page")  # a real module, so that what a page defines can be pickled
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for language, block, line in blocks(page):
        if language == "python":
            code = compile("\n" * (line - 1) + block, str(page), "exec")
            exec(code, vars(module))  # noqa: S102 - our own pages
        elif language == "console":
            for command, expected in shown(block):
                code, out, err = answered(command, path)
                assert code == 0, f"{page.name}:{line}: {command}\n{err}"
                assert matches(expected, out), f"{page.name}:{line}: {command}\n{out}"
        else:
            assert language in {"sh", "text", "json"}, f"{page.name}:{line}: a block in {language} is not run"


def test_the_comparison_can_fail() -> None:
    assert matches("a\n  b ... c\n", "a\n  b 17 c   \n")
    assert not matches("a\nb\n", "a\nc\n")
    assert not matches("a\n", "a\nb\n")
