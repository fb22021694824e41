"""Where a run stands in its data: which epoch of a loader, how many batches of it, and how to get there again."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3
from torch.utils.data import DataLoader, IterableDataset

from ..errors import IncompatibleCheckpointError, ResumeWarning
from .leaving import untouched_by_sigterm
from .randomness import generator_state, random_state, set_generator_state, set_random_state
from .tracking import GENERATORS

_PERSISTENT = (
    "the loader has persistent_workers: their random numbers go on from one epoch to the next and are not restored. "
    "What is resumed equals an uninterrupted run only if the workers draw none; persistent_workers=False makes sure"
)
_OTHER_ORDER = (
    "the data comes in another order than when the snapshot was saved: its sampler draws from a generator that is not "
    "restored, or counts epochs by itself. Give the generator to resume under a name, or to the DataLoader"
)


@dataclass
class Position:
    """How far a loader was read.

    Attributes:
        epoch: epochs that have ended.
        taken: batches taken in the epoch that is on; 0 between epochs.
        steps: batches taken in all epochs.
        start: the generators as they were when the epoch's iterator was made; None between epochs.
        loader: the loader that is being read.
        order: which indices the loader's sampler has given in this epoch, and how often, as far as that shows.
        anew: whether it is another one than in the epoch before, made for this epoch with generators of its own.
    """

    epoch: int = 0
    taken: int = 0
    steps: int = 0
    start: dict[str, Any] | None = None
    loader: Any = None
    order: Order | None = None
    anew: bool = False

    def state(self) -> dict[str, Any]:
        """The position as plain values and tensors."""
        out: dict[str, Any] = {"epoch": self.epoch, "taken": self.taken, "steps": self.steps, "shape": None}
        if self.loader is None:
            return out
        if self.taken or not self.anew:
            out["generators"] = {key: generator_state(one) for key, one in _generators(self.loader).items()}
        if _keeps_itself(self.loader):
            return out | {"loader": self.loader.state_dict()}
        order = None if self.order is None else self.order.state()
        return out | {"start": self.start, "shape": _shape(self.loader), "order": order} if self.taken else out


class Order:
    """A digest of the indices that the sampler of a torch DataLoader gives, taken as they pass."""

    def __init__(self) -> None:
        self._count, self._hash = 0, blake3()

    def listen(self, iterator: Any) -> Order | None:
        """Hear what an iterator asks its sampler for from now on; None for iterators that are not torch's."""
        ask = getattr(type(iterator), "_next_index", None)
        if ask is None:
            return None
        own = weakref.ref(iterator)  # a cycle would keep its workers until the garbage collector comes by

        def heard() -> Any:
            index = ask(own())
            self._count += 1
            self._hash.update(repr(index).encode())
            return index

        iterator._next_index = heard
        return self

    def state(self) -> list[Any]:
        """How many times it was asked, and the digest of the answers."""
        return [self._count, self._hash.hexdigest()]


class Resumed:
    """What the readers of a resumed run share: each generator is set back once, by who needs it first."""

    def __init__(self, random: dict[str, Any], settled: Iterable[Any]) -> None:
        self._random: dict[str, Any] | None = random
        self._settled = list(settled)  # objects, so that an id stays theirs

    def random(self) -> dict[str, Any]:
        """Where the global generators go on: those of the snapshot for the first that asks, later where they are."""
        random, self._random = self._random, None
        return random_state() if random is None else random

    def settle(self, generator: Any) -> bool:
        """Whether a generator has still to be set back; it has been, after this."""
        new = not any(generator is known for known in self._settled)
        if new:
            self._settled.append(generator)
        return new


