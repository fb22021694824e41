"""Where a file lies: on a disk of this machine, or on a file system that is reached over a network."""

from __future__ import annotations

import os
import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORKED = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "glusterfs", "gpfs", "lustre", "mmfs", "ncpfs", "nfs", "nfs4",
    "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
})  # fmt: skip


def is_networked(path: Path) -> bool:
    """Whether a file is read over a network, as far as the system says so; False where it does not say."""
    try:
        kind = _kind(os.fsencode(os.path.realpath(path)), _MOUNTS.read_bytes())
    except (OSError, ValueError):
        return False
    return kind in _NETWORKED or kind.startswith("fuse.")


def _kind(path: bytes, mounts: bytes) -> str:
    """The type of the file system that is mounted nearest above a path; of several in one place, the last.

    A line is `36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw`, see proc_pid_mountinfo(5).
    """
    best, kind = -1, b""
    for line in mounts.splitlines():
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if len(fields) < 5 or not right:
            continue
        point = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 255]), fields[4])
        inside = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= best:
            best, kind = len(point), right.split(b" ")[0]
    return os.fsdecode(kind)
