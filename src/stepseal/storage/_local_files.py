"""Open files of local storage: exact reads, complete writes, and permanent sync failures.

A handle owns one descriptor. After a failed write or sync, all later ones fail, too: the kernel may
have dropped the dirty pages, and a second fsync would return success without them. Large writes ask
the kernel not to keep their pages: write-back then starts with the write and not with the sync, and
the job keeps its page cache.
"""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.storage._buffers import byte_view
from stepseal.storage._refusals import refused, short_read

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

    from stepseal.storage._syscalls import Syscalls

__all__ = ["LocalReader", "LocalWriter", "Uncached"]

_UNCACHED_FROM_BYTES = 1 << 20
"""Smaller writes are documents and indexes, which are read again at once."""
_FLAG_REFUSALS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})
"""Answers that may mean the flag alone; EPERM comes from sandboxes that do not know the call."""


class _Descriptor:
    """One descriptor with its key and root, closed at most once."""

    __slots__ = ("_calls", "_fd", "_key", "_lock", "_root")

    def __init__(self, fd: int, key: str, root: str, calls: Syscalls) -> None:
        self._fd = fd
        self._key = key
        self._root = root
        self._calls = calls
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.close()
        except StorageUnavailable:
            if error is None:
                raise  # while another error is raised, that one is reported

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            self._calls.close(fd)
        except InterruptedError:
            return  # Linux has released the descriptor; its number may already be reused
        except OSError as error:
            raise refused("close", self._key, self._root, error) from error

    def _open_fd(self, verb: str) -> int:
        if self._fd < 0:
            raise refused(verb, self._key, self._root, OSError(errno.EBADF, "closed"))
        return self._fd


class LocalReader(_Descriptor):
    """A regular file open for reading."""

    __slots__ = ("_size_bytes",)

    def __init__(self, fd: int, key: str, root: str, calls: Syscalls, *, size_bytes: int) -> None:
        super().__init__(fd, key, root, calls)
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the file when it was opened."""
        return self._size_bytes

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer` completely with the bytes at `offset`."""
        view = byte_view(buffer, offset, self._key, writable=True)
        fd = self._open_fd("read")
        done = 0
        while done < len(view):
            try:
                count = self._calls.pread_into(fd, view[done:], offset + done)
            except InterruptedError:
                continue
            except OSError as error:
                raise refused("read", self._key, self._root, error) from error
            if count <= 0:
                raise short_read(self._key, self._root, offset, expected=len(view), found=done)
            done += count


class Uncached:
    """Writes past the page cache where the file system of one root can; else as usual."""

    __slots__ = ("_calls", "_refused")

    def __init__(self, calls: Syscalls) -> None:
        self._calls = calls
        self._refused = False

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        """Write some of `data`; return how many bytes."""
        if self._refused or len(data) < _UNCACHED_FROM_BYTES:
            return self._calls.pwrite(fd, data, offset)
        try:
            return self._calls.pwrite_uncached(fd, data, offset)
        except OSError as error:
            if error.errno not in _FLAG_REFUSALS:
                raise
        count = self._calls.pwrite(fd, data, offset)
        self._refused = True  # the same call works without the flag
        return count


class LocalWriter(_Descriptor):
    """A new file open for writing."""

    __slots__ = ("_failed", "_uncached")

    def __init__(self, fd: int, key: str, root: str, calls: Syscalls, uncached: Uncached) -> None:
        super().__init__(fd, key, root, calls)
        self._failed: int | None = None
        self._uncached = uncached

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`, or raise."""
        view = byte_view(data, offset, self._key, writable=False)
        fd = self._healthy_fd("write")
        done = 0
        while done < len(view):
            try:
                count = self._uncached.pwrite(fd, view[done:], offset + done)
            except InterruptedError:
                continue
            except OSError as error:
                raise self._fail("write", error) from error
            if count <= 0:
                raise self._fail("write", OSError(errno.EIO, "the kernel accepted no bytes"))
            done += count

    def sync(self) -> None:
        """Make the bytes written so far durable, or fail for good."""
        fd = self._healthy_fd("sync")
        try:
            self._calls.fsync(fd)
        except OSError as error:
            raise self._fail("sync", error) from error

    def _healthy_fd(self, verb: str) -> int:
        if self._failed is not None:
            error = OSError(self._failed, "an earlier write or sync of this file failed")
            raise refused(verb, self._key, self._root, error)
        return self._open_fd(verb)

    def _fail(self, verb: str, error: OSError) -> StorageUnavailable:
        self._failed = error.errno or errno.EIO
        return refused(verb, self._key, self._root, error)
