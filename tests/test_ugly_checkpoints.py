"""A few of the ugly checkpoints of the benchmark: nothing wrong is loaded, and nothing stays unloaded in silence."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.loading import LOADERS, tried
from benchmarks.loading_cases import Case, cases

CASES = {case.title: case for case in cases()}
OURS = [name for name, (package, _) in LOADERS.items() if package == "torchkeep"]
# title -> share of its elements that advice must reach
REACHED = {
    "`_fsdp_wrapped_module` within the names": 1.0,
    "other names, another head, a block more": 0.98,
    "two tensors with each other's shapes": 0.1,
    "a stem of 3 channels for 1": 1.0,
    "positions on a smaller square": 1.0,
    "weight norm under its old names": 1.0,
    "other names, keys before queries": 1.0,
    "raw weights and their average side by side": 1.0,
}


@pytest.mark.parametrize("title", REACHED)
@pytest.mark.parametrize("name", OURS)
def test_nothing_wrong_and_never_silent(name: str, title: str, tmp_path: Path) -> None:
    case = CASES[title]
    outcome = tried(LOADERS[name][1], case, case.write(tmp_path / "ugly.pth"))
    assert outcome.wrong == 0
    assert outcome.said in {"raises", "names"} or (outcome.said == "" and outcome.right == outcome.total)
    assert outcome.said != "raises" or (name == "torchkeep" and outcome.right == 0)
    assert outcome.said == "raises" or outcome.right >= REACHED[title] * outcome.total


def test_the_judge_sees_what_is_wrong_and_hears_silence(tmp_path: Path) -> None:
    case = CASES["two tensors with each other's shapes"]

    def transposing(_: Case, model: Any, path: Path) -> Iterable[object]:
        state = torch.load(path, weights_only=True)
        model.load_state_dict({name: state[name].reshape(own.shape) for name, own in model.state_dict().items()})
        return ()

    outcome = tried(transposing, case, case.write(tmp_path / "ugly.pth"))
    assert (outcome.wrong, outcome.said) == (2 * 16 * 64, "silent")
    assert str(outcome).endswith("**2048 wrong**, silent")
