"""Kernels that lack one ability each: some refuse, some answer success and do something else."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from stepseal.storage import RENAME_EXCHANGE, RENAME_NOREPLACE, Syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LIES", "REFUSALS", "Refusing"]


class Refusing(Syscalls):
    """Answers one call with an error."""

    def __init__(self, call: str, number: int, flags: int = 0) -> None:
        self._call = call
        self._number = number
        self._flags = flags

    def _answer(self, call: str, flags: int = 0) -> None:
        if call == self._call and flags & self._flags == self._flags:
            raise OSError(self._number, os.strerror(self._number))

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        self._answer("open", flags)
        return super().open(name, flags, mode, dir_fd=dir_fd)

    def fsync(self, fd: int) -> None:
        self._answer("fsync")
        super().fsync(fd)

    def fsync_dir(self, fd: int) -> None:
        self._answer("fsync_dir")
        super().fsync_dir(fd)

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        self._answer("link")
        super().link(source, source_fd, target, target_fd)

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        self._answer("rename")
        super().rename(source, source_fd, target, target_fd)

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        self._answer("renameat2", flags)
        super().renameat2(source, source_fd, target, target_fd, flags)


class _NotExclusive(Syscalls):
    """O_EXCL is not known: the file that is there is emptied, as without it."""

    def open(self, name: str, flags: int, mode: int = 0o600, *, dir_fd: int | None = None) -> int:
        if flags & os.O_EXCL:
            flags = flags & ~os.O_EXCL | os.O_TRUNC
        return super().open(name, flags, mode, dir_fd=dir_fd)


class _LinkCopies(Syscalls):
    """A link is a copy, and refuses a taken name only."""

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open(os.open(source, os.O_RDONLY, dir_fd=source_fd), "rb") as file:
            data = file.read()
        with open(os.open(target, flags, dir_fd=target_fd), "wb") as file:
            file.write(data)


class _LinkReplaces(Syscalls):
    """A link takes the place of what is there."""

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # another racer was here first
            os.unlink(target, dir_fd=target_fd)
        super().link(source, source_fd, target, target_fd)


class _LinkRaces(Syscalls):
    """Looks, waits, and links: what an emulation above an object store does."""

    def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        if target in os.listdir(target_fd):
            raise FileExistsError(errno.EEXIST, "exists")
        time.sleep(0.005)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target, dir_fd=target_fd)
        super().link(source, source_fd, target, target_fd)


def _files(name: str, fd: int) -> Iterator[str]:
    inner = os.open(name, os.O_RDONLY, dir_fd=fd)
    try:
        yield from sorted(os.listdir(inner))
    finally:
        os.close(inner)


class _RenameCopies(Syscalls):
    """A directory is renamed file by file."""

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        if target in os.listdir(target_fd):
            raise OSError(errno.ENOTEMPTY, "not empty")
        os.mkdir(target, dir_fd=target_fd)
        for name in _files(source, source_fd):
            time.sleep(0.002)
            os.rename(
                f"{source}/{name}", f"{target}/{name}", src_dir_fd=source_fd, dst_dir_fd=target_fd
            )
        os.rmdir(source, dir_fd=source_fd)


class _RenameMerges(Syscalls):
    """A rename onto a directory with entries replaces them."""

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        if target in os.listdir(target_fd):
            for name in _files(target, target_fd):
                os.unlink(f"{target}/{name}", dir_fd=target_fd)
        super().rename(source, source_fd, target, target_fd)


class _FlagsIgnored(Syscalls):
    """A flag of renameat2 is not known, and the call made without it."""

    def __init__(self, flag: int) -> None:
        self._flag = flag

    def renameat2(
        self, source: str, source_fd: int, target: str, target_fd: int, flags: int
    ) -> None:
        if flags != self._flag:
            super().renameat2(source, source_fd, target, target_fd, flags)
        elif flags == RENAME_NOREPLACE:
            os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)


class _ModesLost(Syscalls):
    """Everybody may read everything, as on a FAT disk."""

    def close(self, fd: int) -> None:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.fchmod(fd, 0o755)
        super().close(fd)


REFUSALS: list[tuple[Syscalls, set[str], str]] = [
    (Refusing("fsync", errno.EINVAL), {"fsync"}, "EINVAL"),
    (Refusing("link", errno.EPERM), {"link"}, "EPERM"),
    (Refusing("rename", errno.EXDEV), {"rename_dir"}, "EXDEV"),
    (Refusing("renameat2", errno.EINVAL, RENAME_NOREPLACE), {"noreplace"}, "EINVAL"),
    (Refusing("renameat2", errno.ENOSYS, RENAME_EXCHANGE), {"exchange"}, "ENOSYS"),
]
LIES: list[tuple[Syscalls, set[str], str]] = [
    (_NotExclusive(), {"exclusive_create"}, "O_EXCL"),
    (_LinkCopies(), {"link"}, "copy"),
    (_LinkReplaces(), {"link"}, "winners"),
    (_LinkRaces(), {"link"}, "winners"),
    (_RenameCopies(), {"rename_dir"}, "showed only"),
    (_RenameMerges(), {"rename_keeps_full_dir"}, "was replaced"),
    (_FlagsIgnored(RENAME_NOREPLACE), {"noreplace"}, "was replaced"),
    (_FlagsIgnored(RENAME_EXCHANGE), {"exchange"}, "not swapped"),
    (_ModesLost(), {"modes"}, "0755"),
]
