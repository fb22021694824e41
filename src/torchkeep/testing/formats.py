"""What every format promises: it knows its own files, is lazy, gives back what was saved, and survives damage."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import torchkeep as tk

from ..core.source import Buffer, Held, Probe, Source, probe_of
from ..errors import CorruptCheckpointError, OpenError, TorchkeepError

_SEVERITIES = frozenset({"info", "warning", "danger"})
_FOREIGN: Mapping[str, bytes] = {
    "empty": b"",
    "text": b"Not a checkpoint, but a sentence.\n" * 10,
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zeros": bytes(1000),
}


@dataclass(frozen=True)
class Sample:
    """A genuine file and what is in it.

    Attributes:
        data: the bytes of the file.
        tensors: every tensor by its name in the opened checkpoint.
        files: other files of its folder that it refers to, by name.
    """

    data: bytes
    tensors: Mapping[str, torch.Tensor]
    files: Mapping[str, bytes] | None = None


class Recorded:
    """A file in memory that remembers which bytes were asked for, and may have neighbours."""

    def __init__(self, data: bytes, files: Mapping[str, bytes] | None = None, name: str = "sample") -> None:
        self.name = name
        self.size = len(data)
        self.reads: list[tuple[int, int]] = []
        self.opened: list[Recorded] = []
        self._held = Held(data, name)
        self._files = files or {}

    def read(self, offset: int, nbytes: int) -> Buffer:
        """The bytes, remembered as asked for."""
        self.reads.append((offset, nbytes))
        return self._held.read(offset, nbytes)

    def sibling(self, name: str) -> Source:
        """A neighbour by name; there is nothing else."""
        if name not in self._files:
            raise CorruptCheckpointError(f"refers to {name!r}, which is not there", file=self.name)
        self.opened.append(Recorded(self._files[name], self._files, name))
        return self.opened[-1]

    @property
    def unread(self) -> int:
        """How many bytes nobody asked for, of this file and of the neighbours that were opened."""
        seen = bytearray(self.size)
        for offset, count in self.reads:
            seen[offset : offset + count] = b"\1" * count
        return seen.count(0) + sum(one.unread for one in self.opened)


class FormatTests:
    """Inherit this in a test module, fill in `format` and `samples`, and pytest runs what every format has to pass.

    >>> class TestToy(FormatTests):                                     # doctest: +SKIP
    ...     format = Toy()
    ...     def samples(self): return [Sample(toy_bytes, {"a": torch.ones(2)})]

    Attributes:
        format: an instance of the format.
        lazy: whether opening must leave the elements of tensors unread; False for compressed formats.
        mutants: damaged copies of each sample that are tried.
    """

    format: Any
    lazy: bool = True
    mutants: int = 200

    def samples(self) -> list[Sample]:
        """Genuine files; at least one should have a tensor of more than 1,000,000 bytes, so that laziness shows.

        Raises:
            NotImplementedError: it was not filled in.
        """
        raise NotImplementedError

    def _open(self, data: bytes, sample: Sample) -> tk.Checkpoint:
        found = self.format.open(Recorded(data, sample.files), tk.Limits())
        assert isinstance(found, tk.Checkpoint)
        return found

    def test_it_has_a_name(self) -> None:
        """Checkpoints say it, and the table of formats is keyed by it."""
        assert isinstance(self.format.name, str)
        assert self.format.name.isidentifier()

    def test_it_knows_its_own_files(self) -> None:
        """By their first bytes, and through `tk.open` when it is passed in."""
        assert self.samples()
        for sample in self.samples():
            source = Recorded(sample.data, sample.files)
            assert self.format.sniff(probe_of(source)) or sample.data[:2] == b"PK"
            assert tk.open(source, formats=[self.format]).format

    def test_it_leaves_other_files_alone(self) -> None:
        """What is no checkpoint is not taken for one."""
        for name, data in _FOREIGN.items():
            assert not self.format.sniff(Probe(data[:4096], len(data))), name

    def test_names_and_specs_are_right(self) -> None:
        """Every tensor is there, with its dtype and shape, before a value was read."""
        for sample in self.samples():
            ckpt = self._open(sample.data, sample)
            assert set(ckpt) == set(sample.tensors)
            for name, tensor in sample.tensors.items():
                assert ckpt[name].dtype is tensor.dtype, name
                assert ckpt[name].shape == tensor.shape, name

    def test_values_are_right(self) -> None:
        """Bit for bit, whole and by rows; and writing into what was loaded changes no file."""
        for sample in self.samples():
            ckpt = self._open(sample.data, sample)
            for name, tensor in sample.tensors.items():
                assert _same(ckpt[name].load(), tensor), name
                if tensor.ndim and tensor.layout is torch.strided and not tensor.is_quantized:
                    assert _same(ckpt[name][: len(tensor) // 2], tensor[: len(tensor) // 2]), name
                if tensor.dtype is torch.float32 and tensor.layout is torch.strided:
                    ckpt[name].load().add_(1)
            again = self._open(sample.data, sample)
            assert all(_same(again[name].load(), tensor) for name, tensor in sample.tensors.items())

    def test_opening_reads_no_values(self) -> None:
        """Opening costs the header: of a large tensor hardly a byte is read."""
        if not self.lazy:
            return
        for sample in self.samples():
            source = Recorded(sample.data, sample.files)
            ckpt = self.format.open(source, tk.Limits())
            large = sum(tensor.nbytes for tensor in ckpt.values() if tensor.nbytes > 1_000_000)
            assert source.unread >= 0.9 * large

    def test_what_it_says_can_be_printed(self) -> None:
        """The table, the JSON and the findings are made for every sample."""
        for sample in self.samples():
            ckpt = self._open(sample.data, sample)
            assert self.format.name in str(ckpt) or ckpt.format in str(ckpt)
            assert tk.to_json(ckpt)["tensors"]
            assert all(finding.severity in _SEVERITIES and finding.message for finding in ckpt.findings)

    def test_a_cut_file_is_no_surprise(self) -> None:
        """Wherever it is cut, only errors of torchkeep come out, and they name the file."""
        for sample in self.samples():
            step = max(1, len(sample.data) // self.mutants)
            for length in range(0, len(sample.data), step):
                self._survives(sample.data[:length], sample, f"cut to {length} bytes")

    def test_a_damaged_file_is_no_surprise(self) -> None:
        """Whatever bytes are changed, only errors of torchkeep come out; the same seed gives the same damage."""
        for sample in self.samples():
            generator = random.Random(0)
            for number in range(self.mutants):
                data = bytearray(sample.data)
                for _ in range(generator.randint(1, 4)):
                    head = generator.random() < 0.7  # where formats keep their structure
                    at = generator.randrange(min(len(data), 2000) if head else len(data))
                    data[at] = generator.choice((0, 1, 127, 255, generator.randrange(256)))
                self._survives(bytes(data), sample, f"mutant {number}")

    def test_a_neighbour_that_is_missing_is_named(self) -> None:
        """A format of several files says which one it misses."""
        for sample in self.samples():
            for missing in sample.files or {}:
                fewer = {name: data for name, data in (sample.files or {}).items() if name != missing}
                try:
                    ckpt = self.format.open(Recorded(sample.data, fewer), tk.Limits())
                    ckpt.load()
                except TorchkeepError as error:
                    assert missing in str(error), str(error)
                else:
                    raise AssertionError(f"{missing} is missing, and nobody noticed")

    def test_verify_finds_nothing_wrong(self) -> None:
        """A format that can verify its files finds genuine ones whole."""
        for sample in self.samples() if hasattr(self.format, "verify") else []:
            for name, ok, nbytes in self.format.verify(Recorded(sample.data, sample.files), tk.Limits()):
                assert ok, name
                assert nbytes >= 0

    def _survives(self, data: bytes, sample: Sample, what: str) -> None:
        try:
            ckpt = self._open(data, sample)
        except OpenError as error:
            assert error.file, f"{what}: {error} names no file"
            return
        except TorchkeepError:
            return
        for tensor in ckpt.values():
            if tensor.nbytes < 1 << 24 and tensor.numel() < 1 << 24:
                try:
                    tensor.load()
                except TorchkeepError:
                    continue


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, not-a-numbers included."""
    if one.dtype is not other.dtype or one.shape != other.shape or one.layout is not other.layout:
        return False
    if one.layout is not torch.strided:
        return torch.equal(one.to_dense(), other.to_dense())
    if one.is_quantized:
        return torch.equal(one.dequantize(), other.dequantize())
    if not one.numel():
        return True
    plain, same = (value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for value in (one, other))
    return torch.equal(plain.view(torch.uint8), same.view(torch.uint8))
