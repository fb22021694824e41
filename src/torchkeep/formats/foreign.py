"""Says what a file is that no reader takes: kinds that are left to other programs, and what is no checkpoint at all."""

from __future__ import annotations

import re

from ..core.source import Probe
from ..errors import TorchkeepError, UnknownFormatError, UnsupportedFeatureError

_LOAD_AND_SAVE = "load it with the program that wrote it, and save the state dict with torch.save"
_DOWNLOAD = "download the file itself; the address was probably that of a page about it"
_UNPACK = "unpack it first"

# First bytes of what holds weights or may hold a checkpoint, and is not read here.
_NOT_READ: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", "it is left out on purpose: made for llama.cpp; fetch the safetensors of the same model"),
    (b"ggml", "a GGML file", "fetch the safetensors of the same model"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _LOAD_AND_SAVE),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "unpack it first: unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x"),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"\x7fELF", "a program or shared library", "a compiled model (AOTInductor) has its weights in the .pt2 beside it"),
)
_NO_CHECKPOINT: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
)

_ONNX = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][ -~]")
"""A version of the format, then the name of the producer."""


def explain(probe: Probe, file: str) -> TorchkeepError:
    """The error for a file that no format takes, saying what it is as far as its first bytes show."""
    head = probe.head
    if not probe.size:
        return _unknown("is empty", file, "the download or the save that made it failed; fetch it again")
    for magic, what, hint in _NOT_READ:
        if head.startswith(magic):
            return UnsupportedFeatureError(f"is {what}, which torchkeep does not read", file=file, hint=hint)
    for magic, what in _NO_CHECKPOINT:
        if head.startswith(magic):
            return _unknown(f"is {what} and no checkpoint", file, "is it the right file?")
    if _ONNX.match(head):
        hint = "onnxruntime runs it; no model is made of it again, so keep the checkpoint that it was exported from"
        return UnsupportedFeatureError("is an ONNX file, which torchkeep does not read", file=file, hint=hint)
    if head.startswith(b"version https://git-lfs"):
        return _unknown("is a git-lfs pointer and not the file itself", file, "run `git lfs pull` in its repository")
    if not any(head):
        hint = "a copy or download that broke off leaves such files; fetch it again"
        return _unknown(f"begins with {len(head):,} zero bytes", file, hint)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<!doctype html|<html|<head|<\?xml", text[:20], re.IGNORECASE):
        return _unknown("is an HTML page and no checkpoint", file, _DOWNLOAD)
    if text[:1] in {b"{", b"["}:
        return _unknown(f"is a JSON file and no checkpoint: {_shown(text[:80])}", file, _DOWNLOAD)
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return _unknown(f"is text and no checkpoint: {_shown(text[:80])}", file, "is it the right file?")
    return _unknown(
        f"is no checkpoint that torchkeep knows; it begins with {head[:16]!r}", file, "is it the right file?"
    )


def _unknown(what: str, file: str, hint: str) -> UnknownFormatError:
    return UnknownFormatError(what, file=file, hint=hint)


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace"))
