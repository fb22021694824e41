"""The frozen prefix of a network run once: its activations are kept and handed on in place of running it again.

The model's own forward runs as ever. The last frozen module before the first trained one answers with what is kept for
the examples of the batch, and those before it with tensors of the right shape that nobody looks at. That nobody does
is tried out on a batch first: scores and gradients have to be those of the model itself, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..core.live import named_modules, unwrapped
from ..core.table import human_bytes
from ..core.transfer import Examples
from ..errors import SurgeryError
from ..freezing import freeze_state, is_held
from ..surgery.trial import kept_generators, undisturbed
from .rows import Rows, rows_on_disk
from .training import logits_of

FEWEST = 4  # examples from which it is tried
Key = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Leaf:
    """A tensor among what a module gives.

    Attributes:
        shape: of it for one batch.
        dim: where its examples lie; None where it is the same for every batch.
        per: entries of that dimension an example.
        dtype: of it.
    """

    shape: tuple[int, ...]
    dim: int | None
    per: int
    dtype: torch.dtype

    def of(self, size: int) -> tuple[int, ...]:
        """Its shape for so many examples."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.per * size, *self.shape[self.dim + 1 :])

    @property
    def nbytes(self) -> int:
        """Of one example."""
        return torch.Size(self.of(1)).numel() * self.dtype.itemsize


@dataclass(eq=False)
class Part:
    """A call of a frozen module before anything is trained: which, and what it gives."""

    path: str
    number: int
    form: Any
    leaves: list[Leaf]


@dataclass(eq=False)
class Store:
    """What is kept of one prefix.

    Attributes:
        parts: the calls before anything is trained, in order.
        kept: how many of the last of them hand on what is kept; the others give stand-ins.
        rows: what is kept, by the size of the batches in which it was computed.
        good: (size of the batch, training mode) -> the size of the batches whose rows serve it.
        real: stand-ins take memory of their own, because the model writes to them.
    """

    parts: list[Part]
    kept: int = 1
    rows: dict[int, list[Rows]] = field(default_factory=dict)
    good: dict[tuple[int, bool], int] = field(default_factory=dict)
    real: bool = False


