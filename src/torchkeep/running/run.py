"""A run: its metrics, its snapshots, and continuing it exactly."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import torch
from blake3 import blake3
from torch import nn

from ..core import tagged
from ..core.checkpoint import Checkpoint
from ..core.history import History, decode_history, encode_record, resume_mark, whole_lines
from ..core.manifest import Body, HistoryMark, seal, unseal
from ..core.report import ResumeReport, SaveReport, Skipped
from ..core.snapshot import RunSummary, Snapshot, best_of, spec_of_entry
from ..core.source import read_all
from ..engines.buffered import TEMPORARY, sync_folder, write_file
from ..engines.mapped import MappedSource
from ..errors import CorruptCheckpointError, KeyNotFoundError, LoadError, SaveError, UnsavableError
from ..stores import Store
from ..stores.local import LocalStore
from .archive import MARKER, Archive
from .capture import capture
from .restore import carry_out, extra_of, extra_state_of, plan_restore

HISTORY, BEST = "history.jsonl", "tags/best.json"
_MONITORS = ("val_loss", "eval_loss", "valid_loss", "val_accuracy", "val_acc", "eval_accuracy")
_LOWER_IS_BETTER = {"loss", "error", "err", "mse", "mae", "rmse", "nll", "perplexity", "ppl", "fid", "wer", "cer"}
_HIGHER_IS_BETTER = {
    "acc",
    "accuracy",
    "f1",
    "auc",
    "auroc",
    "precision",
    "recall",
    "iou",
    "miou",
    "dice",
    "bleu",
    "r2",
}


def local_store(path: str | os.PathLike[str]) -> LocalStore:
    """The store of a run in a local folder."""
    return LocalStore(path, write=write_file, read=MappedSource, sync_folder=sync_folder, temporary=TEMPORARY)


def mode_of(metric: str) -> str:
    """Whether the lowest (`min`) or the highest (`max`) value of a metric is best, as its name says.

    Raises:
        ValueError: the name does not say.
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    if words & _LOWER_IS_BETTER:
        return "min"
    if words & _HIGHER_IS_BETTER:
        return "max"
    raise ValueError(f"is a high or a low {metric!r} better? Give mode='max' or mode='min'")


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run."""
    return Path(path, MARKER).is_file()


class Run:
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
        store: Store | None = None,
    ) -> None:
        """Name a run. Nothing is read or written before it is needed.

        Args:
            path: the folder; made at the first write.
            monitor: the metric that decides which snapshot is best; if None, the first of val_loss, eval_loss,
                valid_loss, val_accuracy, val_acc, eval_accuracy that was logged.
            mode: `min` or `max`; if None, as the metric's name says: `min` for losses and errors, `max` for accuracies.
            store: where the bytes live, if not in the folder.
        """
        if mode not in {None, "min", "max"}:
            raise ValueError(f"mode is {mode!r}; it must be 'min' or 'max'")
        if monitor is not None and mode is None:
            mode = mode_of(monitor)
        self.path = Path(path)
        self.last_resume: ResumeReport | None = None
        self._monitor, self._mode = monitor, mode
        self._store: Store = store or local_store(path)
        self._archive = Archive(self._store)
        self._objects: dict[str, Any] = {"model": None, "optimizer": None, "scheduler": None}
        self._parent: int | None = None
        self._writer = 0
        self._logged = False
        self._history: list[dict[str, Any]] = []
        self._history_size = 0
        self._history_hash = blake3()

    # -- using it ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write this run. It can be used again afterwards."""
        unlock = getattr(self._store, "unlock", None)
        if unlock is not None:
            unlock()
        self._writer = 0

    def log(self, **metrics: Any) -> None:
        """Add one record to the history.

        Args:
            metrics: numbers (0-d tensors and NumPy scalars become Python numbers), strings, lists, dicts.

        Raises:
            UnsavableError: a value is none of these.
        """
        if not metrics:
            raise ValueError("nothing to log: give metrics by name, as in run.log(epoch=0, val_loss=0.7)")
        self._begin()
        if any(name.startswith("$") for name in metrics):
            raise ValueError("the names of metrics must not begin with '$'")
        record = {name: _plain_number(name, value) for name, value in metrics.items()}
        self._append(encode_record(record))
        self._history.append(record)
        self._logged = True

    def save(
        self,
        step: int,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        extra: Any = None,
    ) -> SaveReport:
        """Commit a snapshot of the tracked objects and of the random number generators.

        Args:
            step: the caller's number, usually the epoch; `resume` continues after it.
            model, optimizer, scheduler: remembered from then on, and from `resume`.
            extra: anything made of tensors and plain values; saved this time only.

        Raises:
            UnsavableError: something cannot be written without pickle; `.path` says where.
            NoSpaceError, RunLockedError, SaveError: nothing was committed.
        """
        started = time.perf_counter()
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}; it must be an integer from 0")
        objects = self._with(model=model, optimizer=optimizer, scheduler=scheduler)
        if objects["model"] is None:
            raise SaveError(
                "there is no model to save", hint="pass it once: run.save(0, model=model, optimizer=optimizer)"
            )
        self._begin()
        captured = capture(**objects, extra=extra)
        self._store.append(HISTORY, b"", durable=True)
        committed = self._archive.commit(
            captured.tensors,
            captured.state,
            step=step,
            parent=self._parent_sequence(),
            history=HistoryMark(len(self._history), self._history_size, self._history_hash.hexdigest()),
            metrics=tagged.encode(History(tuple(self._history)).last),
        )
        self._parent, self._objects = committed.body.sequence, objects
        self._tag_best(committed.body)
        sizes = {entry.digest: spec_of_entry(entry.dtype, entry.shape).nbytes for entry in committed.body.entries}
        return SaveReport(
            path=str(self.path),
            bytes_written=committed.bytes_written,
            bytes_total=sum(sizes.values()),
            seconds=time.perf_counter() - started,
            sequence=committed.body.sequence,
            tensors_written=committed.tensors_written,
            tensors_total=len(captured.tensors),
        )

    def resume(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Any = None,
        scheduler: Any = None,
        snapshot: int | None = None,
    ) -> int:
        """Continue from the newest intact snapshot: restore the objects and the random number generators.

        Every byte is checked before any object is touched. A damaged snapshot is skipped for the next older one;
        `last_resume` says so. One that does not fit the objects is an error: nothing older is tried.

        Args:
            model, optimizer, scheduler: what to restore into; they are tracked by `save` from then on.
            snapshot: continue from this sequence number instead.

        Returns:
            The number of the next step: the saved step + 1, or 0 for a new run.

        Raises:
            IncompatibleCheckpointError: an object differs from the one that was saved.
            CorruptCheckpointError: there are snapshots, and none is intact.
        """
        objects = self._with(model=model, optimizer=optimizer, scheduler=scheduler)
        self._begin()
        wanted = [snapshot] if snapshot is not None else list(reversed(self._archive.sequences()))
        skipped: list[Skipped] = []
        for sequence in wanted:
            try:
                body = self._archive.body(sequence)
                tensors = self._archive.tensors(body)
            except KeyNotFoundError as error:
                raise LoadError(
                    f"{self.path} has no snapshot {sequence}", hint="`torchkeep runs` lists them"
                ) from error
            except CorruptCheckpointError as error:
                skipped.append(Skipped(sequence, error.brief))
                continue
            self.last_resume = self._restore(body, tensors, tuple(skipped), objects)
            return self.last_resume.next_step
        if skipped:
            listed = "; ".join(f"{one.sequence}: {one.reason}" for one in skipped)
            raise CorruptCheckpointError(
                f"no snapshot is intact: {listed}",
                file=str(self.path),
                hint="bring the named files back from a copy; `torchkeep verify` lists all damage",
            )
        if not self._logged:  # records of an earlier process that never committed a snapshot
            self._back_to(HistoryMark(0, 0, blake3().hexdigest()), 0)
        self.last_resume = ResumeReport()
        self._parent, self._objects = 0, objects
        return 0

    # -- looking at it ----------------------------------------------------------------------------------------

    def open(self, snapshot: int | Snapshot | None = None) -> Checkpoint:
        """The model's weights in a snapshot, every byte checked, without resuming and without the lock.

        >>> tk.load_into(model, tk.Run("runs/flowers").open(run.best))             # doctest: +SKIP

        Args:
            snapshot: a snapshot or its sequence number; the newest if None.

        Raises:
            LoadError: there is no such snapshot.
            CorruptCheckpointError: it is damaged.
        """
        sequence = snapshot.sequence if isinstance(snapshot, Snapshot) else snapshot
        known = self._archive.sequences()
        if not known or (sequence is not None and sequence not in known):
            raise LoadError(
                f"{self.path} has no snapshot {sequence or ''}".rstrip(), hint="`torchkeep runs` lists them"
            )
        body = self._archive.body(sequence or known[-1])
        self._archive.tensors(body)  # checks every digest
        lazy = self._archive.lazy(body)
        weights = {name.removeprefix("model/"): tensor for name, tensor in lazy.items() if name.startswith("model/")}
        file = f"{self.path}, snapshot {body.sequence}"
        return Checkpoint(file, "torchkeep_run", weights, tree=extra_state_of(body, lazy))

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The intact snapshots, oldest first."""
        return self._archive.snapshots()

    @property
    def best(self) -> Snapshot | None:
        """The snapshot with the best value of the monitored metric; None if it was never logged."""
        return self._best(self.snapshots)

    @property
    def history(self) -> History:
        """What was logged, without the records of abandoned branches."""
        return decode_history(self._read(HISTORY))

    def digests(self, snapshot: int | None = None) -> dict[str, str]:
        """BLAKE3 of every tensor of a snapshot by full name, of the newest intact one if None.

        Raises:
            LoadError: there is no such snapshot.
        """
        found = [one.sequence for one in self.snapshots if snapshot in {None, one.sequence}]
        if not found:
            raise LoadError(
                f"{self.path} has no intact snapshot {snapshot or ''}".rstrip(), hint="`torchkeep runs` lists them"
            )
        return {entry.name: entry.digest for entry in self._archive.body(found[-1]).entries}

    def summary(self) -> RunSummary:
        """All of the above in one table.

        Raises:
            LoadError: there is no run in this folder.
        """
        if not self._read(MARKER):
            raise LoadError(f"{self.path} is no run: it has no {MARKER}", hint="give the folder that tk.Run was given")
        damaged = tuple(f"snapshot {number}: {why}" for number, why in self._archive.unreadable().items())
        damaged += self._archive.missing_packs()
        return RunSummary(str(self.path), self.snapshots, self.best, len(self.history), damaged)

    # -- inside -----------------------------------------------------------------------------------------------

    def _with(self, **objects: Any) -> dict[str, Any]:
        """The tracked objects with these among them; they are remembered when the call has succeeded."""
        needs = {"model": "named_parameters", "optimizer": "param_groups", "scheduler": "state_dict"}
        for name, value in objects.items():
            if value is not None and not hasattr(value, needs[name]):
                raise SaveError(
                    f"{name}= is a {type(value).__name__}, which is no {name}: it has no {needs[name]}",
                    hint="a run tracks one model, one optimizer and one scheduler; pass what else there is as extra=",
                )
        return self._objects | {name: value for name, value in objects.items() if value is not None}

    def _begin(self) -> None:
        """Become the writer and take up the history where the file ends."""
        if self._writer == os.getpid():  # a forked child inherits the object, and has to ask for the lock
            return
        lock = getattr(self._store, "lock", None)
        if lock is not None:
            lock()
        self._archive.mark()
        data = self._read(HISTORY)
        whole = data[: whole_lines(data)]
        if len(whole) < len(data):  # a crash tore the last line; it was never part of a snapshot
            self._store.put(HISTORY, [whole], replace=True)
        self._take_up(whole)
        self._writer = os.getpid()

    def _take_up(self, data: bytes) -> None:
        """Go on after these bytes of the history."""
        self._history = list(decode_history(data))
        self._history_size = len(data)
        self._history_hash = blake3(data)

    def _back_to(self, mark: HistoryMark, sequence: int) -> bool:
        """Make the history end where a snapshot says; False if those bytes are not as they were written."""
        data = self._read(HISTORY)
        kept = data[: mark.nbytes]
        if self._history_size > mark.nbytes:
            line = resume_mark(sequence, mark.nbytes)
            self._store.append(HISTORY, line)
            self._take_up(data + line)
        return len(kept) == mark.nbytes and blake3(kept).hexdigest() == mark.digest

    def _append(self, line: bytes) -> None:
        self._store.append(HISTORY, line)
        self._history_size += len(line)
        self._history_hash.update(line)

    def _read(self, key: str) -> bytes:
        try:
            source = self._store.source(key)
        except KeyNotFoundError:
            return b""
        return read_all(source)

    def _parent_sequence(self) -> int:
        if self._parent is None:  # saving into a run that was not resumed: it goes on from what is newest
            self._parent = max(self._archive.sequences(), default=0)
        return self._parent

    def _restore(
        self, body: Body, tensors: dict[str, torch.Tensor], skipped: tuple[Skipped, ...], objects: dict[str, Any]
    ) -> ResumeReport:
        steps = plan_restore(body, tensors, **objects)
        extra = extra_of(body, tensors)
        carry_out(steps)
        notes = [note for step in steps for note in step.notes]
        untouched = [name for name in ("optimizer", "scheduler") if name in body.state and objects[name] is None]
        notes += [f"the snapshot holds a {name}, and none was given to restore" for name in untouched]
        if not self._back_to(body.history, body.sequence):
            notes.append("the history before this snapshot is not as it was written")
        self._parent, self._objects = body.sequence, objects
        restored = tuple(step.what for step in steps)
        return ResumeReport(body.sequence, body.step, body.step + 1, restored, skipped, tuple(notes), extra)

    def _best(self, snapshots: tuple[Snapshot, ...]) -> Snapshot | None:
        metric, mode = self._monitoring(snapshots)
        return best_of(snapshots, metric, mode) if metric else None

    def _monitoring(self, snapshots: tuple[Snapshot, ...]) -> tuple[str, str]:
        """What decides: the caller's metric and mode, else the last writer's, else a usual metric that was logged."""
        metric, mode = self._monitor, self._mode
        if metric is None:
            logged = {name for snapshot in snapshots for name in snapshot.metrics}
            told = self._told()
            if told.get("metric") in logged and told.get("mode") in {"min", "max"}:
                metric, mode = told["metric"], mode or told["mode"]
            else:
                metric = next((name for name in _MONITORS if name in logged), "")
        return metric, mode or (mode_of(metric) if metric else "")

    def _told(self) -> dict[str, Any]:
        with contextlib.suppress(CorruptCheckpointError, msgspec.DecodeError, ValueError):
            data = self._read(BEST)
            if data:
                return msgspec.json.decode(unseal(data, file=BEST), type=dict[str, Any])
        return {}

    def _tag_best(self, body: Body) -> None:
        """Point to the best snapshot, so that who reads the run later sees it as its writer does."""
        snapshots = self.snapshots
        best = self._best(snapshots)
        if best is not None and best.sequence == body.sequence:
            metric, mode = self._monitoring(snapshots)
            told = {"sequence": body.sequence, "metric": metric, "mode": mode}
            with contextlib.suppress(SaveError):  # the snapshot is committed, and the pointer can be computed again
                self._store.put(BEST, [seal(msgspec.json.encode(told))], replace=True)


def _plain_number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise UnsavableError(
                f"the metric {name!r} is a tensor of shape {tuple(value.shape)}", path=name, hint="log a number"
            )
        return value.item()
    return value.item() if isinstance(value, np.generic) else value
