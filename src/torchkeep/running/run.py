"""A run: its metrics, its snapshots, and continuing it exactly."""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn

from ..core.criterion import Criterion
from ..core.manifest import Body
from ..core.metrics import plain_record
from ..core.report import ResumeReport, Skipped
from ..core.retention import Policy
from ..core.snapshot import Snapshot
from ..engines import reader_for
from ..engines.files import AUTO, TEMPORARY, check_engine, sync_folder, write_file
from ..errors import CorruptCheckpointError, KeyNotFoundError, LoadError, ResumeWarning, UnsavableError
from ..stores import Store
from ..stores.local import LocalStore
from .archive import MARKER, Archive
from .committing import SKIP, WAIT
from .gradients import watch
from .journal import START, Journal
from .keeping import checked_policy
from .leaving import LEFT, Sigterm
from .monitor import Monitor
from .position import Position, Reader, Resumed
from .probe import Probe
from .restore import carry_out, data_of, extra_of, plan_restore, random_of, tracked_in
from .stopping import Stopping, monitored
from .tracking import GENERATOR, OPTIMIZER, kind_of, of_kind
from .trust import Trust

Batch = TypeVar("Batch")


def local_store(path: str | os.PathLike[str], *, durable: bool = True, engine: str = AUTO) -> LocalStore:
    """The store of a run in a local folder."""
    write = partial(write_file, durable=durable, engine=check_engine(engine))
    read = reader_for(path)  # asked once: all files of a run lie together
    return LocalStore(path, write=write, read=read, sync_folder=sync_folder, temporary=TEMPORARY, durable=durable)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run."""
    return Path(path, MARKER).is_file()


class Run(Stopping):
    """A training run in a folder: what was logged, what was saved, and where it can go on.

    >>> with tk.Run("runs/flowers") as run:                                            # doctest: +SKIP
    ...     start = run.resume(model=model, optimizer=optimizer, scheduler=scheduler)
    ...     for epoch in range(start, 50):
    ...         run.log(epoch=epoch, val_loss=train_one_epoch())
    ...         print(run.save(epoch))

    A tensor that the run has already is not written again. A snapshot exists as soon as `save` returns, and a crash
    at any moment leaves the snapshots that were there before. One process writes a run at a time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        monitor: str | None = None,
        mode: str | None = None,
        sigterm: bool = False,
        keep: Policy | None = None,
        stop: Criterion | None = None,
        trust_frozen: bool = False,
        busy: str = WAIT,
        durable: bool = True,
        engine: str = AUTO,
        store: Store | None = None,
    ) -> None:
        """Name a run. Nothing is read or written before it is needed.

        Args:
            path: the folder; made at the first write.
            monitor: the metric that decides which snapshot is best; if None, the first of val_loss, eval_loss,
                valid_loss, val_accuracy, val_acc, eval_accuracy that was logged.
            mode: `min` or `max`; if None, as the metric's name says: `min` for losses and errors, `max` for accuracies.
            sigterm: on SIGTERM finish what is being done, up to the next batch of `batches` or the next `save`, save
                and leave with exit code 75, which says: start me again.
            keep: which snapshots stay, as `tk.keep_last(3) | tk.keep_best(1, "val_loss")`; applied after each save, and
                what only the others needed leaves the disk. If None, all of them.
            stop: when `should_stop` says so, as `tk.criteria.Patience(5) | tk.criteria.NotANumber()`. Then, and when a
                `with` block ends without an error, the model gets its best weights; that snapshot stays whatever
                `keep` says. Unless `monitor` says another, the first metric that it compares decides what is best.
            trust_frozen: do not read what `tk.freeze` holds still once it was saved; one in sixteen is read at each
                save all the same. If it has changed, a FrozenChangedWarning says so and everything is read.
            busy: what `save(blocking=False)` does while the one before is under way: `wait` for it, or `skip`.
            durable: wait for the disk at every save. Without, a crash of the machine may lose the last snapshots; a
                crash of the process never does.
            engine: `direct` writes past the page cache, `buffered` through it; `auto` takes direct for large files.
            store: where the bytes live, if not in the folder; `durable` and `engine` are then the store's matter.
        """
        super().__init__(stop)
        if busy not in {WAIT, SKIP}:
            raise ValueError(f"busy is {busy!r}; it must be {WAIT!r} or {SKIP!r}")
        self._probe = Probe.of(path)
        if self._probe is not None:
            path = self._probe.place(path)
        self.path = Path(path)
        self.last_resume: ResumeReport | None = None
        self._store: Store = store or local_store(path, durable=durable, engine=engine)
        self._busy = busy
        self._trust = Trust() if trust_frozen else None
        self._monitor = Monitor(self._store, *monitored(stop, monitor, mode))
        self._archive = Archive(self._store)
        self._keep = keep if keep is None else checked_policy(keep)
        self._journal = Journal(self._store)
        self._sigterm = Sigterm() if sigterm else None
        self._objects: dict[str, Any] = {}
        self._readers: dict[str, Reader] = {}
        self._parent: int | None = None
        self._step = -1
        self._writer = 0
        self._logged = False

    # -- using it ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                if error is None:
                    self._end()
            finally:
                self.close()
        except Exception as failed:
            if error is None:
                raise
            if not isinstance(error, (Exception, KeyboardInterrupt)):  # the end of a program, which shows no notes
                warnings.warn(f"while the run was closed: {failed}", ResumeWarning, stacklevel=2)
            error.add_note(f"besides, {failed}")  # what went wrong first is what has to be seen

    def close(self) -> None:
        """Finish a save that is under way, and let another process write this run. It can be used again afterwards.

        Raises:
            SaveError: a save in the background had failed.
        """
        try:
            self._settle()
        except Exception:
            self._let_others()
            raise
        self._let_others()  # not after a signal: the save goes on, and the lock goes with the process

    def _let_others(self) -> None:
        if self._sigterm is not None:
            self._sigterm.release()
        unlock = getattr(self._store, "unlock", None)
        if unlock is not None:
            unlock()
        self._clock.halt()
        self._writer = 0

    def log(self, **metrics: Any) -> None:
        """Add one record to the history.

        Args:
            metrics: numbers (0-d tensors and NumPy scalars become Python numbers), strings, lists, dicts.

        Raises:
            UnsavableError: a value is none of these.
        """
        self._surface()
        if not metrics:
            raise ValueError("nothing to log: give metrics by name, as in run.log(epoch=0, val_loss=0.7)")
        self._begin()
        if any(name.startswith("$") for name in metrics):
            raise ValueError("the names of metrics must not begin with '$'")
        record = plain_record(metrics)
        self._watch("log", self._journal.length)
        self._journal.add(record)
        self._logged = True

    def resume(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        snapshot: int | Snapshot | None = None,
        **others: Any,
    ) -> int:
        """Continue from the newest intact snapshot: restore the objects and the random number generators.

        Every byte is checked before any object is touched. A damaged snapshot is skipped for the next older one;
        `last_resume` says so, and a ResumeWarning. One that does not fit the objects is an error: nothing older is
        tried.

        Modules and optimizers are restored by the names of their parameters, in which wrappers do not show, onto
        whatever device they are on. An optimizer may hold its parameters in another order; what it holds no longer, or
        newly, is listed. A freeze spec is restored in the phase it was in. Call this last, when loaders too are made:
        whatever draws random numbers between resuming and training makes the run another one.

        Args:
            model, optimizer, scheduler: what to restore into; they are tracked by `save` from then on.
            snapshot: continue from this one, or its sequence number, instead.
            others: more to track, each under its name: modules (an EMA copy), optimizers, generators of torch, NumPy
                and Python, and whatever has state_dict and load_state_dict (a gradient scaler, a stopper).

        Returns:
            The number of the next step: the saved step + 1, or 0 for a new run.

        Raises:
            IncompatibleCheckpointError: an object differs from the one that was saved.
            CorruptCheckpointError: there are snapshots, and none is intact.
        """
        objects = self._with(model, optimizer, scheduler, others)
        self._settle()
        self._begin()
        skipped: list[Skipped] = []
        snapshot = snapshot.sequence if isinstance(snapshot, Snapshot) else snapshot
        for sequence in [snapshot] if snapshot is not None else self._archive.newest_first():
            try:
                loaded = self._archive.load(sequence)
            except KeyNotFoundError as error:
                if snapshot is None:  # pruned by another process since it was listed
                    continue
                raise LoadError(
                    f"{self.path} has no snapshot {sequence}", hint="`torchkeep runs` lists them"
                ) from error
            except CorruptCheckpointError as error:
                skipped.append(Skipped(sequence, error.brief))
                continue
            self.last_resume = self._restore(loaded.body, loaded.tensors, tuple(skipped), objects)
            _warn(self.last_resume)
            self._watch("resume", self.last_resume.step)
            return self.last_resume.next_step
        if skipped:
            listed = "; ".join(f"{one.sequence}: {one.reason}" for one in skipped)
            raise CorruptCheckpointError(
                f"no snapshot is intact: {listed}",
                file=str(self.path),
                hint="bring the named files back from a copy; `torchkeep verify` lists all damage",
            )
        if not self._logged:  # records of an earlier process that never committed a snapshot
            self._journal.back_to(START, 0)
        self.last_resume = ResumeReport()
        self._parent, self._objects, self._step, self._readers = 0, objects, -1, {}
        self._go_on_from(0.0)
        return 0

    def batches(self, loader: Iterable[Batch], *, name: str = "train") -> Iterator[Batch]:
        """The batches of one epoch, so that a snapshot saved between two of them is continued with the next one.

        >>> for epoch in range(run.epoch, 10):                                     # doctest: +SKIP
        ...     for inputs, targets in run.batches(loader):
        ...         ...

        Leaving the loop ends the epoch. After resuming, the epoch's iterator is made again with the generators as they
        were then, and what was taken is skipped: without loading it where the loader has no workers, else by loading
        it, because workers draw random numbers of their own. With `persistent_workers` those are not restored.
        A loader with `state_dict` (torchdata's StatefulDataLoader) is asked for its own position.

        Args:
            loader: a torch DataLoader, or anything that gives the same batches when the generators are the same.
            name: of the position; each loader that is to be resumed has its own.

        Raises:
            IncompatibleCheckpointError: after resuming, the loader has another number of batches, another batch size
                or another number of workers, or ends too early.
        """
        self._begin()
        reader = self._readers.setdefault(name, Reader())
        main = "train" if "train" in self._readers else next(iter(self._readers))
        leave = self._leave_if_asked if name == main else _go_on
        with contextlib.closing(reader.read(loader, leave, of_kind(self._objects, GENERATOR))) as batches:
            for batch in batches:
                if self._probe is not None:
                    self._probe.happens("batch", name, reader.position.epoch, reader.position.taken, batch=batch)
                yield batch
                if self._readers.get(name) is not reader:
                    raise RuntimeError(
                        f"the run was resumed while {name!r} was being read; leave the loop and begin it anew"
                    )

    def position(self, name: str = "train") -> Position:
        """How far a loader was read: `.epoch` (that have ended), `.taken` (batches of this one), `.steps` (of all)."""
        reader = self._readers.get(name)
        return Position() if reader is None else reader.position

    @property
    def epoch(self) -> int:
        """The epoch of `batches` that is on, or comes next, from 0."""
        return self.position().epoch

    # -- inside -----------------------------------------------------------------------------------------------

    def _with(self, model: Any, optimizer: Any, scheduler: Any, others: dict[str, Any]) -> dict[str, Any]:
        """The tracked objects with these among them; they are remembered when the call has succeeded."""
        given = {"model": model, "optimizer": optimizer, "scheduler": scheduler, **others}
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            kind_of(name, value)
        objects = self._objects | given
        watch(of_kind(objects, OPTIMIZER).values())
        return objects

    def _begin(self) -> None:
        """Become the writer and take up the history where the file ends."""
        if self._writer == os.getpid():  # a forked child inherits the object, and has to ask for the lock
            return
        lock = getattr(self._store, "lock", None)
        if lock is not None:
            lock()
        self._archive.mark()
        self._journal.begin()
        if self._sigterm is not None:
            self._sigterm.watch()
        self._clock.go()
        self._writer = os.getpid()

    def _watch(self, *event: Any) -> None:
        if self._probe is not None:
            self._probe.happens(*event)

    def _leave_if_asked(self) -> None:
        """Between two batches: on SIGTERM save, under the last finished step, and leave."""
        if self._sigterm is None or not self._sigterm.came:
            return
        if self._objects:
            try:
                self._settle()
            except Exception as error:  # whatever it was, the last snapshot is saved all the same
                warnings.warn(f"a save in the background had failed: {error}", ResumeWarning, stacklevel=2)
            try:
                self._save(self._step, self._objects, None, None)
            except UnsavableError as error:  # a gradient that cannot be kept must not cost the snapshot
                warnings.warn(f"saved without gradients: {error.brief}", ResumeWarning, stacklevel=2)
                self._save(self._step, self._objects, None, gradients=False)
        raise SystemExit(LEFT if self._objects else 128 + signal.SIGTERM)

    def _restore(
        self, body: Body, tensors: dict[str, torch.Tensor], skipped: tuple[Skipped, ...], objects: dict[str, Any]
    ) -> ResumeReport:
        if self._trust is not None:
            self._trust.forget()
        steps = plan_restore(body, tensors, objects)
        extra, data = extra_of(body, tensors), data_of(body, tensors)
        carry_out(steps)
        notes = tuple(note for step in steps for note in step.notes)
        lost = [what for step in steps for what in step.lost]
        untouched = [name for name in tracked_in(body) if name not in objects]
        lost += [f"the snapshot holds a {name}, and none was given to restore" for name in untouched]
        if not self._journal.back_to(body.history, body.sequence):
            lost.append("the history before this snapshot is not as it was written")
        self._parent, self._objects, self._step = body.sequence, objects, body.step
        self._go_on_from(body.seconds)
        resumed = Resumed(random_of(body, tensors), of_kind(objects, GENERATOR).values())
        self._readers = {name: Reader.at(state, resumed) for name, state in data.items()}
        restored = tuple(dict.fromkeys(step.what for step in steps))
        notes += (f"it had stopped: {self.stopped}",) if self.stopped else ()
        return ResumeReport(body.sequence, body.step, body.step + 1, restored, skipped, notes, tuple(lost), extra)


def _go_on() -> None:
    """Between batches of a loader that is read beside another, or after it: no place to leave."""


def _warn(report: ResumeReport) -> None:
    """Say aloud what is not as it was saved."""
    for text in (*report.skips, *report.lost):
        warnings.warn(f"snapshot {report.sequence}: {text}", ResumeWarning, stacklevel=3)
