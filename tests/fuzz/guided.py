"""The search that coverage leads: `python -m fuzz.guided TARGET CORPUS FLAGS...`, as fuzz/campaign.py starts it.

Runs atheris on one target until libFuzzer's flags end it. The target `every` is all of them: the first byte of an input
says which.
"""

from __future__ import annotations

import random
import sys
import warnings
from importlib import import_module

EVERY = "every"


def main(target: str, arguments: list[str]) -> None:
    """The fuzzing process itself; it does not come back."""
    import atheris

    with atheris.instrument_imports(include=["torchkeep"]):
        from fuzz.targets import Read, names, targets
        from torchkeep.formats import FORMATS

        for place in FORMATS.values():  # readers are imported when they are first needed, which would be too late
            import_module(f"torchkeep.{place.partition(':')[0]}")
    from fuzz.mutation import changed

    warnings.simplefilter("ignore")
    rng = random.Random(0)
    by_name = targets()
    order = names()

    def every(data: bytes) -> None:
        by_name[order[data[0] % len(order)]](data[1:])

    read: Read = (lambda data: every(data) if data else None) if target == EVERY else by_name[target]
    skipped = 1 if target == EVERY else 0

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        rng.seed(seed)
        lead, body = data[:skipped], data[skipped:]
        if body and rng.random() < 0.6:
            return (lead + changed(body, lambda part: bytes(atheris.Mutate(part, len(part) + 64)), rng))[:most]
        return bytes(lead + atheris.Mutate(body, most - len(lead)))

    atheris.Setup([sys.argv[0], *arguments], read, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
