"""The short form of a file's facts: digests as one text, and names by runs of their places among all names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property
from typing import Any

import msgspec

from ..core.facts import VERSION, FileFacts, Runs, listed
from ..core.modulespec import ModuleEntry, ModuleSpec, TensorEntry
from ..core.tensors import LazyTensor, TensorSpec, dtype_name

_DIGITS = 64
_FEWEST = 3  # a dict of fewer tensors is shorter when it is spelt out
_PAIRED = frozenset({"OrderedDict", "dict", "defaultdict", "Counter"})
_MODULE = tuple(field.name for field in fields(ModuleEntry))
_FLAGS = ("parameters", "buffers", "requires_grad")

Json = Any


class Digests(Mapping[str, str]):
    """Digests by name, out of the text in which they stand one after another."""

    def __init__(self, names: Sequence[str], hashes: msgspec.Raw) -> None:
        """Raises ValueError where the text, still JSON, has another length; what is no digest matches no bytes."""
        self._names = names
        self._hashes = memoryview(hashes)[1:-1]
        if len(self._hashes) != _DIGITS * len(names):
            raise ValueError(f"{len(self._hashes):,} digits of digests for {len(names):,} tensors")

    @cached_property
    def _by_name(self) -> dict[str, str]:
        text = str(self._hashes, "latin1")
        return {name: text[at * _DIGITS : (at + 1) * _DIGITS] for at, name in enumerate(self._names)}

    def __getitem__(self, name: str) -> str:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# Writing


def shortened(facts: FileFacts, specs: Mapping[str, TensorSpec]) -> FileFacts:
    """The same facts in the short form, for a header that has the tensors in the order of `specs`."""
    names = listed(list(specs), facts)
    places = {name: place for place, name in enumerate(names)}
    devices: dict[str, list[str]] = {}
    for name, device in facts.devices.items():
        devices.setdefault(device, []).append(name)
    short: Any = {
        "version": VERSION,
        "hashes": "".join([facts.digests[name] for name in specs]),
        "runs": Runs(
            **{flag: _runs(map(places.__getitem__, getattr(facts, flag))) for flag in _FLAGS},
            devices={device: _runs(map(places.__getitem__, held)) for device, held in devices.items()},
        ),
        "digests": {},
        "devices": {},
        **{flag: [] for flag in _FLAGS},
    }
    if facts.module is not None:
        short |= {"module": None, "outline": _outline(facts.module, facts, specs, places)}
    if facts.tree is not msgspec.UNSET:
        short["tree"] = _short_tree(facts.tree, places)
    return msgspec.structs.replace(facts, **short)


def _runs(places: Iterable[int]) -> list[int]:
    """[first, count, first, count ...] of some places in any order."""
    runs: list[int] = []
    after = -1
    for place in sorted(places):
        if place != after:
            runs += (place, 0)
        runs[-1] += 1
        after = place + 1
    return runs


def _outline(module: ModuleSpec, facts: FileFacts, specs: Mapping[str, TensorSpec], places: Mapping[str, int]) -> Json:
    """A description in which modules are lists, and tensors of which the file says all else are runs of places."""
    parameters, buffers, grads = set(facts.parameters), set(facts.buffers), set(facts.requires_grad)
    tensors: list[Any] = []
    for entry in module.tensors:
        name = entry.name
        spec = specs.get(facts.tied.get(name, name))
        kind = "parameter" if name in parameters else "buffer" if name in buffers else ""
        device = facts.devices.get(name, "cpu")
        if spec is None or not kind or entry != _said(name, spec, device, kind, name in grads, facts.tied):
            tensors.append(asdict(entry))
        elif tensors and isinstance(tensors[-1], list) and places[name] == sum(tensors[-1]):
            tensors[-1][1] += 1
        else:
            tensors.append([places[name], 1])
    rest = msgspec.to_builtins(replace(module, modules=(), tensors=()))
    return rest | {"modules": [[getattr(one, key) for key in _MODULE] for one in module.modules], "tensors": tensors}


def _said(
    name: str, spec: TensorSpec, device: str, kind: Any, requires_grad: bool, tied: Mapping[str, str]
) -> TensorEntry:
    """What the rest of the file says of a tensor of the module."""
    return TensorEntry(
        name,
        dtype_name(spec.dtype),
        spec.shape,
        device,
        kind,
        requires_grad=requires_grad,
        tied_to=tied.get(name),
    )


def _short_tree(node: Json, places: Mapping[str, int]) -> Json:
    """Tagged JSON with dicts of tensors, the keys of which end the tensors' names, as runs of places."""
    if isinstance(node, list):
        return [_short_tree(child, places) for child in node]
    if not isinstance(node, dict):
        return node
    tag = node.get("$")
    if tag is None:
        return _run_of(node.items(), places) or {key: _short_tree(child, places) for key, child in node.items()}
    if tag in _PAIRED:
        return node | {"v": _run_of(node["v"], places) or _short_tree(node["v"], places)}
    return node | {"v": _short_tree(node["v"], places)} if tag == "tuple" else node


