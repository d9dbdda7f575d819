"""One function per ability: does the thing, then looks whether it happened.

An answer of success proves nothing: file systems ignore flags that they do not know. So every
check compares what is there afterwards. Each raises `NotHonoured`, or the kernel's `OSError`.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stepseal.storage._syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.storage._probe_values import Ability
    from stepseal.storage._syscalls import Syscalls

__all__ = ["CHECKS", "CREATE", "NotHonoured", "Place", "require"]

CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK_BYTES = 4096


class NotHonoured(Exception):
    """The call answered success and did something else; the text says what."""


def require(condition: object, detail: str) -> None:
    """Raise `NotHonoured` unless what was looked at is as it must be."""
    if not condition:
        raise NotHonoured(detail)


class Place:
    """An empty directory of the probe's own, and the calls that are probed."""

    def __init__(self, fd: int, calls: Syscalls) -> None:
        self.fd = fd
        self.calls = calls

    def create(self, name: str, data: bytes = b"") -> None:
        """Make a file, or fail as the kernel does."""
        fd = self.calls.open(name, CREATE, 0o600, dir_fd=self.fd)
        try:
            if data:
                self.calls.pwrite(fd, data, 0)
        finally:
            self.calls.close(fd)

    def make_dir(self, name: str, *files: str) -> None:
        """Make a directory with files that hold their own name."""
        os.mkdir(name, 0o700, dir_fd=self.fd)
        for file in files:
            self.create(f"{name}/{file}", file.encode())

    def read(self, name: str) -> bytes | None:
        """Return up to 64 bytes of a file, or None if there is none."""
        try:
            fd = self.calls.open(name, _READ, dir_fd=self.fd)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            buffer = bytearray(64)
            return bytes(buffer[: self.calls.pread_into(fd, memoryview(buffer), 0)])
        finally:
            self.calls.close(fd)

    def rename(self, source: str, target: str, flags: int = 0) -> None:
        """Rename inside this directory, with or without flags."""
        if flags:
            self.calls.renameat2(source, self.fd, target, self.fd, flags)
        else:
            self.calls.rename(source, self.fd, target, self.fd)


@contextmanager
def _refused(detail: str, *numbers: int) -> Iterator[None]:
    """Require that what is inside is refused with one of these errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise
        return
    require(condition=False, detail=detail)


def _fsync_file(place: Place) -> None:
    fd = place.calls.open("f", CREATE, 0o600, dir_fd=place.fd)
    try:
        place.calls.pwrite(fd, b"x", 0)
        place.calls.fsync(fd)
    finally:
        place.calls.close(fd)


def _fsync_dir(place: Place) -> None:
    place.create("f")
    place.calls.fsync_dir(place.fd)


def _exclusive_create(place: Place) -> None:
    place.create("f", b"first")
    with suppress(FileExistsError):
        place.create("f", b"other")
        require(condition=False, detail="a second O_EXCL of the same name was accepted")
    require(place.read("f") == b"first", "O_EXCL changed the file that was there")


def _link(place: Place) -> None:
    place.create("a", b"a")
    place.create("b", b"b")
    place.calls.link("a", place.fd, "c", place.fd)
    fd = place.calls.open("a", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.fd)
    try:
        place.calls.pwrite(fd, b"n", 0)
    finally:
        place.calls.close(fd)
    # not by inode: FUSE gives each name a number of its own
    require(place.read("c") == b"n", "link made a copy instead of a second name")
    with suppress(FileExistsError):
        place.calls.link("a", place.fd, "b", place.fd)
        require(place.read("b") == b"b", "link replaced a file")
        require(condition=False, detail="link onto a taken name was accepted")


def _rename_dir(place: Place) -> None:
    place.make_dir("a", "1", "2")
    place.rename("a", "b")
    require(place.read("b/1") == b"1" and place.read("b/2") == b"2", "its files are not there")
    require(place.read("a/1") is None, "the old name is still there")


def _rename_keeps_full_dir(place: Place) -> None:
    place.make_dir("a", "new")
    place.make_dir("b", "old")
    with suppress(FileExistsError):
        try:
            place.rename("a", "b")
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
    require(place.read("b/old") == b"old", "a directory with entries was replaced")
    require(place.read("a/new") == b"new", "the source left its name")


def _noreplace_file(place: Place) -> None:
    place.create("a", b"a")
    place.create("b", b"b")
    with suppress(FileExistsError):
        place.rename("a", "b", RENAME_NOREPLACE)
    require(place.read("b") == b"b", "a file was replaced")
    place.rename("a", "c", RENAME_NOREPLACE)
    require(place.read("c") == b"a" and place.read("a") is None, "the file did not move")


def _noreplace_dir(place: Place) -> None:
    place.make_dir("a", "new")
    place.make_dir("b")
    with suppress(FileExistsError):
        place.rename("a", "b", RENAME_NOREPLACE)
    require(place.read("b/new") is None, "an empty directory was replaced")
    place.rename("a", "c", RENAME_NOREPLACE)
    require(place.read("c/new") == b"new" and place.read("a/new") is None, "it did not move")


def _exchange(place: Place) -> None:
    place.make_dir("a", "1")
    place.make_dir("b", "2")
    place.rename("a", "b", RENAME_EXCHANGE)
    require(place.read("a/2") == b"2" and place.read("b/1") == b"1", "they were not swapped")


def _direct_io(place: Place) -> None:
    flags = CREATE | os.O_DIRECT
    fd = place.calls.open("f", flags, 0o600, dir_fd=place.fd)
    try:
        with mmap.mmap(-1, _BLOCK_BYTES) as page:
            page[:] = b"s" * _BLOCK_BYTES
            place.calls.pwrite(fd, page, 0)
            page[:] = bytes(_BLOCK_BYTES)
            with memoryview(page) as view:
                place.calls.pread_into(fd, view, 0)
            require(page[:] == b"s" * _BLOCK_BYTES, "other bytes were read than written")
    finally:
        place.calls.close(fd)


def _nofollow(place: Place) -> None:
    place.make_dir("d")
    place.create("f", b"secret")
    try:
        os.symlink("f", "to-file", dir_fd=place.fd)
        os.symlink("d", "to-dir", dir_fd=place.fd)
    except OSError:
        return  # a file system without symlinks has none to follow
    for name, flags in (("to-file", _READ), ("to-dir", _DIRECTORY)):
        with _refused("a symlink was followed", errno.ELOOP, errno.ENOTDIR, errno.EMLINK):
            place.calls.close(place.calls.open(name, flags, dir_fd=place.fd))


def _modes(place: Place) -> None:
    place.make_dir("d")
    place.create("f")
    for name, mode in (("f", 0o600), ("d", 0o700)):
        found = stat.S_IMODE(os.stat(name, dir_fd=place.fd).st_mode)
        require(found & ~mode == 0, f"mode {mode:04o} became {found:04o}")


CHECKS: dict[Ability, Callable[[Place], None]] = {
    "fsync_file": _fsync_file,
    "fsync_dir": _fsync_dir,
    "exclusive_create": _exclusive_create,
    "link": _link,
    "rename_dir": _rename_dir,
    "rename_keeps_full_dir": _rename_keeps_full_dir,
    "noreplace_file": _noreplace_file,
    "noreplace_dir": _noreplace_dir,
    "exchange": _exchange,
    "direct_io": _direct_io,
    "nofollow": _nofollow,
    "modes": _modes,
}
"""What one process can tell by itself."""