class Cache:
    """Activations of the frozen prefixes of a model over a data set, for all trainings that share them.

    Attributes:
        notes: prefixes that are run each time all the same, and why, in sentences.
    """

    def __init__(self, examples: Examples, batch: int, *, limit: int = 2 << 30, folder: Path | None = None) -> None:
        """Prepare it.

        Args:
            examples: all of them.
            batch: how many the prefix is run on at a time: as many as in a step of training.
            limit: bytes that are kept in memory, at most.
            folder: on the disk that takes more than that; without one it is not kept.
        """
        self.notes: list[str] = []
        self._examples, self._batch, self._limit, self._folder = examples, batch, limit, folder
        self._stores: dict[Key, Store | None] = {}
        self._used = 0

    def scores(self, model: nn.Module) -> Scores:
        """A function from places of examples to the scores that the model gives them."""
        return Scores(self, model)

    def close(self) -> None:
        """Let go of everything."""
        self._stores.clear()
        self._used = 0

    # -- inside -----------------------------------------------------------------------------------------------

    def _store(self, model: nn.Module) -> tuple[Key, Store | None]:
        """What is kept for a model as it is frozen now; its rows come when they are asked for."""
        parts = self._prefix(model)
        key = tuple((part.path, part.number) for part in parts)
        if key and key not in self._stores:
            self._stores[key] = Store(parts)
        return key, self._stores.get(key)

    def _prefix(self, model: nn.Module) -> list[Part]:
        if len(self._examples) < FEWEST or any(getattr(one, "max_norm", None) is not None for one in model.modules()):
            return []  # an embedding with max_norm changes its weights in the forward
        try:
            few, more = (self._traced(model, count) for count in (2, 3))
        except SurgeryError:
            return []
        found = [_part(one, other) for one, other in zip(few, more, strict=False) if one.place == other.place]
        if len(few) != len(more) or len(found) != len(few):
            return []
        parts: list[Part] = []
        for part in found:
            if part is None:  # what comes before one that cannot be stood in for runs as ever
                parts = []
            else:
                parts.append(part)
        return parts

    def _traced(self, model: nn.Module, count: int) -> list[_Call]:
        with undisturbed(model):
            return frozen_calls(model, self._examples.take(torch.arange(count)).inputs)

    def _fail(self, key: Key, why: str) -> None:
        self._stores[key] = None
        self.notes.append(f"what is frozen up to {key[-1][0]!r} is run in every epoch: {why}")

    def _serving(self, model: nn.Module, key: Key, store: Store, size: int) -> int | None:
        """The size of the batches whose rows serve a batch of this size, which is tried out once."""
        asked = size, model.training
        if asked in store.good:
            return store.good[asked]
        for kept in dict.fromkeys([store.kept, *_doubling(len(store.parts))]):
            if kept < store.kept:
                continue
            for batch in dict.fromkeys([self._batch, size]):
                if kept != store.kept:
                    store.rows.clear()
                    store.good.clear()
                    store.kept = kept
                if not self._fill(model, key, store, batch):
                    return None
                if not self._tried(model, store, batch, size):
                    continue
                if store.good.get((size, not model.training)) == batch or self._alike(model, store, batch, size):
                    store.good[asked] = batch
                    return batch
        self._fail(key, "with what was kept of it the model does not compute the same bits")
        return None

    def _fill(self, model: nn.Module, key: Key, store: Store, batch: int) -> bool:
        """Run the prefix on all examples in batches of a size, and keep what the last parts give."""
        if batch in store.rows:
            return True
        kept = store.parts[-store.kept :]
        leaves = [leaf for part in kept for leaf in part.leaves]
        if any(leaf.dim is not None and leaf.per != 1 for leaf in leaves):
            self._fail(key, "what it gives has not one row an example")
            return False
        count = len(self._examples)
        nbytes = sum(leaf.nbytes for leaf in leaves) * count
        in_memory = self._used + nbytes <= self._limit
        if not in_memory and self._folder is None:
            self._fail(key, f"keeping it takes {human_bytes(nbytes)} more than cache_limit leaves; give a folder")
            return False
        made: list[Rows] = []
        wanted = {(part.path, part.number) for part in kept}
        with undisturbed(model):
            for start in range(0, count, batch):
                places = torch.arange(start, start + batch) % count
                given = outputs_of(model, self._examples.take(places).inputs, wanted)
                tensors = [tensor for part in kept for tensor in leaves_of(given[part.path, part.number])]
                if not made:
                    made = self._room(leaves, tensors, None if in_memory else self._folder)
                alike = [rows.put(start, tensor) for rows, tensor in zip(made, tensors, strict=True)]
                if not all(alike):
                    self._fail(key, "what it gives differs from batch to batch where it should not")
                    return False
        self._used += nbytes if in_memory else 0
        store.rows[batch] = made
        return True

    def _room(self, leaves: list[Leaf], tensors: list[torch.Tensor], folder: Path | None) -> list[Rows]:
        count = len(self._examples)
        if folder is not None:
            return rows_on_disk(
                folder, [(tensor, leaf.dim) for tensor, leaf in zip(tensors, leaves, strict=True)], count
            )
        return [Rows(tensor, leaf.dim, count) for tensor, leaf in zip(tensors, leaves, strict=True)]

    def _tried(self, model: nn.Module, store: Store, batch: int, size: int) -> bool:
        """Whether a batch gives the same bits with what is kept: activations, scores, gradients."""
        places = torch.randperm(len(self._examples), generator=torch.Generator().manual_seed(size))
        places = places.repeat(-(-size // len(places)))[:size]
        examples = self._examples.take(places)
        wanted = {(part.path, part.number) for part in store.parts[-store.kept :]}

        def run(replay: Replay | None) -> list[torch.Tensor]:
            given: dict[tuple[str, int], Any] = {}
            with kept_generators(model), torch.set_grad_enabled(model.training):
                torch.manual_seed(0)
                with recorded(model, wanted, given) if replay is None else replay.on(places):
                    scores = logits_of(model, examples.inputs)
                if not model.training:
                    return [scores, *_tensors(given, store)]
                trained = [one for one in model.parameters() if one.requires_grad]
                loss = functional.cross_entropy(scores, examples.labels.clamp(max=scores.shape[1] - 1))
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            return [scores, *(one for one in gradients if one is not None), *_tensors(given, store)]

        buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
        held = {id(buffer) for module in model.modules() if is_held(module) for buffer in module.buffers()}

        def restore() -> None:  # all of them: batch normalisation does not count as writing to its statistics
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

        try:
            real = run(None)
            if any(id(buffer) in held and not _same([buffer], [value]) for buffer, value in buffers):
                return False  # running it is more than what it gives
            restore()
            for own in dict.fromkeys([store.real, True]):
                replay = Replay(model, store, batch, fill=float("nan"), real=own)
                try:
                    stood = run(replay)
                except Exception:  # the model does something with the stand-ins that cannot be done to them
                    restore()
                    continue
                store.real = own
                kept = [
                    tensor for part in replay.parts[-store.kept :] for tensor in leaves_of(replay.given(part, places))
                ]
                return _same(real, [*stood, *kept])
            return False
        finally:
            restore()

    def _alike(self, model: nn.Module, store: Store, batch: int, size: int) -> bool:
        """Whether batches of a size give what is kept for all examples; a few may have the same bits by luck."""
        kept, count = store.parts[-store.kept :], len(self._examples)
        wanted = {(part.path, part.number) for part in kept}
        replay = Replay(model, store, batch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(size))
        with undisturbed(model):
            for start in range(0, count, size):
                places = order[torch.arange(start, start + size) % count]
                given = outputs_of(model, self._examples.take(places).inputs, wanted)
                for part in kept:
                    if not _same(leaves_of(given[part.path, part.number]), leaves_of(replay.given(part, places))):
                        return False
        return True


class Scores:
    """What a model gives for examples by their place, with what is frozen in it from the cache where that can be."""

    def __init__(self, cache: Cache, model: nn.Module) -> None:
        self._cache, self._model = cache, unwrapped(model)
        self._phase: Any = self
        self._key: Key = ()
        self._replays: dict[tuple[int, bool], Replay | None] = {}

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """One row of scores an example."""
        inputs = self._cache._examples.take(places).inputs
        replay = self._replay(len(places))
        if replay is None:
            return logits_of(self._model, inputs)
        with replay.on(places):
            return logits_of(self._model, inputs)

    def _replay(self, size: int) -> Replay | None:
        state = freeze_state(self._model)
        phase = None if state is None else state.phase
        if phase != self._phase:
            self._phase, self._replays = phase, {}
            self._key, _ = self._cache._store(self._model)
        asked = size, self._model.training
        if asked not in self._replays:
            store = self._cache._stores.get(self._key)
            batch = None if store is None else self._cache._serving(self._model, self._key, store, size)
            self._replays[asked] = None if store is None or batch is None else Replay(self._model, store, batch)
        return self._replays[asked]


class Replay:
    """Puts what is kept in place of what the frozen modules compute, for a forward."""

    def __init__(
        self, model: nn.Module, store: Store, batch: int, *, fill: float = 0.0, real: bool | None = None
    ) -> None:
        self.parts = store.parts
        self._model, self._kept, self._fill = model, store.kept, fill
        self._real = store.real if real is None else real
        modules = dict(named_modules(model))
        self._modules = {part.path: modules[part.path] for part in store.parts}
        self._rows: dict[tuple[str, int], list[Rows]] = {}
        rows = iter(store.rows[batch])
        for part in store.parts[-store.kept :]:
            self._rows[part.path, part.number] = [next(rows) for _ in part.leaves]

    def given(self, part: Part, places: torch.Tensor) -> Any:
        """What a part gives for these examples."""
        rows = self._rows.get((part.path, part.number))
        if rows is not None:
            tensors = iter([one.take(places) for one in rows])
        else:
            tensors = iter([self._stand_in(leaf, len(places)) for leaf in part.leaves])
        return changed(part.form, lambda _: next(tensors))

    def _stand_in(self, leaf: Leaf, size: int) -> torch.Tensor:
        device = next(self._model.parameters()).device
        fill = self._fill if leaf.dtype.is_floating_point or leaf.dtype.is_complex else 0
        if self._real:
            return torch.full(leaf.of(size), fill, dtype=leaf.dtype, device=device)
        return torch.full((), fill, dtype=leaf.dtype, device=device).expand(leaf.of(size))

    @contextlib.contextmanager
    def on(self, places: torch.Tensor) -> Iterator[None]:
        """Within, the model takes what is kept for these examples."""
        by_call = {(part.path, part.number): part for part in self.parts}
        counts: Counter[str] = Counter()

        def instead(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def answer(*args: Any, **kwargs: Any) -> Any:
                part = by_call.get((path, counts[path]))
                counts[path] += 1
                return forward(*args, **kwargs) if part is None else self.given(part, places)

            return answer

        with forwards(self._modules, instead):
            yield


# -- the calls of a forward -------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Call:
    """A call of a frozen module that no other frozen module makes: the how many-th of it, and what it gave."""

    place: tuple[str, int]
    output: Any


class _EnoughError(Exception):
    """The forward has come as far as it needs to."""


@contextlib.contextmanager
def forwards(
    modules: Mapping[str, nn.Module], instead: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Other forwards for some modules, as long as the block lasts; their hooks are called as ever."""
    before = {path: module.__dict__.get("forward") for path, module in modules.items()}
    try:
        for path, module in modules.items():
            module.__dict__["forward"] = instead(path, module.forward)
        yield
    finally:
        for path, module in modules.items():
            own = before[path]
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


def frozen_calls(model: nn.Module, inputs: Any) -> list[_Call]:
    """The outermost calls of frozen modules before the first call of a trained one, in order."""
    paths = {path: module for path, module in _first_named(model).items() if not _is_script(module)}
    counts: Counter[str] = Counter()
    found: list[_Call] = []
    inside = 0

    def instead(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        module = paths[path]
        frozen = is_held(module)
        active = not frozen and (_trains(module) or not module._modules)

        def watch(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            number = counts[path]
            counts[path] += 1
            if active:
                raise _EnoughError
            before = len(found)
            inside += frozen
            try:
                output = forward(*args, **kwargs)
            finally:
                inside -= frozen
            if frozen and not inside:
                found.append(_Call((path, number), output))
            elif not inside and any(one.requires_grad for one in module.parameters()):
                del found[before:]  # it uses what is trained in it without calling the modules that have it
                raise _EnoughError
            return output

        return watch

    with contextlib.suppress(_EnoughError), forwards(paths, instead):
        logits_of(model, inputs)
    return found


def outputs_of(model: nn.Module, inputs: Any, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], Any]:
    """What some calls give; the forward is left after the last of them."""
    given: dict[tuple[str, int], Any] = {}
    with contextlib.suppress(_EnoughError), recorded(model, set(wanted), given, leave=True):
        logits_of(model, inputs)
    return given


@contextlib.contextmanager
def recorded(
    model: nn.Module, wanted: set[tuple[str, int]], given: dict[tuple[str, int], Any], *, leave: bool = False
) -> Iterator[None]:
    """Within, what some calls give is put into `given`."""
    counts: Counter[str] = Counter()

    def instead(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            place = path, counts[path]
            counts[path] += 1
            output = forward(*args, **kwargs)
            if place in wanted:
                given[place] = changed(output, lambda tensor: tensor.detach().clone())
                if leave and len(given) == len(wanted):
                    raise _EnoughError
            return output

        return watch

    modules = _first_named(model)
    with forwards({path: modules[path] for path, _ in wanted}, instead):
        yield


def _first_named(model: nn.Module) -> dict[str, nn.Module]:
    """Every module once, under its first path."""
    first = {id(module): path for path, module in reversed(list(named_modules(model)))}
    return {path: module for path, module in named_modules(model) if first[id(module)] == path}


def _is_script(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _trains(module: nn.Module) -> bool:
    return any(one.requires_grad for one in module.parameters(recurse=False))


def _part(few: _Call, more: _Call) -> Part | None:
    """A call by what it gave for two examples and for three; None where that does not tell what it gives for others."""
    pairs = list(zip(leaves_of(few.output), leaves_of(more.output), strict=False))
    leaves = [_leaf(two, three) for two, three in pairs]
    if not leaves or any(leaf is None for leaf in leaves) or len(leaves) != len(leaves_of(more.output)):
        return None
    form = changed(few.output, lambda tensor: torch.empty(0, dtype=tensor.dtype))
    return Part(*few.place, form, [leaf for leaf in leaves if leaf is not None])


def _leaf(two: torch.Tensor, three: torch.Tensor) -> Leaf | None:
    if two.dim() != three.dim() or two.layout is not torch.strided or two.is_nested:
        return None
    differ = [dim for dim, (one, other) in enumerate(zip(two.shape, three.shape, strict=True)) if one != other]
    if not differ:
        return Leaf(tuple(two.shape), None, 0, two.dtype)
    per = three.shape[differ[0]] - two.shape[differ[0]]
    if len(differ) > 1 or two.shape[differ[0]] != 2 * per:
        return None
    return Leaf(tuple(two.shape), differ[0], per, two.dtype)


def leaves_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a nested value, in order."""
    found: list[torch.Tensor] = []

    def see(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    changed(value, see)
    return found


def changed(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A nested value with every tensor changed: tuples, lists, dicts, dataclasses, namespaces and classes of these."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(changed(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(changed(item, change) for item in value)
    if isinstance(value, dict):
        return type(value)({key: changed(item, change) for key, item in value.items()})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [one.name for one in dataclasses.fields(value) if one.init]
        return dataclasses.replace(value, **{name: changed(getattr(value, name), change) for name in names})
    if type(value) is types.SimpleNamespace:
        return types.SimpleNamespace(**changed(vars(value), change))
    return value


def _tensors(given: Mapping[tuple[str, int], Any], store: Store) -> list[torch.Tensor]:
    parts = store.parts[-store.kept :] if given else []
    return [tensor for part in parts for tensor in leaves_of(given[part.path, part.number])]


def _doubling(most: int) -> list[int]:
    steps = [1]
    while steps[-1] < most:
        steps.append(min(most, 2 * steps[-1]))
    return steps


def _same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """Bit for bit, and laid out alike."""
    return len(ours) == len(theirs) and all(
        one.dtype is other.dtype and one.shape == other.shape and bool(_bits(one).equal(_bits(other)))
        for one, other in zip(ours, theirs, strict=True)
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.detach()
