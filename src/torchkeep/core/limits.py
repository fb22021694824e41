"""How much a file may cost before reading it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what opening a file may cost; raise one with `dataclasses.replace` and pass it to `tk.open`.

    The defaults let every real checkpoint pass that we know of and stop the known resource attacks early.
    """

    header_bytes: int = 100_000_000
    """Length of a safetensors header (the same bound as the safetensors library)."""

    pickle_bytes: int = 1 << 30
    """Length of one pickle stream."""

    opcodes: int = 50_000_000
    """Pickle opcodes executed in one stream."""

    memo: int = 20_000_000
    """Highest memo index of a pickle."""

    key_leaves: int = 10_000
    """Leaves of a tuple used as a dictionary key, counted with repetition: hashing shared tuples is exponential."""

    integer_bytes: int = 4096
    """Length of one pickled integer."""

    nodes: int = 20_000_000
    """Containers and leaves visited when naming tensors; a shared container counts once for each way to reach it."""

    revisits: int = 100_000
    """How often containers are entered again by another path when naming tensors: sharing can multiply without end."""

    name_chars: int = 1 << 28
    """Characters of all names together: long keys high up in a tree are repeated in every name below them."""

    depth: int = 2_000
    """Nesting of containers around a tensor."""

    expanded_bytes: int = 1 << 30
    """A tensor that repeats its storage (stride 0) is not written out in full beyond this size."""

    inflated_bytes: int = 1 << 30
    """What a compressed file or record may inflate to without regard to how well it was compressed."""

    inflated_ratio: int = 100
    """Beyond `inflated_bytes`, bytes that one compressed byte may become: weights hardly compress, bombs do."""

    nesting: int = 8
    """Saves inside of saves, and compressed files inside of compressed files."""
