"""The state of random number generators as plain values and tensors: the global ones, and any other."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The global generators of Python, NumPy and torch, the long parts as tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "python": (version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
    }


def set_random_state(value: dict[str, Any]) -> None:
    """Give the global generators a state; those of GPUs only if there are as many as there were."""
    torch.set_rng_state(value["torch"])
    if value["cuda"] and fits(value):
        torch.cuda.set_rng_state_all(value["cuda"])
    version, words, gauss = value["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = value["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))


def fits(value: dict[str, Any]) -> bool:
    """Whether all of a state can be restored here."""
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return len(value["cuda"]) in {0, here}


def generator_state(generator: Any) -> Any:
    """The state of one generator of torch, NumPy or Python."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    version, words, gauss = generator.getstate()
    return version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss


def set_generator_state(generator: Any, state: Any) -> None:
    """Give one generator its state back."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        version, words, gauss = state
        generator.setstate((version, tuple(words.tolist()), gauss))
