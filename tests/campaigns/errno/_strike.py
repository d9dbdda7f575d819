"""How an operation or system call of a job fails; and a kernel that does so on purpose."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, TypeVar

from stepseal.storage._syscalls import Syscalls
from stepseal.testing import Fail, Lose, Tear

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.campaigns.harness._strike import Strike
    from typing_extensions import Buffer

__all__ = ["KINDS", "FaultyCalls", "Kind", "errno_of"]

T = TypeVar("T")
Kind = Fail | Lose | Tear
KINDS: dict[str, Kind] = {
    "EIO": Fail(errno.EIO),
    "ENOSPC": Fail(errno.ENOSPC),
    "EDQUOT": Fail(errno.EDQUOT),
    "ESTALE": Fail(errno.ESTALE),
    "EACCES": Fail(errno.EACCES),
    "EINTR": Fail(errno.EINTR),
    "torn-write": Tear(0.5, Fail(errno.ENOSPC)),
    "lost-answer": Lose(errno.EIO),
}
_INTERRUPTED = frozenset({"pwrite", "pwritev2", "pread", "close", "renameat2"})
"""Calls of which Python or stepseal must not let an EINTR through; Python retries the others."""


def errno_of(kind: Kind) -> int:
    """Return the errno of a kind."""
    if not isinstance(kind, Tear):
        return kind.errno
    assert isinstance(kind.then, Fail)
    return kind.then.errno


class FaultyCalls(Syscalls):
    """A kernel that refuses, interrupts or cuts short a system call; sound until it is armed."""

    def __init__(self) -> None:
        self._strike: Strike | None = None
        self._kind: Kind = KINDS["EIO"]
        self._interrupted = False

    def arm(self, strike: Strike, kind: Kind) -> None:
        """Strike from now on."""
        self._strike, self._kind = strike, kind

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        """Make or refuse the call; a lost answer would be a leak and is none."""
        if self._strikes("openat", name):
            raise self._error()
        return super().open(name, flags, mode, dir_fd=dir_fd)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Make or refuse the call, or read a part."""
        part = buffer[: (len(buffer) + 1) // 2] if isinstance(self._kind, Tear) else buffer
        if not self._strikes("pread", ""):
            return super().pread_into(fd, buffer, offset)
        if part is not buffer:
            return super().pread_into(fd, part, offset)
        raise self._error()

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Make or refuse the call, or write a part and then be full."""
        if not self._strikes("pwrite", ""):
            return super().pwrite(fd, data, offset)
        if isinstance(self._kind, Tear):
            super().pwrite(fd, memoryview(data)[: memoryview(data).nbytes // 2], offset)
        raise self._error()

    def pwrite_uncached(self, fd: int, data: Buffer, offset: int) -> int:
        """Make or refuse the call, or write a part and then be full."""
        if not self._strikes("pwritev2", ""):
            return super().pwrite_uncached(fd, data, offset)
        if isinstance(self._kind, Tear):
            super().pwrite_uncached(fd, memoryview(data)[: memoryview(data).nbytes // 2], offset)
        raise self._error()

    def fsync(self, fd: int) -> None:
        """Make or refuse the call."""
        self._do("fsync", "", lambda: super(FaultyCalls, self).fsync(fd))

    def fsync_dir(self, fd: int) -> None:
        """Make or refuse the call."""
        self._do("fsync_dir", "", lambda: super(FaultyCalls, self).fsync_dir(fd))

    def close(self, fd: int) -> None:
        """Make the call in any case; a refusal has released the descriptor as well."""
        super().close(fd)
        if self._strikes("close", ""):
            raise self._error()

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Make or refuse the call."""
        run = super().link
        self._do("linkat", target, lambda: run(source, source_fd, target, target_fd))

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        """Make or refuse the call."""
        run = super().rename
        self._do("renameat", target, lambda: run(source, source_fd, target, target_fd))

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        """Make or refuse the call."""
        run = super().renameat2
        self._do("renameat2", target, lambda: run(source, source_fd, target, target_fd, flags))

    def _do(self, call: str, name: str, run: Callable[[], T]) -> T:
        if not self._strikes(call, name):
            return run()
        if isinstance(self._kind, Lose):
            run()
        raise self._error()

    def _strikes(self, call: str, name: str) -> bool:
        if self._strike is None:
            return False
        if errno_of(self._kind) == errno.EINTR:
            if call not in _INTERRUPTED or self._interrupted:  # what is tried again succeeds
                self._interrupted = False
                return False
            self._interrupted = self._strike(call, name)
            return self._interrupted
        return self._strike(call, name)

    def _error(self) -> OSError:
        number = errno_of(self._kind)
        return OSError(number, os.strerror(number))
