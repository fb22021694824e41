"""Reading histories: from whatever logged a run to records, and what its snapshots say of its setting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .core.curves import Setting
from .core.history import History
from .core.registry import make_part
from .core.roles import check_names, is_axis, is_known
from .core.rows import rows_of
from .errors import CheckpointNotFoundError, CorruptCheckpointError, OpenError, UnknownFormatError
from .histories import HEAD, HISTORIES, HistoryFormat
from .histories.document import records_in
from .running import Run

Historic = str | os.PathLike[str] | Run | History | Mapping[str, Any] | Iterable[Mapping[str, Any]]

_DEPTH = 6  # of folders that are searched


def read_history(
    path: Historic,
    *,
    names: Mapping[str, str] | None = None,
    formats: Iterable[str | HistoryFormat] | None = None,
) -> History:
    """The metrics of a run, whoever logged them, as records.

    >>> history = tk.read_history("lightning_logs/version_0")                          # doctest: +SKIP
    >>> history.metric("val_loss")                                                      # doctest: +SKIP

    Recognised by content: a torchkeep run, Hugging Face's trainer_state.json and the folders that have it, TensorBoard
    event files, JSON lines, JSON documents, and CSV (Keras, Lightning). What is torn at the end is left out, and the
    history's notes say so.

    Args:
        path: a file, a folder with one history in it, a `tk.Run`, a list of dicts, or a dict of lists as Keras's
            `History.history` is; a History as it is.
        names: role -> name for what is called otherwise, e.g. `{"train_loss": "my/loss"}`; roles are train_loss,
            val_loss, train_metric, val_metric, rate, epoch and step. It goes with the history.
        formats: names or instances of the formats to try, in this order; all if None.

    Raises:
        CheckpointNotFoundError: nothing is there.
        UnknownFormatError: it is no history of a known kind, or a folder with several of them.
        CorruptCheckpointError: it cannot be read at all.
        SelectorError: `names` has a role or a name that is not there; the hint has the nearest.
    """
    history = _read(path, _parts(formats))
    return replace(history, names=check_names(names, history.columns())) if names else history


def read_histories(
    path: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    formats: Iterable[str | HistoryFormat] | None = None,
) -> dict[str, History]:
    """The histories of several runs, by where they lie below a folder.

    >>> {name: len(history) for name, history in tk.read_histories("runs").items()}     # doctest: +SKIP

    A folder that is one history itself is not searched further. Files that could be anything count when the names in
    them are known ones, e.g. `val_loss`; what cannot be read is passed over.

    Args:
        path: a folder; a file or a single run gives one history.
        names, formats: as in `read_history`, for each of them.

    Raises:
        CheckpointNotFoundError, UnknownFormatError: there are none.
        SelectorError: `names` does not fit one of them.
    """
    found = dict(_below(_there(path), _parts(formats)))
    if not found:
        raise _unknown(Path(path), _parts(formats))
    return {
        name: replace(history, names=check_names(names, history.columns())) if names else history
        for name, history in found.items()
    }


def setting_of(run: str | os.PathLike[str] | Run, *, unit: str = "epoch") -> Setting:
    """What the snapshots of a run say of its setting: what is trained, the weight decay, freeze phases, snapshots.

    The dropout is known as long as the run still tracks the live model: a snapshot has tensors and flags.

    Args:
        run: a `tk.Run` or its folder.
        unit: what the places of the snapshots are counted in, as the curves are: `epoch` or `step`.

    Raises:
        LoadError: there is no run in this folder.
    """
    return (run if isinstance(run, Run) else Run(run)).setting(unit=unit)


def _parts(formats: Iterable[str | HistoryFormat] | None) -> list[HistoryFormat]:
    return [make_part(HISTORIES, one, "kind of history") for one in (HISTORIES if formats is None else formats)]


def _read(path: Historic, parts: list[HistoryFormat]) -> History:
    if isinstance(path, History):
        return path
    if isinstance(path, Run):
        return replace(path.history, title=str(path.path), source="run")
    if isinstance(path, Mapping):
        return replace(records_in({name: _listed(values) for name, values in path.items()}), title="history")
    if not isinstance(path, (str, os.PathLike)):
        records = list(path)
        odd = next((record for record in records if not isinstance(record, Mapping)), None)
        if odd is not None:
            raise TypeError(f"a history is a list of dicts, and this list has a {type(odd).__name__}")
        return History(rows_of(records), title="history")
    place = _there(path)
    part = _recognised(place, parts)
    if part is not None:
        return _by(part, place)
    found = dict(_below(place, parts)) if place.is_dir() else {}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UnknownFormatError(
            f"has {len(found)} histories: {', '.join(list(found)[:5])}{', ...' if len(found) > 5 else ''}",
            file=str(path),
            hint="name one of them, or read all with tk.read_histories",
        )
    raise _unknown(place, parts)


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _there(path: str | os.PathLike[str]) -> Path:
    place = Path(path).expanduser()
    if not place.exists():
        raise CheckpointNotFoundError("there is no such file or folder", file=str(path))
    return place


def _recognised(place: Path, parts: list[HistoryFormat]) -> HistoryFormat | None:
    """Who knows this; None where nobody does."""
    head = b"" if place.is_dir() else _head(place)
    if not head and not place.is_dir():
        return None
    return next((part for part in parts if part.sniff(place, head)), None)


def _head(place: Path) -> bytes:
    """The first bytes of a file; none where there is nothing but space."""
    try:
        with place.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise OpenError(f"cannot be read: {error.strerror}", file=str(place)) from error
    return head if head.strip(b"\0 \t\r\n\xef\xbb\xbf") else b""


def _by(part: HistoryFormat, place: Path) -> History:
    try:
        return replace(part.read(place), title=str(place), source=part.name)
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(f"cannot be read as {part.name}: {error}", file=str(place)) from error


def _unknown(place: Path, parts: list[HistoryFormat]) -> UnknownFormatError:
    hint = f"looked for: {'; '.join(part.wants for part in parts)}"
    if place.is_dir():
        return UnknownFormatError("has no history in it", file=str(place), hint=hint)
    if not _head(place):
        return UnknownFormatError("is empty: nothing was logged to it", file=str(place), hint="wait for a first record")
    return UnknownFormatError("is no history of a known kind", file=str(place), hint=hint)


def _below(place: Path, parts: list[HistoryFormat], name: str = "", depth: int = 0) -> Iterator[tuple[str, History]]:
    """The histories in a folder and in those below it, by their places there."""
    history = None
    with contextlib.suppress(OpenError):
        part = _recognised(place, parts)
        history = None if part is None else _by(part, place)
    if history is not None and (place.is_dir() or not depth or _telling(history)):
        yield name or place.name, history
    elif place.is_dir() and depth < _DEPTH:
        with contextlib.suppress(PermissionError):
            for child in sorted(place.iterdir()):
                above = child.is_symlink() and child.resolve() in {place.resolve(), *place.resolve().parents}
                if not child.name.startswith(".") and not above and (child.is_dir() or child.is_file()):
                    yield from _below(child, parts, f"{name}/{child.name}".lstrip("/"), depth + 1)


def _telling(history: History) -> bool:
    """Whether some name says of itself that it is a loss, a metric or a rate."""
    return any(is_known(name) and not is_axis(name) for name in history.columns())
