"""A disk that keeps a diary: a FUSE file system with one file, for a loop device to sit on.

A program of its own: `python -m tests.campaigns.ext4._disk MOUNTPOINT DIARY SIZE_BYTES`. Every
write and every flush is in the diary before it is answered, so that an acknowledgement that
somebody gives later belongs behind it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DISK", "FLUSH", "WRITE", "read_diary"]

DISK = "disk"
_HEAD = struct.Struct("<cQI")
WRITE, FLUSH = b"W", b"F"


def read_diary(data: bytes) -> Iterator[tuple[int, bytes, int, bytes]]:
    """Yield position, kind, offset on the disk and data of every entry, oldest first."""
    at = 0
    while at < len(data):
        kind, offset, size = _HEAD.unpack_from(data, at)
        start = at + _HEAD.size
        yield at, kind, offset, data[start : start + size]
        at = start + size


def _serve(mountpoint: str, diary: str, size_bytes: int) -> None:
    import mfusepy
    from tests.campaigns.ext4._mounts import die_with_parent

    die_with_parent()

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self._data = bytearray(size_bytes)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._diary = os.open(diary, flags, 0o600)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{DISK}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size_bytes}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", DISK]

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return bytes(self._data[offset : offset + size])

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._note(WRITE, offset, data)
            self._data[offset : offset + len(data)] = data
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self._note(FLUSH, 0, b"")
            return 0

        def flush(self, path: str, fh: int) -> int:
            return 0  # a descriptor was closed: a disk does not hear of it

        def _note(self, kind: bytes, offset: int, data: bytes) -> None:
            entry = _HEAD.pack(kind, offset, len(data)) + data
            assert os.write(self._diary, entry) == len(entry)

    mfusepy.FUSE(Disk(), mountpoint, foreground=True, nothreads=True, fsname="stepseal-disk")


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
