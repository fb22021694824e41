"""What the names and shapes of one side say about its layers: their order, their kind, and the role of each tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import lgamma

from ..core.plan import Specs
from ..core.tensors import TensorSpec
from .prefixes import unwrap
from .weight_norm import old_names

_ROLES = re.compile(
    r"weight|bias|running_(mean|var)|num_batches_tracked|_extra_state|(weight|bias)_(g|v|u|orig)"
    r"|(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?"
)

# The same roles under the names that attention in one piece and older norms have for them.
_ALIASES = ({"in_proj_weight": "weight", "in_proj_bias": "bias"}, {"gamma": "weight", "beta": "bias"})

_MAIN = ("weight", "weight_v", "weight_orig", "weight_ih_l0", "weight_ih", "running_mean", "bias")

# Words that say which of several layers of one shape it is, whatever the order in which they were made.
_SLOTS = {
    "q": "query", "query": "query", "queries": "query", "wq": "query",
    "k": "key", "key": "key", "keys": "key", "wk": "key",
    "v": "value", "value": "value", "values": "value", "wv": "value",
    "gate": "gate", "up": "up",
}  # fmt: skip

_RARE = 4  # of so many modules, one may be torn apart by two shards
_DIGITS = "0123456789"
_BY_CHANCE = 7.0  # names of a thousandth of all networks are in order without having been sorted

Role = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class Signature:
    """What two layers have to have in common to be exchanged without a trace.

    Attributes:
        kind: `batch norm`, `recurrent`, `bias`, `loose` for a parameter of no known role, or the rank of the weight.
        roles: role, shape and sort of dtype of each tensor, sorted.
    """

    kind: str
    roles: tuple[Role, ...]

    @cached_property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Role -> shape and sort of dtype."""
        return {role: (shape, sort) for role, shape, sort in self.roles}

    @cached_property
    def main(self) -> str:
        """The role that says most about the layer."""
        return next((role for role in _MAIN if role in self.tensors), self.roles[0][0])


@dataclass(frozen=True)
class Layer:
    """A module with tensors of its own, or one parameter that has no known role in a module.

    Attributes:
        path: the segments of its name.
        names: role -> the name of the tensor.
        signature: kind, roles and shapes.
    """

    path: tuple[str, ...]
    names: Mapping[str, str]
    signature: Signature

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of the last two segments, without their numbers."""
        return frozenset(_words(".".join(self.path[-2:])))

    @cached_property
    def slot(self) -> str:
        """Which of several layers of one shape it is, where one word says so: query, key, value, gate, up."""
        slots = {_SLOTS[word] for word in _words(self.path[-1] if self.path else "") if word in _SLOTS}
        return slots.pop() if len(slots) == 1 else ""

    @cached_property
    def block(self) -> tuple[str, ...]:
        """The innermost numbered module around it: `blocks.3` for `blocks.3.mlp.fc1`."""
        around = self.path[:-1]
        last = max((at for at, part in enumerate(around) if part[-1:].isdigit()), default=-1)
        return around[: last + 1]


def layers_of(specs: Specs) -> list[Layer]:
    """The layers of one side in the order in which their first tensors stand.

    The tensors of a module need not stand together: a file may list all parameters before all buffers.
    """
    old = old_names(specs)
    modules: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for name in specs:
        module, _, role = unwrap(old.get(name, name)).rpartition(".")
        modules[tuple(module.split(".")) if module else ()].setdefault(role, name)
    layers: list[Layer] = []
    for path, names in modules.items():
        roles = _aliased(names)
        loose = [role for role in roles if not _ROLES.fullmatch(role)]
        known = {role: name for role, name in roles.items() if role not in loose}
        own = [Layer((*path, role), {role: roles[role]}, _signature({role: specs[roles[role]]})) for role in loose]
        if known:
            own.append(Layer(path, known, _signature({role: specs[name] for role, name in known.items()})))
        layers += own
    place = {name: position for position, name in enumerate(specs)}
    return sorted(layers, key=lambda layer: min(place[name] for name in layer.names.values()))


def in_name_order(specs: Specs) -> bool:
    """Whether the names stand in the order of the alphabet, and not in that in which they were made.

    Files of safetensors are written so by its own library, each dtype and each shard for itself. It shows in what a
    module has: torch makes a weight before its bias and counts from 9 to 10, and nobody who sorts does.
    """
    children: dict[tuple[object, str], dict[str, None]] = defaultdict(dict)
    for name, spec in specs.items():
        parts = name.split(".")
        for depth, part in enumerate(parts):
            children[spec.dtype, ".".join(parts[:depth])][part] = None
    words = [tuple(dict.fromkeys(part.rstrip(_DIGITS) for part in own)) for own in children.values()]
    several = [own for own in words if len(own) > 1]
    in_order = [own for own in several if list(own) == sorted(own)]
    chance = sum(lgamma(len(own) + 1) for own in set(in_order))  # of as many siblings standing so, as a logarithm
    telling = any("bias" in own and "weight" in own for own in in_order) or any(map(_counts_back, children.values()))
    return (len(several) - len(in_order)) * _RARE <= len(several) and (telling or chance > _BY_CHANCE)


def _counts_back(parts: Iterable[str]) -> bool:
    """Whether numbers stand as words do: 10 before 9."""
    numbers = [part for part in parts if part.isdecimal() and part.isascii()]
    return any(len(a) > len(b) and a < b for a, b in pairwise(numbers))


def numbered(specs: Specs) -> Specs | None:
    """Names that were sorted, in the order of their numbers; None where more than numbers tells them apart."""
    children: dict[str, set[str]] = defaultdict(set)
    for name in specs:
        parts = name.split(".")[:-1]
        for depth, part in enumerate(parts):
            children[".".join(parts[:depth])].add(part)
    if any(len({part.rstrip(_DIGITS) for part in own}) > 1 for own in children.values()):
        return None
    return {name: specs[name] for name in sorted(specs, key=_counted)}


def _counted(name: str) -> list[tuple[str, int, str]]:
    """The segments of a name, each as a word and a number, so that `layer.10` comes after `layer.9`."""
    words = [(part.rstrip(_DIGITS), part) for part in name.split(".")]
    numbers = [(stem, part[len(stem) :].lstrip("0")) for stem, part in words]
    return [(stem, len(number), number) for stem, number in numbers]


def _aliased(names: Mapping[str, str]) -> dict[str, str]:
    """Roles by their usual names, where a module has none of these already."""
    for alias in _ALIASES:
        if next(iter(alias)) in names and not names.keys() & set(alias.values()):
            if "gamma" in alias and "beta" not in names:
                continue
            return {alias.get(role, role): name for role, name in names.items()}
    return dict(names)


def _signature(specs: Mapping[str, TensorSpec]) -> Signature:
    roles = tuple(sorted((role, spec.shape, sort_of(spec)) for role, spec in specs.items()))
    return Signature(_kind(specs), roles)


def _kind(specs: Mapping[str, TensorSpec]) -> str:
    if "running_mean" in specs or "running_var" in specs:
        return "batch norm"
    if any(role.startswith("weight_ih") for role in specs):
        return "recurrent"
    for role in ("weight", "weight_v", "weight_orig"):
        if role in specs:
            return f"{len(specs[role].shape)}-d"
    return next((role for role in ("bias", "_extra_state") if role in specs), "loose")


def sort_of(spec: TensorSpec) -> str:
    """Floats may become other floats and integers other integers, and nothing else."""
    dtype = spec.dtype
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"


def _words(text: str) -> list[str]:
    """`linear_qProj2` is linear, q, proj."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)]
