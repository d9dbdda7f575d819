"""Renames that never replace, and exchanges, also where the file system lacks them.

A network file system answers EINVAL to the flags of renameat2(2), an old kernel or C library
ENOSYS. What is missing is found out at its first use and remembered for the life of the storage.

Without RENAME_NOREPLACE a file moves by link(2), which never replaces, and unlink(2); a crash
between the two leaves both names. A directory moves by plain rename(2) after a look at the target:
POSIX lets that replace an *empty* directory alone, so nothing that holds an entry is ever replaced;
an empty directory that somebody makes between the look and the call is. An exchange has no
substitute here: who needs one moves twice.
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

__all__ = ["NO_FLAGS", "Renames"]

NO_FLAGS = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP})
"""Answers of a kernel or file system that does not know a flag of renameat2."""

_NO_EXCHANGE = frozenset({errno.EEXIST, errno.ENOTEMPTY})
"""Answers that no exchange gives: a server ignored the flag, and renamed as if there was none."""


class Renames:
    """The renames of one storage. Thread-safe: two threads may both find out what is missing."""

    __slots__ = ("_calls", "_missing")

    def __init__(self, calls: Syscalls) -> None:
        self._calls = calls
        self._missing: dict[int, int] = {}

    def move(self, name: str, fd: int, target: str, target_fd: int) -> None:
        """Move an entry to a name that nobody has.

        Raises:
            FileExistsError: the target is taken.
            OSError: whatever else the kernel refused.
        """
        if RENAME_NOREPLACE not in self._missing:
            try:
                return self._renameat2(name, fd, target, target_fd, RENAME_NOREPLACE)
            except OSError as error:
                if error.errno not in NO_FLAGS:
                    raise
                self._missing[RENAME_NOREPLACE] = error.errno
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return self._move_directory(name, fd, target, target_fd)
        self._calls.link(name, fd, target, target_fd)
        with suppress(FileNotFoundError):  # removed meanwhile: it has the target's name alone
            os.unlink(name, dir_fd=fd)
        return None

    def exchange(self, first: str, first_fd: int, second: str, second_fd: int) -> None:
        """Swap two entries.

        Raises:
            OSError: refused; one of `NO_FLAGS` if there is no such call here.
        """
        if RENAME_EXCHANGE not in self._missing:
            try:
                return self._renameat2(first, first_fd, second, second_fd, RENAME_EXCHANGE)
            except OSError as error:
                if error.errno not in NO_FLAGS | _NO_EXCHANGE:
                    raise
                known = error.errno if error.errno in NO_FLAGS else errno.EINVAL
                self._missing[RENAME_EXCHANGE] = known
        for name, fd in ((first, first_fd), (second, second_fd)):
            os.stat(name, dir_fd=fd, follow_symlinks=False)  # what is absent is told first
        known = self._missing[RENAME_EXCHANGE]
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
