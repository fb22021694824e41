"""The file that Optuna keeps trials in: several processes write to it, and any of them may be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MissingDependencyError, SaveError


def optuna_here() -> Any:
    """Optuna, where it is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingDependencyError(
            "trials are kept by Optuna, which is not installed", hint="pip install 'torchkeep[trials]'"
        ) from error
    return optuna


def storage_at(path: Path) -> Any:
    """The storage in a file, made if it is not there; a line that a killed process left unfinished is cut off."""
    optuna = optuna_here()
    mend(path)
    backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=Lock(path.with_name("journal.lock")))
    return optuna.storages.JournalStorage(backend)


def make_folder(folder: Path) -> None:
    """Make a folder for trials, if it is not there.

    Raises:
        SaveError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"{folder} cannot be a folder for trials: {error.strerror}"
        raise SaveError(said, hint="give a folder, or the name of a new one") from error


@contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Within, Optuna tells nothing but warnings."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def mend(journal: Path) -> None:
    """Cut off a last line that a killed process left unfinished; under a lock that its writers take too."""
    if not journal.exists():
        return
    with Lock(journal.with_name("journal.lock")), journal.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if not end:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


class Lock:
    """A lock on a file, waited for; it goes with the process that has it, however that ends. As Optuna takes one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: Any = None

    def acquire(self) -> bool:
        """Wait for it."""
        if self._path is not None:
            self._file = self._path.open("a")
            wait_for(self._file)
        return True

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def wait_for(file: Any) -> None:
    """Wait for the lock on an open file."""
    if os.name == "nt":  # untested
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
