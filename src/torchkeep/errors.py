"""The errors of torchkeep: few classes, and a different class means a different thing for the caller to do.

    TorchkeepError                       the root; catch this to catch everything
    |- OpenError                         a file could not be opened
    |  |- CheckpointNotFoundError        nothing is there (also a FileNotFoundError)
    |  |- UnknownFormatError             what is there is not a checkpoint
    |  |- CorruptCheckpointError         it is a checkpoint, and damaged or lying about itself
    |  |- UnsafeCheckpointError          reading it would cost more than the limits allow
    |  `- UnsupportedFeatureError        it is sound, and torchkeep cannot read this part of it yet
    |- LoadError
    |  |- IncompatibleCheckpointError    weights and model do not fit; `.report` says where
    |  |- AmbiguousMatchError            there are two equally good ways to match the names
    |  |- PartialLoadError               loading stopped in the middle; `.applied` names what was copied
    |  `- OutputsDifferError             the weights are loaded and the model computes something else; `.difference`
    |- SaveError
    |  |- UnsavableError                 the object at `.path` cannot be written without pickle
    |  |- RunLockedError                 another process is writing this run
    |  |- CommitUnknownError             the last step may or may not have reached the disk
    |  `- NoSpaceError                   the disk is full (also an OSError); `.needed` and `.free` in bytes
    |- StoreError
    |  `- KeyNotFoundError               the store has no such key (also a FileNotFoundError)
    |- SelectorError                     a selector selects nothing or cannot be read (also a ValueError)
    |- SurgeryError                      the layer cannot be changed in this way (also a ValueError)
    |- RebuildError                      a model cannot be made from its file; `.classes` names those that lack
    |- EditError                         checkpoints cannot be edited or put together in this way (also a ValueError)
    |- DataError                         examples cannot be used, or not with this model (also a ValueError)
    |- FrozenChangedError                what was frozen is not what it was (also an AssertionError); `.changed`
    `- MissingDependencyError            an optional package is not installed (also an ImportError)

Every class has an `exit_code`, which the command line uses; docs/cli.md has them in one table.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any


class TorchkeepError(Exception):
    """The root of every error that torchkeep raises.

    Attributes:
        message: what is wrong, in one sentence.
        hint: what to try, or an empty string.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def brief(self) -> str:
        """What is wrong and where, in one line, without the hint."""
        return self._where() + self.message.partition("\n")[0]

    def _where(self) -> str:
        return ""

    def __str__(self) -> str:
        text = self._where() + self.message
        return f"{text}\n  try: {self.hint}" if self.hint else text


