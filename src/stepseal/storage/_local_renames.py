"""Renames that never replace an entry, with substitutes for missing flags; and exchanges.

For the flags of renameat2(2), a network file system returns EINVAL, and an old kernel or C library
ENOSYS. A sandbox that does not know the call returns EPERM, as missing permissions do: if the same
rename works without the flag, it was the flag. The first use finds out what is missing; the storage
remembers it.

Without RENAME_NOREPLACE, a file is moved by link(2), which never replaces, and unlink(2); a crash
between the two leaves both names. A directory is moved by plain rename(2) after a check of the
target. In POSIX this can only replace an *empty* directory, so an entry with contents is never
replaced; an empty directory that appears between the check and the call is. An exchange has no
substitute here: the caller moves twice.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.storage._syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

if TYPE_CHECKING:
    from stepseal.storage._syscalls import Syscalls

__all__ = ["MAYBE_NO_FLAGS", "Renames"]

_NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""Errors of a kernel or file system that does not know a flag of renameat2."""
MAYBE_NO_FLAGS = _NO_FLAGS | {errno.EPERM}
"""The same, and the error of a sandbox that does not know the call, or of missing permissions."""

_NO_EXCHANGE = frozenset({errno.EEXIST, errno.ENOTEMPTY})
"""Errors that an exchange never returns: the server ignored the flag and did a plain rename."""


class Renames:
    """The renames of one storage. Thread-safe."""

    __slots__ = ("_calls", "_missing")

    def __init__(self, calls: Syscalls) -> None:
        self._calls = calls
        self._missing: dict[int, int] = {}

    def move(self, name: str, fd: int, target: str, target_fd: int) -> None:
        """Move an entry to a free name.

        Raises:
            FileExistsError: the target exists.
            OSError: any other error of the kernel.
        """
        if RENAME_NOREPLACE not in self._missing:
            try:
                return self._renameat2(name, fd, target, target_fd, RENAME_NOREPLACE)
            except OSError as error:
                if error.errno not in MAYBE_NO_FLAGS:
                    raise
                number = error.errno
            self._move_without_flag(name, fd, target, target_fd)
            self._missing[RENAME_NOREPLACE] = number  # it was the flag, as this worked
            return None
        return self._move_without_flag(name, fd, target, target_fd)

    def _move_without_flag(self, name: str, fd: int, target: str, target_fd: int) -> None:
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            self._move_directory(name, fd, target, target_fd)
            return
        self._calls.link(name, fd, target, target_fd)
        with suppress(FileNotFoundError):  # removed meanwhile: only the target's name is left
            os.unlink(name, dir_fd=fd)

    def exchange(self, first: str, first_fd: int, second: str, second_fd: int) -> None:
        """Swap two entries.

        Raises:
            OSError: the kernel refused; one of `MAYBE_NO_FLAGS` if the call is not supported. With
                EPERM this is not certain: two moves show whether permissions are missing.
        """
        if RENAME_EXCHANGE not in self._missing:
            try:
                return self._renameat2(first, first_fd, second, second_fd, RENAME_EXCHANGE)
            except OSError as error:
                if error.errno not in MAYBE_NO_FLAGS | _NO_EXCHANGE:
                    raise
                known = error.errno if error.errno in MAYBE_NO_FLAGS else errno.EINVAL
            if known != errno.EPERM:
                self._missing[RENAME_EXCHANGE] = known
        else:
            known = self._missing[RENAME_EXCHANGE]
        for name, fd in ((first, first_fd), (second, second_fd)):
            os.stat(name, dir_fd=fd, follow_symlinks=False)  # report a missing entry first
        raise OSError(known, os.strerror(known))

    def _move_directory(self, name: str, fd: int, target: str, target_fd: int) -> None:
        _require_free(target, target_fd)
        try:
            self._calls.rename(name, fd, target, target_fd)
        except NotADirectoryError:
            _require_free(target, target_fd)  # a file has taken the name meanwhile
            raise

    def _renameat2(self, name: str, fd: int, target: str, target_fd: int, flags: int) -> None:
        while True:
            try:
                return self._calls.renameat2(name, fd, target, target_fd, flags)
            except InterruptedError:
                continue  # not carried out; Python retries its own calls the same way


def _require_free(target: str, target_fd: int) -> None:
    try:
        os.stat(target, dir_fd=target_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
