"""Which tensors of a save are new in a run, and what its manifest says of them all. Pure: no store, no bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core.manifest import Entry
from ..core.tensors import TensorSpec, dtype_name

Content = tuple[str, str, tuple[int, ...]]
"""What makes two stored tensors the same: digest, dtype, shape."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: a pack, empty for the one that is about to be written, and the key in it."""

    pack: str
    key: str


@dataclass(frozen=True)
class PackPlan:
    """Which tensors a save has to write and where it finds the others.

    Attributes:
        places: full name -> place, for every tensor that is not tied to another.
        new: full names to write into one new pack.
        digests: full name -> BLAKE3, those of tied names left out.
    """

    places: Mapping[str, Place]
    new: tuple[str, ...]
    digests: Mapping[str, str]


def plan_pack(specs: Mapping[str, TensorSpec], digests: Mapping[str, str], known: Mapping[Content, Place]) -> PackPlan:
    """Decide from digests alone what is new in the run; equal tensors of one save are written once."""
    places: dict[str, Place] = {}
    fresh: dict[Content, Place] = {}
    new = []
    for name, digest in digests.items():
        content = (digest, dtype_name(specs[name].dtype), specs[name].shape)
        if content not in known and content not in fresh:
            fresh[content] = Place("", name)
            new.append(name)
        places[name] = known.get(content) or fresh[content]
    return PackPlan(places, tuple(new), digests)


def entries_of(
    tensors: Mapping[str, torch.Tensor], tied: Mapping[str, str], plan: PackPlan, pack: str
) -> tuple[list[Entry], list[str]]:
    """The entries of a manifest, and the packs that they index; `pack` is the one that was just written."""
    packs: dict[str, int] = {}
    entries = []
    for name, tensor in tensors.items():
        origin = tied.get(name, name)
        place = plan.places.get(origin)  # None for a tensor on the meta device, which has no bytes
        entries.append(
            Entry(
                name=name,
                dtype=dtype_name(tensor.dtype),
                shape=tuple(tensor.shape),
                digest=plan.digests.get(origin, ""),
                pack=packs.setdefault(place.pack or pack, len(packs)) if place else -1,
                key="" if place is None or place.key == name else place.key,
                requires_grad=tensor.requires_grad,
                tied=tied.get(name, ""),
                device=str(tensor.device),
            )
        )
    return entries, list(packs)
