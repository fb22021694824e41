"""Says what a file is that no reader takes: things torchkeep does not read yet, and things that are no checkpoint."""

from __future__ import annotations

import re

from ..core.limits import Limits
from ..core.source import Probe
from ..core.tree import Global
from ..errors import OpenError, TorchkeepError, UnknownFormatError, UnsupportedFeatureError
from ._names import dangers_in
from ._pickle import Dialect, TruncatedStreamError, Use, unpickle

_LOAD_AND_SAVE = "load it with the program that wrote it, and save the state dict with torch.save"
_DOWNLOAD = "download the file itself; the address was probably that of a page about it"

# First bytes of what is a kind of checkpoint or container, and not read yet.
_NOT_READ: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", "GGUF weights are made for llama.cpp; fetch the safetensors of the same model"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", _LOAD_AND_SAVE),
    (b"\x1f\x8b", "a gzip file", "unpack it first: gunzip"),
    (b"\xfd7zXZ\0", "an xz file", "unpack it first: unxz"),
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first: 7z x"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"\x93NUMPY", "a NumPy array (.npy)", "load it with numpy.load"),
)

_TEXT_PICKLE = re.compile(rb"\(?[cPILSVF(\]})dlt0-9pg]")


def explain(probe: Probe, file: str) -> TorchkeepError:
    """The error for a file that no format takes, saying what it is as far as its first bytes show."""
    head = probe.head
    if not probe.size:
        return _unknown("is empty", file, "the download or the save that made it failed; fetch it again")
    for magic, what, hint in _NOT_READ:
        if head.startswith(magic):
            return _not_read(what, file, hint)
    if head[257:262] == b"ustar":
        return _not_read(
            "a tar archive, as torch 0.1 wrote", file, "unpack it, or load it with torch and save it again"
        )
    if head.startswith(b"version https://git-lfs"):
        return _unknown("is a git-lfs pointer and not the file itself", file, "run `git lfs pull` in its repository")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<!doctype html|<html|<head|<\?xml", text[:20], re.IGNORECASE):
        return _unknown("is an HTML page and no checkpoint", file, _DOWNLOAD)
    if text[:1] in {b"{", b"["}:
        return _json(text, file)
    if head[:1] == b"\x80" or _TEXT_PICKLE.match(head):
        found = _pickled(probe, file)
        if found is not None:
            return found
    return _unknown(
        f"is no checkpoint that torchkeep knows; it begins with {head[:16]!r}", file, "is it the right file?"
    )


def _unknown(what: str, file: str, hint: str) -> UnknownFormatError:
    return UnknownFormatError(what, file=file, hint=hint)


def _not_read(what: str, file: str, hint: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(f"is {what}, which torchkeep does not read yet", file=file, hint=hint)


def _json(text: bytes, file: str) -> TorchkeepError:
    if b'"weight_map"' in text:
        return _not_read("the index of a sharded checkpoint", file, "open the shards it names, one by one")
    return _unknown("is a JSON file", file, _DOWNLOAD)


def _pickled(probe: Probe, file: str) -> TorchkeepError | None:
    """A pickle that torch.save did not write; its first bytes are read, inertly, to say what is in it."""
    seen: dict[Global, Use] = {}
    first = ""
    try:
        value = unpickle(probe.head, 0, Dialect(), Limits(opcodes=100_000), seen=seen).value
        first = (
            f" of {value:#x}" if type(value) is int and value.bit_length() < 200 else f" of a {type(value).__name__}"
        )
    except TruncatedStreamError:
        pass
    except OpenError:
        if probe.head[:1] != b"\x80" and not seen:
            return None
    names = list(dangers_in(seen))[:5]
    danger = f" It names {', '.join(names)}, which can run code." if names else ""
    hint = "if you trust it, load it with pickle and save it with torch.save"
    what = f"is a plain pickle{first} without torch's magic number, which torchkeep does not read yet.{danger}"
    return UnsupportedFeatureError(what, file=file, hint="do not load it" if names else hint)
