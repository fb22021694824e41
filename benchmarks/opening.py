"""What opening costs: time, memory and bytes read, beside torch, for many tensors and for a large file.

    python benchmarks/opening.py [--rounds 7] [--gigabytes 8] [--write docs/benchmarks-opening.md]

Opening means that names, shapes and dtypes are known and nothing else. Each job runs in a process of its own that has
imported everything already; within a round the jobs take turns and the order rotates. Figures are medians over the
rounds, ratios are to torchkeep in the same table (above 1: torchkeep is faster). Memory is what opening added to the
memory that belongs to the process alone (RssAnon) and to all that it has (VmHWM). The large file has its zeros on disk
as a hole, so it needs no room; nobody reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

TENSORS = 20_000

# What is measured, as the body of a function of the path.
JOBS = {
    "torchkeep": "import torchkeep as tk; return tk.open(path)",
    "torch.load": "import torch; return torch.load(path)",
    "torch.load mmap=True": "import torch; return torch.load(path, mmap=True)",
    "safetensors safe_open": "from safetensors import safe_open\n    f = safe_open(path, 'pt'); return [f.get_slice(k) for k in f.keys()]",
    "the C unpickler alone (would run code)": "return unpickled(path)",
}

PROBE = """
import gc, io, json, pickle, sys, time, zipfile
import torch, torchkeep as tk, safetensors

class Inert(pickle.Unpickler):
    def persistent_load(self, pid): return torch.UntypedStorage(0)
    def find_class(self, module, name):
        return super().find_class(module, name) if name == 'OrderedDict' else lambda *a: a

def unpickled(path):
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith('data.pkl'))
        return Inert(io.BytesIO(archive.read(name))).load()

def memory(key):
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024

def job(path):
    BODY

tk.open(sys.argv[2])
gc.collect()
before = memory('RssAnon'), memory('VmHWM')
started = time.perf_counter()
found = job(sys.argv[1])
seconds = time.perf_counter() - started
print(json.dumps([seconds, memory('RssAnon') - before[0], memory('VmHWM') - before[1]]))
"""


def many(folder: Path) -> dict[str, Path]:
    """20,000 small tensors in each container."""
    state = {f"layer{i // 10}.part{i % 10}.weight": torch.zeros(4) for i in range(TENSORS)}
    paths = {"torch zip": folder / "many.pth", "legacy": folder / "old.pth", "safetensors": folder / "many.safetensors"}
    torch.save(state, paths["torch zip"])
    torch.save(state, paths["legacy"], _use_new_zipfile_serialization=False)
    save_file(state, paths["safetensors"])
    return paths


def large(folder: Path, gigabytes: int) -> dict[str, Path]:
    """Some tensors of 1 GB in each container, with holes where their elements are."""
    count, nbytes = gigabytes, 1 << 30
    state = {f"block{i}": torch.zeros(1, dtype=torch.float32).expand(nbytes // 4) for i in range(count)}
    zipped, plain, old = (folder / name for name in ("large.pth", "large.safetensors", "large-old.pth"))
    _hollow_zip(zipped, state)
    header: dict[str, object] = {}
    for i, name in enumerate(state):
        header[name] = {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [i * nbytes, (i + 1) * nbytes]}
    text = json.dumps(header).encode()
    with plain.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + count * nbytes)
    _hollow_legacy(old, count, nbytes)
    return {"torch zip": zipped, "legacy": old, "safetensors": plain}


def _object(count: int, nbytes: int) -> bytes:
    """The pickle of a state dict whose storages do not exist yet."""
    out = b"\x80\x02ccollections\nOrderedDict\n)R("
    for i in range(count):
        key = str(i).encode()
        out += b"X" + len(b"block" + key).to_bytes(4, "little") + b"block" + key
        out += b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX"
        out += len(key).to_bytes(4, "little") + key + b"X\x03\0\0\0cpu\x8a\x05" + (nbytes // 4).to_bytes(5, "little")
        out += (
            b"tQK\0\x8a\x05" + (nbytes // 4).to_bytes(5, "little") + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
        )
    return out + b"u."


def _hollow_zip(path: Path, state: dict[str, torch.Tensor]) -> None:
    count, nbytes = len(state), state["block0"].nbytes
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", _object(count, nbytes))
        archive.writestr("archive/byteorder", b"little")
        crc = _crc_of_zeros(nbytes)
        for i in range(count):
            entry = zipfile.ZipInfo(f"archive/data/{i}")
            entry.file_size = entry.compress_size = nbytes
            entry.CRC = crc
            entry.header_offset = archive.fp.tell()  # type: ignore[union-attr]
            archive.fp.write(entry.FileHeader(zip64=False))  # type: ignore[union-attr]
            archive.fp.seek(nbytes, os.SEEK_CUR)  # type: ignore[union-attr]
            archive.start_dir = archive.fp.tell()  # type: ignore[union-attr]
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive.writestr("archive/version", b"3\n")


def _crc_of_zeros(nbytes: int) -> int:
    import zlib

    crc, piece = 0, bytes(1 << 24)
    for _ in range(nbytes >> 24):
        crc = zlib.crc32(piece, crc)
    return crc


def _hollow_legacy(path: Path, count: int, nbytes: int) -> None:
    with path.open("wb") as out:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            out.write(pickle.dumps(value, 2))
        out.write(_object(count, nbytes) + pickle.dumps([str(i) for i in range(count)], 2))
        for _ in range(count):
            out.write((nbytes // 4).to_bytes(8, "little"))
            out.seek(nbytes, os.SEEK_CUR)
        out.truncate()


def run_one(body: str, path: Path, warm: Path) -> list[float] | None:
    """Seconds, MB of its own, MB in all; None where it cannot open the file."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROBE.replace("BODY", body), str(path), str(warm)],
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def jobs_for(container: str, big: bool) -> dict[str, str]:
    """The peers that can read a container; those that would read gigabytes into memory are left out."""
    names = {
        "torch zip": ["torchkeep", "torch.load mmap=True", "torch.load", "the C unpickler alone (would run code)"],
        "legacy": ["torchkeep", "torch.load"],
        "safetensors": ["torchkeep", "safetensors safe_open"],
    }[container]
    return {name: JOBS[name] for name in names if not (big and name == "torch.load")}


