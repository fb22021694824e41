"""What every store promises: bytes come back as they were, each put is one step, one of many writers wins."""

from __future__ import annotations

import array
import contextlib
import hashlib
import mmap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..core.source import Buffer, read_all
from ..errors import CorruptCheckpointError, KeyNotFoundError
from ..stores import Store
from .exclusion import ExclusionTests

_WHILE = 0.1  # seconds for which writers wait for one another
_ODD_NAMES = (
    "a b",
    " ",
    "-dash",
    "100%",
    "%2e%2e",
    "a+b&c=d;e,f",
    "#1?x",
    "name.with.dots.",
    "~",
    "quote'\"`",
    "back\\slash",
    "(brackets)[]{}<>|*",
    "ünï✓漢字🙂",
    "UPPER",
    "0",
    "x" * 200,
)


class StoreTests(ExclusionTests):
    """Inherit this in a test module, fill in `new` and `again`, and pytest runs what every store has to pass.

    >>> class TestShelf(StoreTests):                                    # doctest: +SKIP
    ...     def new(self): return Shelf()
    ...     def again(self, store): return Shelf(store.place)

    Keys are relative paths; no part of one is empty or begins with a dot, which leaves room for unfinished files.
    A store may have more than the five methods. What is there of `lock()` with `unlock()`, of `guard(exclusive)` and of
    `age(key)` is tried too; a store that several processes can reach should have the first three.

    Attributes:
        writers: threads that write at once.
        rounds: how often they do.
    """

    writers: int = 6
    rounds: int = 10

    # -- values -----------------------------------------------------------------------------------------------

    def test_what_is_put_comes_back(self) -> None:
        """Whole, at once, and for others too."""
        store = self.new()
        assert store.put("packs/a", [b"one", b"", b"two"], nbytes=6) is True
        assert store.put("top", [b"three"]) is True
        for reader in (store, self.again(store)):
            assert _read(reader, "packs/a") == b"onetwo"
            assert _read(reader, "top") == b"three"

    def test_what_is_there_stays(self) -> None:
        """Unless it is to be replaced; `put` says which it was."""
        store = self.new()
        assert store.put("packs/a", [b"old"]) is True
        assert store.put("packs/a", [b"other"]) is False
        assert _read(store, "packs/a") == b"old"
        assert store.put("packs/a", [b"newer"], replace=True) is True
        assert _read(self.again(store), "packs/a") == b"newer"
        assert store.put("packs/b", [b"new"], replace=True) is True

    def test_empty_values(self) -> None:
        """Nothing is a value too: of no pieces, and of empty ones."""
        store = self.new()
        values: dict[str, list[Buffer]] = {"packs/none": [], "packs/empty": [b"", memoryview(b"")]}
        for key, pieces in values.items():
            assert store.put(key, pieces)
            assert store.source(key).size == 0
            assert _read(store, key) == b""
            assert not store.put(key, [b"other"])
        assert store.keys("packs/") == ["packs/empty", "packs/none"]

    def test_bytes_of_every_kind(self) -> None:
        """Whatever has the buffer interface in one stretch, counted in bytes and not in elements."""
        numbers = memoryview(array.array("I", range(12)))
        with mmap.mmap(-1, 4096) as mapped:
            mapped[:] = bytes(range(256)) * 16
            view = memoryview(mapped)
            pieces: list[Buffer] = [
                b"bytes",
                bytearray(b"bytearray"),
                memoryview(b"a view")[2:],
                memoryview(bytearray(b"writable")),
                numbers.cast("B"),
                numbers,
                numbers.cast("B").cast("I", (3, 4)),
                view[100:200],
            ]
            expected = b"".join(memoryview(piece).tobytes() for piece in pieces)
            store = self.new()
            store.put("packs/hinted", pieces, nbytes=len(expected))
            store.put("packs/plain", iter(pieces))
            pieces.clear()
            view.release()
        assert _read(store, "packs/hinted") == _read(store, "packs/plain") == expected

    def test_big_values_in_many_pieces(self) -> None:
        """Thousands of small pieces, a few large ones, and both in turn."""
        for number, sizes in enumerate(([997] * 5000, [5 << 20] * 3, [3 << 20, 1, 0, 70_000] * 4)):
            store = self.new()
            written = hashlib.sha256()

            def pieces(sizes: list[int] = sizes, written: Any = written) -> Iterator[Buffer]:
                for place, size in enumerate(sizes):
                    piece = hashlib.shake_128(place.to_bytes(4, "big")).digest(min(size, 997)) * -(-size // 997)
                    written.update(piece[:size])
                    yield piece[:size]

            assert store.put(f"packs/{number}", pieces(), nbytes=sum(sizes) if number else 0)
            found = _read(self.again(store), f"packs/{number}")
            assert len(found) == sum(sizes)
            assert hashlib.sha256(found).digest() == written.digest()

    # -- one step ---------------------------------------------------------------------------------------------

    def test_nobody_sees_what_is_being_put(self) -> None:
        """A new key is there when all of it is, and is not listed before."""
        store = self.new()
        reader = self.again(store)
        store.put("packs/other", [b"x"])

        def pieces() -> Iterator[Buffer]:
            for _ in range(4):
                yield b"x" * 100_000
                assert _absent(reader, "packs/new"), "half of it can be read"
                assert reader.keys("packs/") == ["packs/other"], "what is unfinished is listed"

        assert store.put("packs/new", pieces(), nbytes=400_000)
        assert reader.source("packs/new").size == 400_000

    def test_who_reads_while_it_is_replaced_sees_the_old_or_the_new(self) -> None:
        """From inside the writer the old; from beside it one of the two, whole, and never nothing."""
        store = self.new()
        reader = self.again(store)
        store.put("packs/a", [b"0" * 300_000])

        def pieces(letter: bytes) -> Iterator[Buffer]:
            for _ in range(30):
                yield letter * 10_000
                if letter == b"1":
                    assert _read(reader, "packs/a") == b"0" * 300_000, "the old value is gone before the new is there"

        def write() -> None:
            for number in range(1, 4 * self.rounds):
                store.put("packs/a", pieces(b"%d" % (number % 10)), nbytes=300_000, replace=True)

        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(write)
            while not done.done():
                found = _read(reader, "packs/a")
                assert found == found[:1] * 300_000, "it is neither the old nor the new"
            done.result()

    def test_one_of_many_writers_wins(self) -> None:
        """They all begin before one ends; one is told so, and the value is that one's."""
        store = self.new()
        for number in range(self.rounds):
            started = threading.Barrier(self.writers)

            def write(place: int, key: str = f"snapshots/{number}.json", started: threading.Barrier = started) -> bool:
                def pieces() -> Iterator[Buffer]:
                    yield b"%d" % place * 500
                    with contextlib.suppress(threading.BrokenBarrierError):
                        started.wait(_WHILE)  # a store that lets in one after another is fine too
                    yield b"%d" % place * 500

                return (store if place % 2 else self.again(store)).put(key, pieces())

            with ThreadPoolExecutor(self.writers) as pool:
                won = list(pool.map(write, range(self.writers)))
            assert sum(won) == 1, f"{sum(won)} writers were told that the key is theirs"
            assert _read(store, f"snapshots/{number}.json") == b"%d" % won.index(True) * 1000

    def test_a_writer_that_fails_leaves_nothing(self) -> None:
        """Its own error comes out; no key is there, no old value is lost, and the next try is free."""
        store = self.new()
        store.put("packs/old", [b"old"])

        def pieces(error: BaseException) -> Iterator[Buffer]:
            yield b"x" * 5_000_000
            yield b"y"
            raise error

        for error in (ValueError("no more pieces"), KeyboardInterrupt()):
            for key in ("packs/new", "packs/old"):
                try:
                    store.put(key, pieces(error), nbytes=6_000_000, replace=key == "packs/old")
                except (ValueError, KeyboardInterrupt) as caught:
                    assert caught is error
                else:
                    raise AssertionError("the error of the writer was lost")
                assert _read(self.again(store), "packs/old") == b"old"
                assert _absent(store, "packs/new")
                assert store.keys("packs/") == ["packs/old"]
        assert store.put("packs/new", [b"new"])

    # -- appending --------------------------------------------------------------------------------------------

    def test_appending(self) -> None:
        """To nothing, to what was appended, to what was put; always at the end, and nothing is lost."""
        store = self.new()
        lines = [b"%d\n" % number for number in range(100)]
        for place, line in enumerate(lines):
            (store if place % 3 else self.again(store)).append("history.jsonl", line)
            if place % 10 == 5:
                assert _read(store, "history.jsonl") == b"".join(lines[: place + 1])
        assert _read(self.again(store), "history.jsonl") == b"".join(lines)
        store.put("history.jsonl", [b"cut\n"], replace=True)
        store.append("history.jsonl", b"")
        store.append("history.jsonl", b"and on\n")
        assert _read(store, "history.jsonl") == b"cut\nand on\n"
        assert not store.put("history.jsonl", [b"other"])

    def test_appending_durably(self) -> None:
        """All that was appended before is made durable with it, even when nothing is added."""
        store = self.new()
        store.append("history.jsonl", b"", durable=True)
        assert _absent(store, "history.jsonl") or _read(store, "history.jsonl") == b""
        store.append("history.jsonl", b"one\n")
        store.append("history.jsonl", b"two\n", durable=True)
        store.append("history.jsonl", b"three\n")
        store.append("history.jsonl", b"", durable=True)
        assert _read(self.again(store), "history.jsonl") == b"one\ntwo\nthree\n"

    def test_appending_from_several_threads(self) -> None:
        """Training logs while a save goes on beside it: every line is there, whole."""
        store = self.new()

        def write(place: int) -> None:
            for number in range(10 * self.rounds):
                store.append("history.jsonl", b"%d:%d\n" % (place, number), durable=number % 50 == 0)

        with ThreadPoolExecutor(self.writers) as pool:
            list(pool.map(write, range(self.writers)))
        lines = _read(store, "history.jsonl").splitlines()
        for place in range(self.writers):
            own = [line for line in lines if line.startswith(b"%d:" % place)]
            assert own == [b"%d:%d" % (place, number) for number in range(10 * self.rounds)]
        assert len(lines) == self.writers * 10 * self.rounds

    # -- keys -------------------------------------------------------------------------------------------------

    def test_keys_are_listed_by_prefix(self) -> None:
        """Sorted, those of the prefix and no others; a prefix without keys has none."""
        store = self.new()
        assert store.keys("packs/") == []
        for key in ("packs/b", "packs/a", "packs2/c", "pack/d", "packsy", "apacks/e", "tags/packs"):
            store.put(key, [key.encode()])
        for reader in (store, self.again(store)):
            assert reader.keys("packs/") == ["packs/a", "packs/b"]
            assert reader.keys("tags/") == ["tags/packs"]
            assert reader.keys("none/") == []

    def test_many_keys(self) -> None:
        """Hundreds, each with its own value, all listed in order."""
        store = self.new()
        keys = [f"packs/{hashlib.sha1(b'%d' % number).hexdigest()}" for number in range(300)]
        for key in keys:
            assert store.put(key, [key.encode()])
        assert store.keys("packs/") == sorted(keys)
        assert all(_read(store, key) == key.encode() for key in keys)
        for key in keys[::2]:
            store.delete(key)
        assert store.keys("packs/") == sorted(keys[1::2])

    def test_odd_keys(self) -> None:
        """Names that file systems and addresses treat in their own ways come back as they were."""
        store = self.new()
        keys = [f"tags/{name}" for name in _ODD_NAMES] + ["a/b/c/d"]
        for key in keys:
            assert store.put(key, [key.encode()]), key
        reader = self.again(store)
        assert reader.keys("tags/") == sorted(keys[:-1])
        for key in keys:
            assert _read(reader, key) == key.encode(), key
            reader.delete(key)
            assert _absent(store, key), key
        assert store.keys("tags/") == []

    def test_deleting(self) -> None:
        """What is deleted is gone and can be put anew; what is not there is no error."""
        store = self.new()
        store.delete("packs/never")
        for value in (b"one", b"two"):
            assert store.put("packs/a", [value])
            assert _read(store, "packs/a") == value
            self.again(store).delete("packs/a")
            store.delete("packs/a")
            assert _absent(store, "packs/a")
            assert store.keys("packs/") == []

    def test_a_key_that_is_missing_is_named(self) -> None:
        """KeyNotFoundError, with the key in it, and nothing is made by asking."""
        store = self.new()
        store.put("packs/a", [b"x"])
        for key in ("packs/missing", "missing", "none/at/all", "packs/a2"):
            try:
                store.source(key)
            except KeyNotFoundError as error:
                assert key in str(error)
            else:
                raise AssertionError(f"{key} is not there, and nobody said so")
        assert store.keys("packs/") == ["packs/a"]

    def test_ages(self) -> None:
        """Where a store tells them: seconds since a key was written, so that what is new is not collected."""
        store: Any = self.new()
        if not hasattr(store, "age"):
            return
        store.put("packs/a", [b"old"])
        time.sleep(0.2)
        assert 0.1 < self.again(store).age("packs/a") < 60  # type: ignore[attr-defined]
        store.put("packs/a", [b"new"], replace=True)
        assert store.age("packs/a") < 0.2
        store.delete("packs/a")
        try:
            store.age("packs/a")
        except KeyNotFoundError:
            return
        raise AssertionError("a key that is not there has an age")

    # -- sources ----------------------------------------------------------------------------------------------

    def test_sources_read_ranges(self) -> None:
        """Exactly the bytes that were asked for; a range that leaves the value is an error of torchkeep."""
        store = self.new()
        data = bytes(range(256)) * 40
        store.put("packs/a", [data])
        source = store.source("packs/a")
        assert source.size == len(data)
        assert source.name
        for offset, nbytes in ((0, 0), (0, 1), (1, 255), (4095, 2), (10_000, 240), (10_240, 0), (0, 10_240)):
            assert bytes(source.read(offset, nbytes)) == data[offset : offset + nbytes], (offset, nbytes)
        for offset, nbytes in ((0, 10_241), (10_240, 1), (10_241, 0), (-1, 2), (5, -1)):
            try:
                source.read(offset, nbytes)
            except CorruptCheckpointError as error:
                assert error.file, "it names no file"
            else:
                raise AssertionError(f"{nbytes} bytes from {offset} are not there, and nobody said so")

    def test_sources_stay_as_they_were(self) -> None:
        """Tensors are mapped from them: replacing, deleting and appending change nothing that was opened."""
        for how in ("replace", "delete", "delete and put", "append"):
            store = self.new()
            data = b"old" * 100_000
            store.put("packs/a", [data])
            source = self.again(store).source("packs/a")
            early = source.read(3, 30)
            if how == "append":
                store.append("packs/a", b"more")
            if how.startswith("delete"):
                store.delete("packs/a")
            if how in {"replace", "delete and put"}:
                store.put("packs/a", [b"new" * 100_000], replace=True)
            assert source.size == len(data), how
            assert bytes(early) == b"old" * 10, how
            assert read_all(source) == data, how

    def test_who_reads_cannot_change_what_is_stored(self) -> None:
        """A buffer may be written to; the bytes of the store stay."""
        store = self.new()
        store.put("packs/a", [b"0123"])
        buffer = store.source("packs/a").read(0, 4)
        view = memoryview(buffer)
        if not view.readonly:
            view[:1] = b"X"
        assert _read(store, "packs/a") == b"0123"
        given = bytearray(b"4567")
        store.put("packs/b", [given])
        given[:1] = b"X"
        assert _read(store, "packs/b") == b"4567", "the store keeps the caller's own memory"


def _read(store: Store, key: str) -> bytes:
    return read_all(store.source(key))


def _absent(store: Store, key: str) -> bool:
    try:
        store.source(key)
    except KeyNotFoundError:
        return True
    return False
