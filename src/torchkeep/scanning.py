"""Scanning: what is dangerous, damaged or odd in files and folders, with nothing run and nothing trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from .core.checkpoint import SEVERITIES, Finding
from .core.limits import Limits
from .core.scan_report import ScannedFile, ScanReport
from .core.source import Source
from .engines.mapped import MappedSource
from .errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    OpenError,
    TorchkeepError,
    UnknownFormatError,
    UnsafeCheckpointError,
    UnsupportedFeatureError,
)
from .formats._dispatch import recognise
from .formats._survey import Survey, survey
from .opening import PathLike, open_checkpoint
from .writing import Progress

_NOT_READ = "not-read"


def scan(*paths: PathLike, limits: Limits | None = None, progress: Progress | None = None) -> ScanReport:
    """Look for what is dangerous, damaged or odd in files, and in folders with all that is below them.

    >>> report = tk.scan("downloads"); print(report)               # doctest: +SKIP
    >>> report.severity                                             # doctest: +SKIP
    'danger'

    Each file is opened as `open` does it, and every pickle in it is read for the names it would import: those in other
    records of an archive, in archives within archives, behind other pickles, and in files that cannot be opened. No
    code runs. Hidden files are looked at; links to folders within the given ones are not followed.

    Args:
        paths: files and folders.
        limits: how much one file may cost; what costs more is a danger.
        progress: called with (bytes done, bytes in all).

    Raises:
        CheckpointNotFoundError: one of the paths does not exist. What is wrong with a file is reported, not raised.
    """
    limits = limits or Limits()
    walk = _walked(paths)
    total, done = sum(walk.sizes.values()), 0
    files = list(walk.unlisted)
    for folder, members in walk.by_folder().items():
        found = []
        for path in members:
            found.append(_scanned(path, limits))
            done += walk.sizes[path]
            if progress is not None:
                progress(done, total)
        files += _together(folder, found, limits)
    return ScanReport(tuple(files), tuple(walk.notes))


# Which files


@dataclass
class _Walk:
    """The files that were found, with their sizes in bytes, and what was passed over."""

    sizes: dict[str, int] = field(default_factory=dict)
    unlisted: list[ScannedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def by_folder(self) -> dict[str, list[str]]:
        """The files by the folder they are in."""
        folders: dict[str, list[str]] = {}
        for path in self.sizes:
            folders.setdefault(os.path.dirname(path), []).append(path)  # noqa: PTH120 - pathlib would drop a leading ./
        return folders


def _walked(paths: tuple[PathLike, ...]) -> _Walk:
    walk, folders = _Walk(), []
    for path in [os.fspath(path) for path in paths]:
        if not os.path.lexists(path):
            raise CheckpointNotFoundError("there is no such file or folder", file=path, hint="check the path")
        if Path(path).is_dir():
            folders.append(path)
        else:
            _add(walk, path)
    folders.reverse()
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            walk.unlisted.append(_unreadable(folder, f"cannot be listed: {error.strerror}"))
            continue
        folders += reversed([entry.path for entry in inside if entry.is_dir(follow_symlinks=False)])
        for entry in inside:
            if not entry.is_dir(follow_symlinks=False):
                _add(walk, entry.path)
    return walk


def _add(walk: _Walk, path: str) -> None:
    if Path(path).is_dir():
        walk.notes.append(f"{path} is a link to a folder and was not followed")
        return
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:  # a link to nothing, or to itself
        walk.notes.append(f"{path} was passed over: {error.strerror}")
        return
    if Path(path).is_file():
        walk.sizes[path] = status.st_size
    else:
        walk.notes.append(f"{path} is no regular file and was passed over")


# One file


def _scanned(path: str, limits: Limits) -> ScannedFile:
    try:
        source = MappedSource(path)
        met = survey(source, limits)
        opened = _opened(source, met, limits)
        known = {_key(one) for one in met.findings}
        found = [*met.findings, *(one for one in opened.findings if _key(one) not in known)]
    except (OSError, OpenError) as error:
        return _unreadable(path, error.message if isinstance(error, OpenError) else str(error))
    except Exception as error:  # one file must not hide the others, nor get away with it
        message = f"made the reader fail in a way that it should not: {type(error).__name__}: {error}"[:300]
        return ScannedFile(path, what="cannot be read", findings=(Finding("reader-failed", "danger", message),))
    found.sort(key=lambda one: -SEVERITIES.index(one.severity))
    return replace(opened, findings=tuple(found))


def _key(finding: Finding) -> tuple[str, str, str]:
    """What opening and the survey both report; they name the record in different ways, and the byte in one."""
    return finding.code, finding.message, finding.place.rpartition(", ")[2]


def _unreadable(path: str, message: str) -> ScannedFile:
    return ScannedFile(path, what="cannot be read", findings=(Finding("unreadable", "warning", message),))


def _opened(source: Source, met: Survey, limits: Limits) -> ScannedFile:
    """What opening says of a file."""
    path, format_name = source.name, ""
    try:
        part = recognise(source, limits)
        format_name = part.name
        return ScannedFile(path, format_name, findings=part.open(source, limits).findings)
    except UnknownFormatError as error:
        return ScannedFile(path, what=f"not a checkpoint: {_first_line(error)}", findings=error.findings)
    except UnsupportedFeatureError as error:
        looked_into = met.pickles > 0 and met.whole
        return _refused(path, error, "not read", (_NOT_READ, "info" if looked_into else "warning"))
    except UnsafeCheckpointError as error:
        return _refused(path, error, "too costly", ("unsafe", "danger"))
    except CorruptCheckpointError as error:
        if format_name == "plain_pickle" and not met.pickles and bytes(source.read(0, 1)) != b"\x80":
            return ScannedFile(path, what="not a checkpoint: is a text or something else")
        return _refused(path, error, "damaged", ("corrupt", "warning"))
    except OpenError as error:  # a shard that is missing, a disk that is full
        return _refused(path, error, "cannot be read", ("unreadable", "warning"))


def _refused(path: str, error: OpenError, what: str, kind: tuple[str, str]) -> ScannedFile:
    finding = Finding(*kind, _first_line(error), error.place)
    return ScannedFile(path, what=what, findings=(*error.findings, finding))


def _first_line(error: TorchkeepError) -> str:
    return error.message.partition("\n")[0]


def _together(folder: str, found: list[ScannedFile], limits: Limits) -> Iterator[ScannedFile]:
    """Files that cannot be opened alone are parts of a checkpoint, where their folder is one."""
    apart = [file for file in found if any(one.code == _NOT_READ for one in file.findings)]
    whole = bool(apart) and _opens(folder, limits)
    for file in found:
        if whole and file in apart:
            findings = tuple(one for one in file.findings if one.code != _NOT_READ)
            yield ScannedFile(file.path, "part", "a part of the checkpoint in its folder", findings)
        else:
            yield file


def _opens(folder: str, limits: Limits) -> bool:
    with suppress(Exception):
        return bool(open_checkpoint(folder or ".", limits=limits).format)
    return False
