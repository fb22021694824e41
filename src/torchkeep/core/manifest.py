"""One snapshot of a run as data: which tensors it has, where their bytes lie, and everything that is no tensor.

A manifest file is exactly `{"digest":"<64 hex digits>","body":<body>}`; the digest is BLAKE3 over the bytes of the
body as they stand in the file, so a reader never has to write JSON the same way to check it.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from blake3 import blake3

from ..errors import CorruptCheckpointError, UnsupportedFeatureError

FORMAT_VERSION = 1
_PACK = re.compile(r"[0-9a-f]{64}")
_PREFIX = b'{"digest":"'
_MIDDLE = b'","body":'


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a snapshot.

    Attributes:
        name: `model/conv1.weight`, `optimizer/conv1.weight/exp_avg`, `scheduler/...`, `rng/...`, `extra/...`.
        dtype, shape: as in torch.
        digest: BLAKE3 of the bytes, 64 hex digits.
        pack: index into `Body.packs`; -1 for a tensor without bytes of its own (meta).
        key: its name in the pack; empty when it is `name`.
        requires_grad: the flag of a parameter.
        tied: the name of the entry whose memory it shares, or empty.
        device: where it was; restored tensors go to where the live object is.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    pack: int
    key: str = ""
    requires_grad: bool = False
    tied: str = ""
    device: str = "cpu"


class HistoryMark(msgspec.Struct, frozen=True):
    """How much of the history belongs to a snapshot: records, and bytes of the file with their BLAKE3."""

    records: int
    nbytes: int
    digest: str


class Body(msgspec.Struct, frozen=True):
    """What a snapshot is.

    Attributes:
        version: of the format; a reader refuses a higher one.
        sequence: number of the snapshot in its run, from 1.
        parent: sequence it was continued from; 0 for none.
        step: the caller's number.
        created: seconds since 1970.
        packs: ids of the packs its entries lie in.
        entries: the tensors.
        state: everything that is no tensor, tagged JSON, one member for each tracked object.
        history: how much of the history belongs to it.
        metrics: the last value of each metric that was logged before it.
        producer: versions of what wrote it.
        seconds: how long the training had run that led to it, over all processes.
    """

    version: int
    sequence: int
    parent: int
    step: int
    created: float
    packs: list[str]
    entries: list[Entry]
    state: dict[str, Any]
    history: HistoryMark
    metrics: dict[str, Any] = {}
    producer: dict[str, str] = {}
    seconds: float = 0.0


def seal(body: bytes) -> bytes:
    """A JSON document with its own digest in front."""
    return _PREFIX + blake3(body).hexdigest().encode() + _MIDDLE + body + b"}"


def unseal(data: bytes, *, file: str) -> bytes:
    """The body of a sealed document.

    Raises:
        CorruptCheckpointError: some byte is not as it was written.
    """
    start = len(_PREFIX) + 64
    body = data[start + len(_MIDDLE) : -1]
    if data != seal(body):
        raise CorruptCheckpointError(
            "its digest does not match its content", file=file, hint="it was damaged after it was written"
        )
    return body


def encode_manifest(body: Body) -> bytes:
    """The bytes of a manifest file."""
    return seal(msgspec.json.encode(body))


def decode_manifest(data: bytes, *, file: str) -> Body:
    """A manifest from the bytes of its file.

    Raises:
        CorruptCheckpointError: it was damaged.
        UnsupportedFeatureError: it is from a later version of the format.
    """
    content = unseal(data, file=file)
    try:
        body = msgspec.json.decode(content, type=Body)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptCheckpointError(f"is no manifest: {error}", file=file) from error
    if body.version > FORMAT_VERSION:
        raise UnsupportedFeatureError(
            f"is written in format version {body.version}, this torchkeep reads up to {FORMAT_VERSION}",
            file=file,
            hint="upgrade torchkeep",
        )
    if any(entry.pack >= len(body.packs) for entry in body.entries):
        raise CorruptCheckpointError("names a pack that it does not list", file=file)
    odd = [pack for pack in body.packs if not _PACK.fullmatch(pack)]
    if odd:  # a name that leads out of the run, for one
        raise CorruptCheckpointError(f"names a pack {odd[0]!r}, which is no digest", file=file)
    return body


def pack_id(header: bytes, digests: list[str]) -> str:
    """The name of a pack: BLAKE3 over its header's JSON, padding included, and its tensors' digests in file order."""
    hasher = blake3(header)
    for digest in digests:
        hasher.update(bytes.fromhex(digest))
    return hasher.hexdigest()