class Reader:
    """Reads one loader, counts, and on resuming goes to where the snapshot was."""

    def __init__(self) -> None:
        self.position = Position()
        self._pending: dict[str, Any] | None = None
        self._resumed: Resumed | None = None
        self._cut: Position | None = None  # where an epoch was left before its end
        self._tracked: dict[str, Any] = {}
        self._warned = False

    @classmethod
    def at(cls, state: dict[str, Any], resumed: Resumed) -> Reader:
        """One that goes on from a saved position when a loader is read."""
        reader = cls()
        reader.position = Position(state["epoch"], state["taken"], state["steps"])
        reader._pending, reader._resumed = state, resumed
        return reader

    def state(self, *, unwinding: bool = False) -> dict[str, Any]:
        """The position as plain values and tensors; the restored one as long as nothing was read.

        While an exception is handled that ended the loop, the epoch is not over: it is where the loop was cut off.
        """
        if unwinding and self._cut is not None:
            return self._cut.state()
        return self.position.state() if self._pending is None else self._pending

    def read(
        self, loader: Iterable[Any], checkpoint: Callable[[], None], tracked: dict[str, Any] | None = None
    ) -> Generator[Any, None, None]:
        """The batches of one epoch, those before a restored position left out; `checkpoint` is called before each.

        `tracked` are generators that the run restores, and that the loader may draw from.
        """
        self._tracked = tracked or {}
        position, pending, self._pending = self.position, self._pending, None
        if position.loader is not None and position.taken:
            raise RuntimeError("this loader's epoch is not over; give another loader another name=")
        if getattr(loader, "persistent_workers", False) and not self._warned:
            warnings.warn(_PERSISTENT, ResumeWarning, stacklevel=3)
            self._warned = True
        position.anew = position.loader is not None and position.loader is not loader
        position.loader, self._cut, ended = loader, None, False
        iterator: Iterator[Any] | None = None
        try:
            with untouched_by_sigterm():
                iterator = self._begin(loader, pending)
            while True:
                checkpoint()
                batch = next(iterator, _END)
                if batch is _END:
                    ended = True
                    break
                position.taken += 1
                position.steps += 1
                yield batch
        finally:
            iterator = None  # its workers end now, and not when the last frame is gone
            self._cut = None if ended or not position.taken else replace(position)
            position.epoch, position.taken, position.start = position.epoch + 1, 0, None

    def _begin(self, loader: Any, pending: dict[str, Any] | None) -> Iterator[Any]:
        """An iterator that gives the next batch."""
        position = self.position
        if _keeps_itself(loader):
            if pending is not None and pending.get("loader") is not None:
                self._let_it_go_back(loader, pending["loader"])
                self._set_back(_generators(loader), pending.get("generators", {}))
            return iter(loader)
        generators = _generators(loader)
        if pending is None or not position.taken:
            if self._resumed is not None:
                self._resumed.random()  # who reads after this goes on from where the generators are then
            self._set_back(generators, (pending or {}).get("generators", {}))
            if position.epoch and pending is not None:
                _warm_up(loader, generators)
            position.start = {
                "global": random_state(),
                "own": {k: generator_state(g) for k, g in generators.items()},
                "tracked": {k: generator_state(g) for k, g in self._tracked.items()},
            }
            return self._heard(iter(loader))
        return self._replay(loader, pending, generators)

    def _heard(self, iterator: Iterator[Any]) -> Iterator[Any]:
        self.position.order = Order().listen(iterator)
        return iterator

    def _let_it_go_back(self, loader: Any, state: Any) -> None:
        """Have a loader restore itself, apart from the random numbers that this costs."""
        after = self._resumed.random() if self.position.taken and self._resumed is not None else random_state()
        loader.load_state_dict(state)
        loader.state_dict()  # has torchdata's loader make the iterator it goes on with, or finds at its end
        set_random_state(after)

    def _replay(self, loader: Any, pending: dict[str, Any], generators: dict[str, Any]) -> Iterator[Any]:
        """Make the epoch's iterator as it was made, and take from it what was taken."""
        position = self.position
        _check_shape(loader, pending)
        if position.epoch:
            _warm_up(loader, generators)
        position.start = start = pending["start"]
        after = self._resumed.random() if self._resumed is not None else random_state()
        now = {key: generator_state(one) for key, one in generators.items()}
        tracked = {key: generator_state(one) for key, one in self._tracked.items()}
        set_random_state(start["global"])
        for live, states in ((self._tracked, start.get("tracked", {})), (generators, start["own"])):
            for key in live.keys() & states.keys():
                set_generator_state(live[key], states[key])
        iterator: Iterator[Any] = self._heard(iter(loader))
        skip = _skipper(loader, iterator)
        for number in range(position.taken):
            if skip() is _END:
                raise IncompatibleCheckpointError(
                    f"the data ended after {number} batches; {position.taken} were taken when the snapshot was saved",
                    hint="give the loader the data it had, or resume from a snapshot that was saved between epochs",
                )
        order = None if position.order is None else position.order.state()
        if pending.get("order") is not None and order != pending["order"]:
            warnings.warn(_OTHER_ORDER, ResumeWarning, stacklevel=5)
        for key, state in now.items():
            set_generator_state(generators[key], state)
        self._set_back(generators, pending["generators"])
        for key, state in tracked.items():
            set_generator_state(self._tracked[key], state)
        set_random_state(after)
        return iterator

    def _set_back(self, generators: dict[str, Any], states: dict[str, Any]) -> None:
        """Give generators of a loader their saved states, apart from those that another has set back and used."""
        for key in generators.keys() & states.keys():
            if self._resumed is None or self._resumed.settle(generators[key]):
                set_generator_state(generators[key], states[key])


