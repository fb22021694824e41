"""Saving a run, as methods of `Run`: what is taken at the call, and what may happen beside training."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import nn

from ..core import tagged
from ..core.manifest import HistoryMark
from ..core.report import SaveReport
from ..core.snapshot import spec_of_entry
from ..core.threads import THREADS
from ..errors import KeyNotFoundError, OpenError, SaveError
from ..staging import Copies, Staging
from ..stopping import Clock
from .background import SaveHandle
from .capture import capture
from .keeping import Keeping
from .leaving import LEFT, Sigterm
from .packing import Given, given
from .position import Reader
from .probe import Probe
from .tracking import MODULE, OPTIMIZER, of_kind
from .trust import Marks, Trust

WAIT, SKIP = "wait", "skip"


@dataclass(frozen=True)
class Moment:
    """A run as it was when a save was called: nothing in it changes while training goes on, but live tensors."""

    started: float
    step: int
    objects: dict[str, Any]
    given: Given
    state: dict[str, Any]
    parent: int
    history: HistoryMark
    metrics: dict[str, Any]
    seconds: float
    frozen: Marks
    notes: tuple[str, ...]


class Saving(Keeping):
    """The part of `Run` that saves."""

    _objects: dict[str, Any]
    _readers: dict[str, Reader]
    _probe: Probe | None
    _sigterm: Sigterm | None
    _trust: Trust | None
    _busy: str
    _clock: Clock
    _parent: int | None
    _step: int

    def __init__(self) -> None:
        self._staging = Staging()
        self._under_way: SaveHandle | None = None
        self._copies: Copies | None = None  # of the last save
        self._overlaps = False  # whether some of them are made after the call
        self._guards = False
        self._inside = 0
        self._one_at_a_time = threading.RLock()
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()

    @overload
    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        extra: Any = None,
        gradients: bool | None = None,
        blocking: Literal[True] = True,
        **others: Any,
    ) -> SaveReport: ...

    @overload
    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        extra: Any = None,
        gradients: bool | None = None,
        blocking: Literal[False],
        **others: Any,
    ) -> SaveHandle: ...

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        extra: Any = None,
        gradients: bool | None = None,
        blocking: bool = True,
        **others: Any,
    ) -> SaveReport | SaveHandle:
        """Commit a snapshot of the tracked objects, the random number generators and the position in the data.

        Args:
            step: the caller's number, usually the epoch; `resume` continues after it.
            model, optimizer, scheduler, others: remembered from then on, and from `resume`.
            extra: anything made of tensors and plain values; saved this time only.
            gradients: keep the gradients of the modules, or not; if None, those that no tracked optimizer has applied
                yet, which are those of an accumulation that goes on.
            blocking: wait until it is committed. Otherwise what may change is copied into host memory that is kept,
                and the rest happens beside training: a SaveHandle comes back, whose `result()` is the report.

        Raises:
            UnsavableError: something cannot be written without pickle; `.path` says where.
            NoSpaceError, RunLockedError, SaveError: nothing was committed. One of a save that was under way in the
                background is raised here too, before anything else is done.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}; it must be an integer from 0")
        objects = self._with(model, optimizer, scheduler, others)
        busy = self._under_way is not None and not self._under_way.done
        leaving = self._sigterm is not None and self._sigterm.came
        if busy and not blocking and self._busy == SKIP and not leaving:
            self._objects = objects
            return SaveHandle(step, None, str(self.path))
        with self._one_at_a_time:  # of the threads of the caller too: they share the memory for copies
            saved = (
                self._save(step, objects, extra, gradients)
                if blocking
                else self._save_beside(step, objects, extra, gradients)
            )
        if self._sigterm is not None and self._sigterm.came:
            self._settle()
            raise SystemExit(LEFT)
        return saved

    def prewarm(
        self, *, model: nn.Module | None = None, optimizer: Any = None, scheduler: Any = None, **others: Any
    ) -> int:
        """Make the host memory that `save(blocking=False)` copies to, so that not even the first one waits for it.

        An optimizer that has not stepped yet is counted with two moments for each of its parameters.

        Args:
            model, optimizer, scheduler, others: as for `save`; remembered from then on.

        Returns:
            The bytes that are kept for copies.
        """
        objects = self._with(model, optimizer, scheduler, others)
        self._settle()
        taken = given(capture(objects).tensors)
        fresh = [one for one in of_kind(objects, OPTIMIZER).values() if not one.state_dict()["state"]]
        coming = [parameter for one in fresh for group in one.param_groups for parameter in group["params"]]
        more = sum(2 * parameter.nbytes + 256 for parameter in coming if parameter.requires_grad)
        self._staging.reserve(taken.values, more)
        self._objects = objects
        return self._staging.nbytes

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around whatever changes weights: `optimizer.step()`, the update of an average, clipping in place.

        >>> with run.guard():                                                      # doctest: +SKIP
        ...     optimizer.step()

        It waits until a save that is under way has its copies. Once it has been used, `save(blocking=False)` copies
        parameters and moments while the next forward and backward pass run, and the caller hardly waits at all. A step
        of a tracked torch optimizer outside of it waits just the same, and other changes are noticed where torch
        counts them: the save fails, and nothing torn is committed.
        """
        self._surface()
        self._guards = True
        self._wait_for_copies()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    # -- inside -----------------------------------------------------------------------------------------------

    def _with(self, model: Any, optimizer: Any, scheduler: Any, others: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _begin(self) -> None:
        raise NotImplementedError

    def _watch(self, *event: Any) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Wait for a save that is under way, and raise what became of it."""
        handle = self._under_way
        if handle is not None and not handle.is_this_thread():  # a store may look at its run
            handle.wait_done()  # a signal may end the waiting, and it is under way still
            if self._under_way is handle:
                self._under_way = None
            handle.surface()

    def _surface(self) -> None:
        """Raise the error of a save that has failed meanwhile, and wait for nothing."""
        if self._under_way is not None:
            self._under_way.surface()

    def _wait_for_copies(self) -> None:
        if self._copies is not None:
            self._copies.order()
        if self._overlaps and self._under_way is not None:
            self._under_way.wait_staged()

    def _save(self, step: int, objects: dict[str, Any], extra: Any, gradients: bool | None) -> SaveReport:
        self._settle()
        report = self._commit(self._take(step, objects, extra, gradients))
        self._objects = objects
        return report

    def _save_beside(self, step: int, objects: dict[str, Any], extra: Any, gradients: bool | None) -> SaveHandle:
        self._settle()
        moment = self._take(step, objects, extra, gradients)
        live = {name: value for name, value in moment.given.values.items() if name not in moment.given.digests}
        copies = self._staging.begin(live)
        self._hook(objects)
        overlaps = self._guards and not self._inside  # within a guard the next line may change weights
        later = self._later(objects, live) if overlaps else {}
        counts = _counts(live)
        copies.start(later)
        _check_still(counts, "let no other thread train while the run saves")
        self._copies, self._overlaps = copies, bool(later)
        if not overlaps:
            copies.order()
        counts = _counts(later)
        unread = {name: moment.given.values[name] for name in moment.given.digests}
        rest = replace(moment, given=replace(moment.given, values=unread))  # nothing that was copied is kept alive
        live.clear()
        later.clear()

        def work(all_copied: Callable[[], None]) -> SaveReport:
            staged = copies.finish()
            _check_still(counts, "put `with run.guard():` around everything that changes weights")
            counts.clear()
            all_copied()
            taken = replace(rest.given, values=unread | staged, private=frozenset(staged))
            return self._commit(replace(rest, given=taken), threads=min(2, THREADS))

        self._objects = objects
        self._under_way = SaveHandle(step, work, str(self.path))
        try:
            self._under_way.begin()
        except BaseException:  # it is known all the same, for its thread may have begun
            self._under_way.give_up()
            raise
        if self._probe is not None:  # a run that is watched does one thing at a time
            self._under_way.result()
        return self._under_way

    def _later(self, objects: Mapping[str, Any], live: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What nothing but a step of an optimizer changes, which will wait: its parameters and its moments.

        Only in host memory: the copies of devices are ordered by the devices themselves.
        """
        waiting: set[int] = set()
        for optimizer in of_kind(objects, OPTIMIZER).values():
            if any(optimizer is hooked for hooked in self._hooked):
                waiting.update(id(one) for group in optimizer.param_groups for one in group["params"])
                for moments in optimizer.state.values():
                    waiting.update(id(one) for one in moments.values() if isinstance(one, torch.Tensor))
        modules = [part for module in of_kind(objects, MODULE).values() for part in module.modules()]
        waiting -= {id(part.weight) for part in modules if getattr(part, "max_norm", None) is not None}  # by forward
        return {
            name: tensor
            for name, tensor in live.items()
            if id(tensor) in waiting and tensor.device.type == "cpu" and not tensor.is_inference()
        }

    def _hook(self, objects: Mapping[str, Any]) -> None:
        """Have the steps of tracked optimizers wait for the copies of a save."""
        wait = weakref.WeakMethod(self._wait_for_copies)

        def before(*_: Any) -> None:
            waiting = wait()
            if waiting is not None:
                waiting()

        for optimizer in of_kind(objects, OPTIMIZER).values():
            with contextlib.suppress(TypeError):  # a wrapper that cannot be hashed: nothing of it is copied later
                if optimizer not in self._hooked and hasattr(optimizer, "register_step_pre_hook"):
                    optimizer.register_step_pre_hook(before)
                    self._hooked.add(optimizer)

    def _take(self, step: int, objects: dict[str, Any], extra: Any, gradients: bool | None) -> Moment:
        """What a save is about, by reference."""
        started = time.perf_counter()
        if not objects:
            raise SaveError(
                "there is no model to save", hint="pass it once: run.save(0, model=model, optimizer=optimizer)"
            )
        self._begin()
        unwinding = sys.exc_info()[0] is not None
        data = {name: reader.state(unwinding=unwinding) for name, reader in self._readers.items()}
        captured = capture(objects, extra=extra, data=data, gradients=gradients)
        self._watch("save", step)
        taken = given(captured.tensors)
        frozen: Marks = {}
        notes: tuple[str, ...] = ()
        if self._trust is not None:
            frozen = self._trust.look(taken, objects)
            taken, notes = self._trust.check(replace(taken, digests=self._trust.known(frozen)))
        return Moment(
            started,
            step,
            objects,
            taken,
            captured.state,
            self._parent_sequence(),
            self._journal.mark(),
            tagged.encode(self._journal.last),
            round(self._clock.seconds, 3),
            frozen,
            notes,
        )

    def _commit(self, moment: Moment, threads: int = THREADS) -> SaveReport:
        """Hash, write and commit; from here on nothing looks at live objects but at frozen tensors that are trusted."""
        self._journal.sync()
        try:
            committed = self._archive.commit(
                moment.given,
                moment.state,
                step=moment.step,
                parent=moment.parent,
                history=moment.history,
                metrics=moment.metrics,
                seconds=moment.seconds,
                threads=threads,
            )
        except BaseException:
            if self._trust is not None:
                self._trust.forget()
            raise
        body = committed.body
        digests = {entry.name: entry.digest for entry in body.entries}
        if self._trust is not None:
            self._trust.learn(moment.frozen, digests)
        self._parent, self._step = body.sequence, moment.step
        self._monitor.point_to_best(self._snapshots(), body)
        notes = moment.notes + self._let_go()
        sizes = {entry.digest: spec_of_entry(entry.dtype, entry.shape).nbytes for entry in body.entries}
        return SaveReport(
            path=str(self.path),
            bytes_written=committed.bytes_written,
            bytes_total=sum(sizes.values()),
            seconds=time.perf_counter() - moment.started,
            sequence=body.sequence,
            tensors_written=committed.tensors_written,
            tensors_total=len(moment.given.members),
            engine=committed.engine,
            notes=notes,
        )

    def _parent_sequence(self) -> int:
        if self._parent is None:  # saving into a run that was not resumed: it goes on from what is newest
            self._parent = max(self._archive.sequences(), default=0)
            with contextlib.suppress(KeyNotFoundError, OpenError):
                self._clock.set(self._archive.body(self._parent).seconds + self._clock.seconds)
        return self._parent


def _counts(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, int]]:
    """The tensors with torch's counts of their changes, where it counts them."""
    return {name: (tensor, tensor._version) for name, tensor in tensors.items() if not tensor.is_inference()}


def _check_still(counts: Mapping[str, tuple[torch.Tensor, int]], hint: str) -> None:
    """Refuse copies of what changed while it was copied.

    Raises:
        SaveError: some tensor has another count.
    """
    changed = [name for name, (tensor, count) in counts.items() if tensor._version != count]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise SaveError(f"{changed[0]}{others} changed while it was copied; nothing was committed", hint=hint)