def _run_of(pairs: Any, places: Mapping[str, int]) -> Json:
    """A dict of nothing but tensors that follow one another in the file, under one prefix; None for any other."""
    prefix: str | None = None
    found: list[int] = []
    for key, value in pairs:
        name = value.get("v") if type(value) is dict and value.get("$") == "tensor" else None
        if type(key) is not str or type(name) is not str or name not in places:
            return None
        if prefix is None:
            prefix = name.removesuffix(key)
        if name != prefix + key:
            return None
        if found and places[name] == sum(found[-2:]):
            found[-1] += 1
        else:
            found += (places[name], 1)
    if prefix is None or sum(found[1::2]) < max(_FEWEST, len(found)):
        return None
    return {"$": "tensors", "prefix": prefix, "v": found}


# Reading; ValueError, TypeError, KeyError or AttributeError where the short form makes no sense


def chosen(runs: Sequence[int], names: Sequence[str]) -> list[str]:
    """The names at some places, each at most once."""
    if len(runs) % 2:
        raise ValueError("a run has no count")
    out: list[str] = []
    after = 0
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        if first < after or count < 1 or first + count > len(names):
            raise ValueError(f"a run of {count:,} names from {first:,} on, of {len(names):,}")
        after = first + count
        out += names[first:after]
    return out


class Lengthened:
    """Puts the names back. No name comes twice out of one description, so no file costs more than it is long."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._left = len(names)

    def tree(self, node: Json) -> Json:
        """Tagged JSON as `tagged.encode` made it."""
        if isinstance(node, list):
            return [self.tree(child) for child in node]
        if not isinstance(node, dict):
            return node
        tag = node.get("$")
        if tag == "tensors":
            return dict(self._pairs(node))
        if tag in _PAIRED and isinstance(node["v"], dict):
            return node | {"v": list(map(list, self._pairs(node["v"])))}
        return {key: self.tree(child) for key, child in node.items()}

    def module(self, node: Json, tensor: Callable[[str], LazyTensor], tied: Mapping[str, str]) -> ModuleSpec:
        """The description of a module."""
        tensors: list[TensorEntry] = []
        for entry in node["tensors"]:
            if isinstance(entry, list):
                for name in self._take(*entry):
                    lazy = tensor(name)
                    tensors.append(_said(name, lazy.spec, lazy.device, lazy.kind, lazy.requires_grad, tied))
            else:
                tensors.append(msgspec.convert(entry, TensorEntry))
        modules = [dict(zip(_MODULE, one, strict=True)) for one in node["modules"]]
        spec = msgspec.convert(node | {"modules": modules, "tensors": []}, ModuleSpec)
        return replace(spec, tensors=tuple(tensors))

    def _pairs(self, node: Json) -> Iterator[tuple[str, Json]]:
        prefix, runs = node["prefix"], node["v"]
        for first, count in zip(runs[::2], runs[1::2], strict=True):
            for name in self._take(first, count):
                if not name.startswith(prefix):
                    raise ValueError(f"{name[:100]!r} does not begin with {prefix[:100]!r}")
                yield name[len(prefix) :], {"$": "tensor", "v": name}

    def _take(self, first: int, count: int) -> Sequence[str]:
        self._left -= count
        if first < 0 or count < 1 or first + count > len(self._names) or self._left < 0:
            raise ValueError(f"a run of {count:,} names from {first:,} on, of {len(self._names):,}")
        return self._names[first : first + count]