def table(title: str, jobs: dict[str, str], path: Path, warm: Path, rounds: int) -> str:
    """Time and memory of each job on one file."""
    names = list(jobs)
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    failed: set[str] = set()
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            one = None if name in failed else run_one(jobs[name], path, warm)
            if one is None:
                failed.add(name)
            else:
                found[name].append(one)
    ours = statistics.median(one[0] for one in found["torchkeep"])
    lines = [f"### {title}", "", "| | ms | ratio | MB of its own | MB in all |", "| --- | --- | --- | --- | --- |"]
    for name in names:
        if name in failed:
            lines.append(f"| {name} | cannot open it | | | |")
            continue
        seconds, own, everything = (statistics.median(one[i] for one in found[name]) for i in range(3))
        lines.append(f"| {name} | {seconds * 1e3:.1f} | {seconds / ours:.2f} | {own:.0f} | {everything:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gigabytes", type=int, default=8)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    tables = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        warm = folder / "warm.pth"
        torch.save({"a": torch.ones(1)}, warm)
        for container, path in many(folder).items():
            title = f"{TENSORS:,} tensors, {container}, {path.stat().st_size / 1e6:.1f} MB"
            tables.append(table(title, jobs_for(container, False), path, warm, options.rounds))
        for container, path in large(folder, options.gigabytes).items():
            title = f"{path.stat().st_size / 1e9:.1f} GB in {options.gigabytes} tensors, {container}"
            tables.append(table(title, jobs_for(container, True), path, warm, options.rounds))
    command = f"python benchmarks/opening.py --rounds {options.rounds} --gigabytes {options.gigabytes}"
    head = (
        f"# What opening costs\n\nWritten by `{command}`: {os.cpu_count()} cores, "
        f"torch {torch.__version__}, safetensors {safetensors.__version__}."
    )
    page = "\n\n".join([head, (__doc__ or "").split("\n\n", 2)[2].strip(), *tables]) + "\n"
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
