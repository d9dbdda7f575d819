"""A FUSE file system that shows another folder and knows no flag of renameat2, as a program.

    python tests/_fuse_passthrough.py SOURCE MOUNTPOINT refuse|ignore

`refuse` answers EINVAL to the flags, as a network file system does; `ignore` renames as if there
were none, as careless servers do.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

_STAT = (
    "st_atime", "st_ctime", "st_gid", "st_ino", "st_mode", "st_mtime", "st_nlink", "st_size",
    "st_uid",
)  # fmt: skip
_STATVFS = (
    "f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_frsize",
)  # fmt: skip


def passthrough(fuse: Any, source: str) -> Any:  # noqa: ANN401 - mfusepy is not always there
    """Return the operations of a file system that shows `source`."""
    base: Any = fuse.Operations

    class Passthrough(base):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            found = os.fstat(fh) if fh else os.lstat(source + path)
            values = {name: getattr(found, name) for name in _STAT}
            return values | {f"st_{k}time": getattr(found, f"st_{k}time_ns") for k in "acm"}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(source + path)]

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(source + path, mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(source + path)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(source + path)
            return 0

        def symlink(self, target: str, link: str) -> int:
            os.symlink(link, source + target)
            return 0

        def readlink(self, path: str) -> str:
            return os.readlink(source + path)

        def link(self, target: str, link: str) -> int:
            os.link(source + link, source + target)
            return 0

        def rename(self, old: str, new: str) -> int:
            os.rename(source + old, source + new)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(source + path, mode)
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(source + path, length)
            return 0

        def create(self, path: str, mode: int, fi: object = None) -> int:
            return os.open(source + path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(source + path, flags & (os.O_ACCMODE | os.O_NOFOLLOW))

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            os.fsync(fh)
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(source)
            return {name: getattr(found, name) for name in _STATVFS}

        def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
            if times is None:
                os.utime(source + path)
            else:
                os.utime(source + path, ns=times)
            return 0

    return Passthrough()


def serve(source: str, mountpoint: str, flags: str) -> None:
    """Serve until the file system is unmounted."""
    fuse = importlib.import_module("mfusepy")
    rename = fuse.FUSE.rename_fuse_3

    def rename_without_flags(self: object, old: bytes, new: bytes, given: int) -> int:
        if given:
            return -errno.EINVAL
        return int(rename(self, old, new, 0))

    if flags == "refuse":
        fuse.FUSE.rename_fuse_3 = rename_without_flags
    fuse.FUSE(passthrough(fuse, source), mountpoint, foreground=True, nothreads=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
