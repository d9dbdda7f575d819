"""A kernel that knows no flag of renameat2, as below a network file system."""

from __future__ import annotations

import errno
import os

from stepseal.storage._syscalls import Syscalls

__all__ = ["FlaglessCalls"]


class FlaglessCalls(Syscalls):
    """Refuses RENAME_NOREPLACE and RENAME_EXCHANGE, and counts how often it was asked."""

    def __init__(self, number: int = errno.EINVAL) -> None:
        self.number = number
        self.num_asked = 0

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        self.num_asked += 1
        raise OSError(self.number, os.strerror(self.number))
