"""Saving and opening beside torch.save, torch.load and safetensors, all in one run.

    python benchmarks/save_and_open.py [--rounds 7] [--megabytes 500] [--write docs/benchmarks.md]

Peers take turns within a round and the order rotates, so that drift of the machine meets all of them; figures are
medians over the rounds, with the minimum beside them, and ratios to torchkeep in the same run (above 1: torchkeep is
faster). Durable peers are followed by fsync of file and folder, which torchkeep always does unless told not to;
torchkeep also hashes every tensor and replaces the file in one step. Reading touches every byte, from the page cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

import torchkeep as tk

State = dict[str, torch.Tensor]
Jobs = dict[str, Callable[[], object]]


def shapes(megabytes: int) -> dict[str, State]:
    """Two states of the same size: tensors as in a vision model, and 20,000 small ones."""
    total = megabytes * 1_000_000 // 4
    torch.manual_seed(0)
    mid = {f"layer{i}.weight": torch.randn(total // 40) for i in range(40)}
    small = {f"layer{i // 10}.part{i % 10}.weight": torch.randn(total // 20_000) for i in range(20_000)}
    return {"40 large tensors": mid, "20,000 small tensors": small}


def sync(path: Path) -> None:
    """What a durable save has to do after writing: the file's bytes, then its name."""
    for target in (path, path.parent):
        fd = os.open(target, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def savers(folder: Path) -> dict[str, Callable[[State], object]]:
    """Each way to save, under the name that the table shows."""
    ours, pth, st = folder / "ours.safetensors", folder / "torch.pth", folder / "st.safetensors"

    def durable(save: Callable[[State], object], path: Path) -> Callable[[State], object]:
        def saved(state: State) -> None:
            save(state)
            sync(path)

        return saved

    return {
        "torchkeep (durable, hashed, atomic)": partial(tk.save, path=ours),
        "torch.save + fsync": durable(partial(torch.save, f=pth), pth),
        "safetensors + fsync": durable(partial(save_file, filename=st), st),
        "torchkeep durable=False (hashed, atomic)": partial(tk.save, path=ours, durable=False),
        "torch.save": partial(torch.save, f=pth),
        "safetensors": partial(save_file, filename=st),
    }


def openers(folder: Path) -> dict[str, Callable[[], State]]:
    """Each way to open, giving all tensors; the files are those that the savers wrote."""
    ours, pth, st = folder / "ours.safetensors", folder / "torch.pth", folder / "st.safetensors"

    def mapped(path: Path) -> State:
        return {name: tensor.load() for name, tensor in tk.open(path).items()}

    return {
        "torchkeep, its own file": partial(mapped, ours),
        "torchkeep, plain safetensors": partial(mapped, st),
        "safetensors load_file": partial(load_file, st),
        "torchkeep, torch zip": partial(mapped, pth),
        "torch.load mmap=True": partial(torch.load, pth, mmap=True),
        "torch.load": partial(torch.load, pth),
    }


def first_tensor(folder: Path, name: str) -> dict[str, Callable[[], torch.Tensor]]:
    """Each way to get at one tensor."""
    ours, pth, st = folder / "ours.safetensors", folder / "torch.pth", folder / "st.safetensors"

    def with_safe_open() -> torch.Tensor:
        with safetensors.safe_open(st, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    def with_torchkeep(path: Path) -> torch.Tensor:
        return tk.open(path)[name].load()

    return {
        "torchkeep, its own file": partial(with_torchkeep, ours),
        "torchkeep, plain safetensors": partial(with_torchkeep, st),
        "safetensors safe_open": with_safe_open,
        "torchkeep, torch zip": partial(with_torchkeep, pth),
        "torch.load mmap=True": lambda: torch.load(pth, mmap=True)[name],
        "torch.load": lambda: torch.load(pth)[name],
    }


def measure(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round; the first round warms up and does not count."""
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            started = time.perf_counter()
            jobs[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(title: str, seconds: dict[str, list[float]], baseline: dict[str, str]) -> str:
    """A Markdown table; `baseline` names for each peer which way of torchkeep it is compared with."""
    lines = [
        f"### {title}",
        "",
        "| | median ms | min ms | median / torchkeep's | min / torchkeep's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in seconds.items():
        median, best = statistics.median(values), min(values)
        ours = seconds[baseline[name]] if name in baseline else values
        ratio = (median / statistics.median(ours), best / min(ours))
        lines.append(f"| {name} | {median * 1e3:.1f} | {best * 1e3:.1f} | {ratio[0]:.2f} | {ratio[1]:.2f} |")
    return "\n".join(lines)


def touch(load: Callable[[], State]) -> None:
    """Read every byte."""
    for tensor in load().values():
        tensor.view(torch.int32).sum()


def run(label: str, state: State, folder: Path, rounds: int) -> list[str]:
    """All tables of one state."""
    saving: Jobs = {name: partial(save, state) for name, save in savers(folder).items()}
    names = list(saving)
    ours = dict(zip(names, [names[0]] * 3 + [names[3]] * 3, strict=True))
    out = [table(f"{label}: save", measure(saving, rounds), ours)]
    reading: Jobs = {name: partial(touch, job) for name, job in openers(folder).items()}
    _, plain, zipped = (name for name in reading if name.startswith("torchkeep"))
    peers = {"torch.load mmap=True": zipped, "torch.load": zipped}
    out.append(
        table(f"{label}: open and read every byte", measure(reading, rounds), peers | {"safetensors load_file": plain})
    )
    one: Jobs = dict(first_tensor(folder, list(state)[-1]))
    out.append(table(f"{label}: one tensor", measure(one, rounds), peers | {"safetensors safe_open": plain}))
    return out


def main() -> None:
    """Run, print, and write the page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    tables = []
    for label, state in shapes(options.megabytes).items():
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            tables += run(label, state, Path(folder), options.rounds)
    command = f"python benchmarks/save_and_open.py --rounds {options.rounds} --megabytes {options.megabytes}"
    versions = f"torch {torch.__version__}, safetensors {safetensors.__version__}"
    head = (
        f"# Benchmarks\n\nWritten by `{command}`: {options.megabytes} MB of float32, {os.cpu_count()} cores, {versions}. "
        "A shared virtual machine:\nlook at the ratios within a table, and at the minimum where writes go to the page cache.\n"
    )
    page = "\n\n".join([head + "\n" + (__doc__ or "").split("\n\n", 2)[2].strip(), *tables]) + "\n"
    print(page)
    if options.write:
        options.write.write_text(page)


if __name__ == "__main__":
    main()
