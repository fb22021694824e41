"""What keeping the activations of frozen layers saves: EfficientNet-Lite0 with ImageNet's weights on 100 images of 64 pixels.

    python -m benchmarks.sweeping [--rounds 5] [--write docs/benchmarks-sweeping.md]

Each round trains every candidate twice without what is kept and twice with it, in turn, in one process and one thread, with
the same seeds. The first training with it runs the frozen layers once and tries out that nothing changes; later ones, of other seeds
and of candidates that freeze the same, find it there. All of them have to end with the same bits.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

from torchkeep.core.transfer import Candidate, Examples, Recipe
from torchkeep.surgery import reinitialise
from torchkeep.sweeping import prepared
from torchkeep.trials.caching import Cache
from torchkeep.trials.candidates import candidates_for
from torchkeep.trials.training import try_out

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from network import EfficientNetLite0, imagenet_weights

RECIPE = Recipe(epochs=20, batch=16)
NAMES = ("head", "stage 4")


def images(count: int = 100, size: int = 64) -> Examples:
    """Noise with a bright square in one of four corners, which is the class."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, size, size, generator=generator) * 0.5
    labels = torch.arange(count) % 4
    for place, label in enumerate(labels.tolist()):
        row, column = (label // 2) * size // 2, (label % 2) * size // 2
        pixels[place, :, row : row + size // 2, column : column + size // 2] += 1
    return Examples(pixels, labels, ("top left", "top right", "bottom left", "bottom right"), "corners")


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet's weights."""
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(imagenet_weights(), weights_only=True))
    return model


def train(
    model: nn.Module, head: str, examples: Examples, candidate: Candidate, cache: Cache | None
) -> tuple[float, str]:
    """One training: processor seconds, and its losses to the bit."""
    model = copy.deepcopy(model)
    reinitialise(model, head, seed=0)
    began = time.process_time()
    scores = None if cache is None else cache.scores(model)
    outcome = try_out(model, examples, candidate, RECIPE, seed=0, scores=scores)
    return time.process_time() - began, repr((outcome.losses.tolist(), outcome.rows, outcome.train_loss))


def measure(rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """For each candidate and round: seconds without, with for the first time, and with it from then on."""
    examples = images()
    model, head = prepared(pretrained, examples)
    listed = [one for one in candidates_for(model, head=head) if one.name in NAMES]
    found: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in listed}
    for _ in range(rounds):
        for candidate in listed:
            cache = Cache(examples, RECIPE.batch)
            plain, bits = train(model, head, examples, candidate, None)
            first, same = train(model, head, examples, candidate, cache)
            again, too = train(model, head, examples, candidate, None)
            later, alike = train(model, head, examples, candidate, cache)
            assert bits == same == too == alike, f"{candidate.name}: what is kept changes what is learned"
            assert not cache.notes, cache.notes
            found[candidate.name].append(((plain + again) / 2, first, later))
            print(candidate.name, *(f"{seconds:.1f}" for seconds in found[candidate.name][-1]), flush=True)
    return found


def page(found: dict[str, list[tuple[float, float, float]]], rounds: int) -> str:
    """The table as a page."""
    lines = [
        "# What keeping activations saves",
        "",
        (
            f"Written by `python -m benchmarks.sweeping --rounds {rounds}`: {os.cpu_count()} cores, Python "
            f"{platform.python_version()}, torch {torch.__version__}."
        ),
        "",
        (
            f"EfficientNet-Lite0 with ImageNet's weights, 100 images of 64 x 64 pixels, {RECIPE.epochs} epochs in batches of "
            f"{RECIPE.batch}, one thread. Medians of {rounds} rounds, in each of which both ways take turns; seconds of the processor, "
            "with the evaluation at the end. All trainings of a candidate ended with the same bits."
        ),
        "",
        "| trained | run each time, s | kept, first training, s | later trainings, s | faster, first | faster, later |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in found.items():
        plain, first, later = (statistics.median(column) for column in zip(*rows, strict=True))
        once = statistics.median(row[0] / row[1] for row in rows)
        often = statistics.median(row[0] / row[2] for row in rows)
        lines.append(f"| {name} | {plain:.1f} | {first:.1f} | {later:.1f} | {once:.1f} times | {often:.1f} times |")
    lines += [
        "",
        (
            "`stage 4` trains the last quarter of the network and its head. Later trainings are those of other seeds, and of "
            "other candidates that freeze the same, as `lp-ft` does while it trains the head."
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    text = page(measure(asked.rounds), asked.rounds)
    print(text)
    if asked.write:
        asked.write.write_text(text)


if __name__ == "__main__":
    main()