class OpenError(TorchkeepError):
    """A checkpoint could not be opened.

    Attributes:
        file: the file as the caller named it.
        place: where in the file, e.g. `data.pkl, byte 120` or `header, tensor 'fc.weight'`; may be empty.
        findings: what was found in the file before that, dangerous names above all.
    """

    exit_code = 10

    def __init__(self, message: str, *, file: str = "", place: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.place = place
        self.findings: tuple[Any, ...] = ()

    def _where(self) -> str:
        return "".join(f"{part}: " for part in (self.file, self.place) if part)


class CheckpointNotFoundError(OpenError, FileNotFoundError):
    """There is no file or folder of this name."""

    exit_code = 11


class UnknownFormatError(OpenError):
    """What is there is not a checkpoint of any kind torchkeep knows; the message names what it looks like."""

    exit_code = 12


class CorruptCheckpointError(OpenError):
    """The file contradicts itself: truncated, damaged, or made to mislead."""

    exit_code = 13


class UnsafeCheckpointError(OpenError):
    """Reading on would exceed a limit that keeps hostile files from exhausting memory or time."""

    exit_code = 14


class UnsupportedFeatureError(OpenError):
    """The file is of a known kind that torchkeep does not read yet."""

    exit_code = 15


class LoadError(TorchkeepError):
    """Weights could not be put into a model."""

    exit_code = 20


class IncompatibleCheckpointError(LoadError):
    """Something would stay unloaded that the caller did not allow. The model is untouched.

    Attributes:
        report: the `LoadReport` of what would have been loaded and what not, or None when resuming a run.
    """

    exit_code = 21

    def __init__(self, message: str, *, report: Any = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.report = report


class AmbiguousMatchError(LoadError):
    """Two ways of matching the names are equally good; the caller has to choose.

    Attributes:
        candidates: the rules that tie, as text.
    """

    exit_code = 22

    def __init__(self, message: str, *, candidates: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.candidates = candidates


class PartialLoadError(LoadError):
    """Copying failed after it had begun, so the model holds old and new values.

    Attributes:
        applied: names of the parameters and buffers that were already copied.
    """

    exit_code = 23

    def __init__(self, message: str, *, applied: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.applied = applied


class OutputsDifferError(LoadError):
    """What is computed is not what should be: by a model that was loaded and holds the new values, or by an export.

    Attributes:
        difference: the largest absolute difference; infinite where the outputs are not alike at all.
        place: where in the outputs the first one is.
    """

    exit_code = 24

    def __init__(self, message: str, *, difference: float = float("inf"), place: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.difference = difference
        self.place = place


class SaveError(TorchkeepError):
    """Something could not be saved. What was saved before is untouched."""

    exit_code = 30


class UnsavableError(SaveError):
    """A value that cannot be written without pickle.

    Attributes:
        path: the dotted path of the value, e.g. `config.callbacks.0`.
    """

    exit_code = 31

    def __init__(self, message: str, *, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.path = path


class ResumeWarning(UserWarning):
    """Something of a resumed run is not as it was: a snapshot was skipped, or a part was not restored."""


class RebuildWarning(UserWarning):
    """A model was made from its file, and something of it is not as it was: a skeleton, a hook, code that changed."""


class StopWarning(UserWarning):
    """Early stopping cannot do what it is for: its metric never comes, or the best weights were not kept."""


class FrozenChangedWarning(UserWarning):
    """What is frozen has changed, and `trust_frozen` had relied on it."""


class GraphWarning(UserWarning):
    """A model that was loaded as a graph does not do something as the model did that was exported."""


class RunLockedError(SaveError):
    """Another process holds the write lock of this run."""

    exit_code = 32


class CommitUnknownError(SaveError):
    """The commit may or may not have reached the disk; open the run again to see which."""

    exit_code = 33


class NoSpaceError(SaveError, OSError):
    """The disk is full. Nothing half-written was left behind.

    Attributes:
        needed: bytes that were to be written.
        free: bytes the file system had free.
    """

    exit_code = 34

    def __init__(self, message: str, *, needed: int = 0, free: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.needed = needed
        self.free = free


def save_error(error: OSError, path: Path, needed: int = 0) -> SaveError:
    """The error that says what an OSError means for a save: a full disk, a missing folder, or what the system says."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
        return NoSpaceError(
            f"{path} needs {needed:,} bytes and {free:,} are free; nothing was changed",
            needed=needed,
            free=free,
            hint="free some space, or save elsewhere",
        )
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return SaveError(f"{path} cannot be written: there is no folder {path.parent}", hint="make the folder first")
    return SaveError(f"{path} cannot be written: {error.strerror or error}", hint="check the path and its permissions")


class StoreError(TorchkeepError):
    """The place where a run's bytes live answered with an error."""

    exit_code = 40


class KeyNotFoundError(StoreError, FileNotFoundError):
    """The store has nothing under this key."""

    exit_code = 41


class SelectorError(TorchkeepError, ValueError):
    """A selector cannot be read, or selects nothing."""

    exit_code = 50


class SurgeryError(TorchkeepError, ValueError):
    """The model cannot be changed in the way that was asked for. It is untouched."""

    exit_code = 51


class RebuildError(TorchkeepError):
    """A model cannot be made again from what its file says.

    Attributes:
        classes: the classes or functions that are in the way, as the file names them.
    """

    exit_code = 53

    def __init__(self, message: str, *, classes: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.classes = classes


class EditError(TorchkeepError, ValueError):
    """Checkpoints cannot be edited or put together in the way that was asked for. Nothing was written.

    Attributes:
        names: the tensors that are in the way.
    """

    exit_code = 54

    def __init__(self, message: str, *, names: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.names = names


class DataError(TorchkeepError, ValueError):
    """Examples cannot be used, or not with this model: nothing was trained."""

    exit_code = 55


class FrozenChangedError(TorchkeepError, AssertionError):
    """A frozen part of a model is not bit for bit what it was.

    Attributes:
        changed: names of the parameters and buffers that differ.
    """

    exit_code = 52

    def __init__(self, message: str, *, changed: tuple[str, ...] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.changed = changed


class MissingDependencyError(TorchkeepError, ImportError):
    """An optional package is not installed; the hint has the command that installs it."""

    exit_code = 60
