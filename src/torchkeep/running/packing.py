"""Which tensors of a save are new in a run, and what its manifest says of them all. Pure: no store, no bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..core.live import spec_of, tied_names
from ..core.manifest import Entry
from ..core.tensors import TensorSpec, dtype_name

Content = tuple[str, str, tuple[int, ...]]
"""What makes two stored tensors the same: digest, dtype, shape."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a manifest says of one tensor beside where its bytes are.

    Attributes:
        spec: dtype and shape.
        requires_grad, device: of the live tensor.
        tied: the full name of the tensor that it is another name of, or empty.
    """

    spec: TensorSpec
    requires_grad: bool
    device: str
    tied: str = ""


@dataclass(frozen=True)
class Given:
    """What a save is about.

    Attributes:
        members: full name -> what is said of the tensor.
        values: the tensors themselves, each once: live ones, or copies that were staged.
        digests: BLAKE3 of those that need not be read to know it.
        private: names of values that nothing else can write to while they are saved.
    """

    members: Mapping[str, Member]
    values: Mapping[str, torch.Tensor]
    digests: Mapping[str, str] = field(default_factory=dict)
    private: frozenset[str] = frozenset()


def given(tensors: Mapping[str, torch.Tensor]) -> Given:
    """Live tensors by full name, as they are."""
    tied = tied_names(tensors)
    devices: dict[torch.device, str] = {}
    members = {
        name: Member(
            spec_of(tensor),
            tensor.requires_grad,
            devices.get(tensor.device) or devices.setdefault(tensor.device, str(tensor.device)),
            tied.get(name, ""),
        )
        for name, tensor in tensors.items()
    }
    values = {name: tensor for name, tensor in tensors.items() if name not in tied and members[name].device != "meta"}
    return Given(members, values)


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
        contents: the same with dtype and shape.
    """

    places: Mapping[str, Place]
    new: tuple[str, ...]
    digests: Mapping[str, str]
    contents: Mapping[str, Content]


def content_of(digest: str, spec: TensorSpec) -> Content:
    """What makes a tensor the same as another."""
    return (digest, dtype_name(spec.dtype), spec.shape)


def plan_pack(contents: Mapping[str, Content], digests: Mapping[str, str], known: Mapping[Content, Place]) -> PackPlan:
    """Decide from digests alone what is new in the run; equal tensors of one save are written once."""
    places: dict[str, Place] = {}
    fresh: dict[Content, Place] = {}
    new = []
    for name, content in contents.items():
        place = known.get(content) or fresh.get(content)
        if place is None:
            place = fresh[content] = Place("", name)
            new.append(name)
        places[name] = place
    return PackPlan(places, tuple(new), digests, contents)


def entries_of(members: Mapping[str, Member], plan: PackPlan, pack: str) -> tuple[list[Entry], list[str]]:
    """The entries of a manifest, and the packs that they index; `pack` is the one that was just written."""
    packs: dict[str, int] = {}
    entries = []
    for name, member in members.items():
        origin = member.tied or name
        place = plan.places.get(origin)  # None for a tensor on the meta device, which has no bytes
        entries.append(
            Entry(
                name=name,
                dtype=dtype_name(member.spec.dtype),
                shape=member.spec.shape,
                digest=plan.digests.get(origin, ""),
                pack=packs.setdefault(place.pack or pack, len(packs)) if place else -1,
                key="" if place is None or place.key == name else place.key,
                requires_grad=member.requires_grad,
                tied=member.tied,
                device=member.device,
            )
        )
    return entries, list(packs)
