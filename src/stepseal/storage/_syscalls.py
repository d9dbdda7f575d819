"""The system calls that make storage durable, as one object that a test can replace.

These calls read, write, sync, link and rename, or describe the file system. Other calls (stat,
creating and removing directories, removing names) use `os` directly. Each method raises `OSError`;
all except `names` and `read_proc` are exactly one call. The callers do loops, checks and messages.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["RENAME_EXCHANGE", "RENAME_NOREPLACE", "Syscalls"]

_RWF_DONTCACHE = 0x80
"""Flag of pwritev2, Linux 6.14 or newer: start writing back at once, and drop the pages then."""

RENAME_NOREPLACE = 1
"""Flag of renameat2: fail if the target exists."""
RENAME_EXCHANGE = 2
"""Flag of renameat2: swap the two."""


class Syscalls:
    """The real kernel."""

    __slots__ = ()

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        """Make the call openat."""
        return os.open(name, flags, mode, dir_fd=dir_fd)

    def names(self, fd: int) -> list[str]:
        """Read all names in a directory, from its start.

        By a descriptor of its own: if a directory has changed, sshfs answers a second scan of one
        descriptor with no names at all, and shows the directory as empty to everybody for a while.
        """
        anew = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            with os.scandir(anew) as found:
                return [entry.name for entry in found]
        finally:
            os.close(anew)

    def kinds(self, fd: int) -> dict[str, bool]:
        """Read all names in a directory, from its start; true for a directory."""
        with os.scandir(fd) as found:
            return {entry.name: entry.is_dir(follow_symlinks=False) for entry in found}

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Make the call preadv with one buffer."""
        return os.preadv(fd, [buffer], offset)

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Make the call pwrite."""
        return os.pwrite(fd, data, offset)

    def pwrite_uncached(self, fd: int, data: Buffer, offset: int) -> int:
        """Make the call pwritev2 with RWF_DONTCACHE; ENOSYS where the C library lacks it."""
        try:
            return os.pwritev(fd, [data], offset, _RWF_DONTCACHE)
        except NotImplementedError:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None

    def fsync(self, fd: int) -> None:
        """Make the call fsync on a file."""
        os.fsync(fd)

    def fsync_dir(self, fd: int) -> None:
        """Make the call fsync on a directory."""
        os.fsync(fd)

    def close(self, fd: int) -> None:
        """Make the call close."""
        os.close(fd)

    def read_proc(self, name: str) -> str:
        """Return the text of a file in /proc/self, such as `mountinfo`."""
        with open(f"/proc/self/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Make the call linkat, without following a symlink."""
        os.link(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Make the call renameat."""
        os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        """Make the call renameat2; raise ENOSYS if the C library lacks it."""
        function = _renameat2()
        if function is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        result = function(source_fd, os.fsencode(source), target_fd, os.fsencode(target), flags)
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


@lru_cache(maxsize=1)
def _renameat2() -> Any:  # noqa: ANN401 - a foreign function has no static type
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        number, text = ctypes.c_int, ctypes.c_char_p
        function.argtypes = (number, text, number, text, ctypes.c_uint)
        function.restype = ctypes.c_int
    return function
