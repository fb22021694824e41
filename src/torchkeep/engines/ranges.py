"""Reading a remote file by range requests: http(s) servers and object stores, through obstore."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from urllib.parse import urlsplit

from ..core.source import Buffer, Source, check_range
from ..errors import CheckpointNotFoundError, CorruptCheckpointError, MissingDependencyError, OpenError
from .local import plain_name

SCHEMES = frozenset({"http", "https", "s3", "gs", "gcs", "az", "azure", "abfs", "abfss"})
_BLOCK = 1 << 16
_BLOCKS = 64  # kept of one file
_AHEAD = 1 << 20  # the most that is read ahead of small reads in a row
_PART = 8 << 20  # a large read is asked for in parts of this size, several at a time


def is_url(text: str) -> bool:
    """Whether a path is the address of a remote file."""
    return urlsplit(text).scheme in SCHEMES


class RangeSource:
    """A remote file as a Source: opening costs a few requests, a tensor costs its bytes.

    Small reads come from blocks that are kept, and more is read ahead while they follow each other; large reads are
    neither rounded nor kept. A file that changes while it is open is noticed by its entity tag, size or date.

    Attributes:
        remote: True: formats leave alone what they need not read yet.
        requests, bytes_read: what it has cost so far.
    """

    remote = True

    def __init__(self, url: str, *, store: Any = None, name: str = "") -> None:
        """Ask for the size of a file.

        Args:
            url: http, https, s3, gs or az; credentials and endpoints as obstore finds them in the environment.
            store, name: an obstore store that is open already, and the file's name in it.

        Raises:
            MissingDependencyError: obstore is not installed.
            CheckpointNotFoundError: there is no such file.
            OpenError: the server refuses, or cannot be reached.
        """
        self.name = url
        self._obstore = _obstore()
        self._store, self._key = (store, name) if store is not None else _store_of(url)
        self.requests = self.bytes_read = 0
        about = self._ask(lambda: self._obstore.head(self._store, self._key))
        self.size: int = about["size"]
        self._state = _state(about)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead = _BLOCK
        self._end = -1  # of the last small read

    def read(self, offset: int, nbytes: int) -> Buffer:
        """The bytes of a range, in memory of their own."""
        check_range(self, offset, nbytes)
        if not nbytes:
            return bytearray()
        if nbytes > _AHEAD:
            return self._large(offset, nbytes)
        first, last = offset // _BLOCK, (offset + nbytes - 1) // _BLOCK
        if any(block not in self._blocks for block in range(first, last + 1)):
            self._fetch(first, last, offset)
        self._end = offset + nbytes
        data = b"".join(self._block(block) for block in range(first, last + 1))
        start = offset - first * _BLOCK
        return bytearray(data[start : start + nbytes])

    def sibling(self, name: str) -> Source:
        """Another file below the same prefix; only a plain file name is accepted."""
        base, _, query = self.name.partition("?")
        address = f"{base.rpartition('/')[0]}/{plain_name(name, self.name)}"
        prefix = self._key.rpartition("/")[0]
        inside = f"{prefix}/{name}" if prefix else name
        return RangeSource(f"{address}?{query}" if query else address, store=self._store, name=inside)

    def _block(self, number: int) -> bytes:
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _fetch(self, first: int, last: int, offset: int) -> None:
        """Blocks that are missing, and more of them while reads follow each other."""
        follows = 0 <= offset - self._end <= _BLOCK
        self._ahead = min(self._ahead * 2, _AHEAD) if follows else _BLOCK
        start = first * _BLOCK
        stop = min(self.size, max((last + 1) * _BLOCK, start + self._ahead))
        data = self._get([(start, stop)])[0]
        for at in range(0, len(data), _BLOCK):
            self._blocks[(start + at) // _BLOCK] = data[at : at + _BLOCK]
            self._blocks.move_to_end((start + at) // _BLOCK)
        while len(self._blocks) > max(_BLOCKS, last - first + 1):
            self._blocks.popitem(last=False)

    def _large(self, offset: int, nbytes: int) -> Buffer:
        ranges = [(at, min(at + _PART, offset + nbytes)) for at in range(offset, offset + nbytes, _PART)]
        out = bytearray(nbytes)
        for group in range(0, len(ranges), 4):
            for (start, stop), data in zip(ranges[group:], self._get(ranges[group : group + 4]), strict=False):
                out[start - offset : stop - offset] = data
        return out

    def _get(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Some ranges, each checked to be of the file that was opened."""
        found = []
        for start, stop in ranges:
            answer = self._ask(
                lambda start=start, stop=stop: self._obstore.get(
                    self._store, self._key, options={"range": (start, stop)}
                )
            )
            if _state(answer.meta) != self._state:
                raise CorruptCheckpointError("changed while it was open", file=self.name, hint="open it again")
            data = bytes(self._ask(answer.bytes, counted=False))
            if len(data) != stop - start:
                raise OpenError(
                    f"answers {len(data):,} bytes when it is asked for {stop - start:,}: the server has no ranges",
                    file=self.name,
                    hint="download the file and open it from disk",
                )
            self.bytes_read += len(data)
            found.append(data)
        return found

    def _ask(self, question: Any, *, counted: bool = True) -> Any:
        self.requests += counted
        try:
            return question()
        except FileNotFoundError as error:
            raise CheckpointNotFoundError("there is no such file", file=self.name, hint="check the address") from error
        except (self._obstore.exceptions.UnauthenticatedError, self._obstore.exceptions.PermissionDeniedError) as error:
            raise OpenError(
                "the server wants credentials, or others than it got",
                file=self.name,
                hint="set those of the store in the environment, e.g. AWS_ACCESS_KEY_ID",
            ) from error
        except (self._obstore.exceptions.BaseError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise OpenError(
                f"cannot be read: {lines[0][:300]}",
                file=self.name,
                hint="try again; a server without ranges (Accept-Ranges) cannot be read this way: download the file",
            ) from error


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            "reading remote files needs obstore", hint="pip install 'torchkeep[cloud]'"
        ) from error
    return obstore


def _store_of(url: str) -> tuple[Any, str]:
    """The store that an address is in, down to its folder, and the name of the file there."""
    from obstore.store import from_url

    address, _, query = url.partition("?")
    folder, _, name = address.rpartition("/")
    if urlsplit(url).scheme in {"http", "https"}:
        options: Any = {"allow_http": True}
        return from_url(f"{folder}/", client_options=options), f"{name}?{query}" if query else name
    return from_url(folder), name


def _state(about: Any) -> tuple[Any, ...]:
    """What changes when a file does."""
    return about.get("e_tag"), about["size"], about.get("last_modified")
