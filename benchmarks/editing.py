"""What editing a large file costs in memory: convert, select, drop, rename, cast, average, split, merge and diff.

    python -m benchmarks.editing [--gb 3] [--folder DIR] [--write docs/benchmarks-editing.md]

Each job runs in a process of its own. Memory is what it adds, at most, to RssAnon and RssShmem, looked at every 5 ms: what
the kernel cannot give up. Pages of the mapped source are left out, since it can. Needs room for about four such files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import torchkeep as tk

from .disk.probe import Memory

ROOT = Path(__file__).parents[1]
LARGEST = 512 << 20  # bytes of the one large tensor, which must be read in pieces
MOST = 300.0
Job = Callable[[Path], object]


def _split(folder: Path) -> None:
    for name, part in tk.edit.split(folder / "a.pth", {"even": r"re:^block\.\d*[02468]\."}, rest="other").items():
        tk.save(part, folder / f"out-{name}.safetensors")


JOBS: dict[str, tuple[str, Job]] = {
    "convert": (".pth to .safetensors", lambda at: tk.convert(at / "a.pth", at / "out.safetensors")),
    "convert, in shards": ("shards of 500 MB", lambda at: tk.convert(at / "a.pth", at / "s.safetensors", max_shard_size="500MB")),
    "convert, bf16": ("to .pth", lambda at: tk.convert(at / "a.pth", at / "out.pth", dtype="bf16")),
    "select": ("all but one block", lambda at: tk.save(tk.edit.select(at / "a.pth", "* but block.1"), at / "out.safetensors")),
    "rename": ("a prefix more", lambda at: tk.save(tk.edit.rename(at / "a.pth", {"": "net"}), at / "out.safetensors")),
    "average": ("of two files", lambda at: tk.save(tk.edit.average(at / "a.pth", at / "b.safetensors"), at / "out.safetensors")),
    "average, to .pth": ("of two files", lambda at: tk.convert(tk.edit.average(at / "a.pth", at / "b.safetensors"), at / "out.pth")),
    "split": ("in two parts", _split),
    "merge": ("two files in one, twice as large", lambda at: tk.save(tk.edit.merge({"a": at / "a.pth", "b": at / "b.safetensors"}), at / "out.safetensors")),
    "diff": ("every element moved", lambda at: tk.diff(at / "a.pth", at / "b.safetensors")),
}  # fmt: skip


def prepare(folder: Path, gigabytes: float) -> int:
    """Two files of random float32 weights, a torch zip and safetensors, one tensor of each large and one turned round."""
    total = int(gigabytes * 1e9)
    large = min(LARGEST, total // 3)
    left, width = total - large, 1448
    count = max(2, left // (4 * width * width))
    for seed, name in enumerate(("a.pth", "b.safetensors")):
        generator = torch.Generator().manual_seed(seed)
        state = {"embed.weight": torch.rand(large // 4096, 1024, generator=generator)}
        for number in range(count):
            state[f"block.{number}.weight"] = torch.rand(width, width, generator=generator)
        if name.endswith(".pth"):
            state["block.0.weight"] = state["block.0.weight"].t()
            torch.save(state, folder / name)
        else:
            tk.save(state, folder / name)
    return (folder / "a.pth").stat().st_size


def perform(name: str, folder: Path) -> dict[str, float]:
    """One job in this process: megabytes that it added, and seconds of a processor."""
    started = time.process_time()
    with Memory() as memory:
        JOBS[name][1](folder)
    return {"mb": memory.rise, "seconds": time.process_time() - started}


def measured(name: str, folder: Path) -> dict[str, float]:
    """One job in a process of its own, whose files are removed afterwards."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.editing", "--job", name, "--folder", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    written = [path for path in folder.iterdir() if path.name not in {"a.pth", "b.safetensors"}]
    nbytes = sum(path.stat().st_size for path in written)
    for path in written:
        path.unlink()
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {found['mb']:.0f} MB, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found | {"written": nbytes / 1e9}


def page(folder: Path, gigabytes: float) -> str:
    """The table."""
    nbytes = prepare(folder, gigabytes)
    rows = []
    worst = 0.0
    for name, (what, _) in JOBS.items():
        found = measured(name, folder)
        worst = max(worst, found["mb"])
        rows.append(f"| {name} | {what} | {found['written']:.1f} | **{found['mb']:.0f}** | {found['seconds']:.0f} |")
    command = f"python -m benchmarks.editing --gb {gigabytes:g}"
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
    sources = (
        f"The sources have {nbytes / 1e9:.1f} GB each: {LARGEST >> 20} MiB in one tensor, the rest in tensors of 8 MB, one "
        "of them saved the other way round."
    )
    bound = (
        f"Most: {worst:.0f} MB; the bound is {MOST:.0f} MB. The machine did other things "
        "as well, so seconds of all threads are given and no times."
    )
    how = (__doc__ or "").split("\n\n")[2].replace("\n", " ").strip()
    head = [
        "# What editing costs in memory",
        "",
        f"Written by `{command}`: {where}, torchkeep {tk.__version__}.",
        "",
        how,
    ]
    columns = ["| job | what | GB written | MB of memory | CPU seconds |", "| --- | --- | ---: | ---: | ---: |"]
    return "\n".join([*head, "", sources, "", *columns, *rows, "", bound, ""])


def main() -> None:
    """Measure, print, write the page if asked, and fail where a job took too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=3.0, help="size of each source")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on a disk, not in memory")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(perform(options.job, options.folder)))
        return
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="benchmark-"))
    try:
        text = page(folder.resolve(), options.gb)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