_END = object()


def _keeps_itself(loader: Any) -> bool:
    """Whether a loader knows its own position, as torchdata's StatefulDataLoader does."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _generators(loader: Any) -> dict[str, Any]:
    """The generators that a loader and its samplers have of their own, each once."""
    sampler = getattr(loader, "sampler", None)
    batches = getattr(loader, "batch_sampler", None)
    places = {
        "loader": loader,
        "sampler": sampler,
        "batch_sampler": batches,
        "inner": getattr(batches, "sampler", None),
    }
    found: dict[str, Any] = {}
    for key, place in places.items():
        generator = getattr(place, "generator", None)
        if isinstance(generator, GENERATORS) and not any(generator is known for known in found.values()):
            found[key] = generator
    return found


def _shape(loader: Any) -> dict[str, Any]:
    """What has to be the same for the same batches to come again."""
    shape: dict[str, Any] = {}
    with contextlib.suppress(TypeError):
        shape["batches"] = len(loader)
    if isinstance(loader, DataLoader):
        shape |= {"batch_size": loader.batch_size, "workers": loader.num_workers}
    return shape


def _check_shape(loader: Any, pending: dict[str, Any]) -> None:
    here, there = _shape(loader), pending["shape"] or {}
    # The number of workers decides which of them makes which batch, and so their random numbers.
    other = [f"{key} is {here.get(key)}, and was {value}" for key, value in there.items() if here.get(key) != value]
    if other:
        raise IncompatibleCheckpointError(
            f"the loader is not the one whose epoch was being read: {'; '.join(other)}",
            hint="make it as it was, or resume from a snapshot that was saved between epochs",
        )


def _warm_up(loader: Any, generators: dict[str, Any]) -> None:
    """Start workers that are to persist apart from the epoch: the run that is resumed had started them long before."""
    if getattr(loader, "persistent_workers", False) and getattr(loader, "_iterator", None) is None:
        before, own = random_state(), {key: generator_state(one) for key, one in generators.items()}
        iter(loader)
        set_random_state(before)
        for key, state in own.items():
            set_generator_state(generators[key], state)


def _skipper(loader: Any, iterator: Iterator[Any]) -> Callable[[], Any]:
    """What takes one batch and throws it away; without loading it, where loading leaves nothing behind.

    In the process of the training a batch costs random numbers of the global generators only, which are set afterwards.
    Workers have their own, so that they must do their work again.
    """
    index = getattr(iterator, "_next_index", None)
    in_process = isinstance(loader, DataLoader) and not loader.num_workers
    if in_process and index is not None and not isinstance(loader.dataset, IterableDataset):
        return lambda: _or_end(index)
    return lambda: next(iterator, _END)


def _or_end(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except StopIteration:
        return _END
