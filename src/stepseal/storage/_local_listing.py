"""Lists a directory as it was at one instant.

The kernel reads a directory in pieces: a listing that overlaps a rename may contain neither the old
nor the new name. So the names are read, then each entry's status, then the names again, until
nothing has changed meanwhile.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import StorageUnavailable
from stepseal.storage._refusals import entry_kind, key_in_words
from stepseal.storage._verbs import Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from stepseal.storage._syscalls import Syscalls

__all__ = ["entry_of", "list_at_once", "marks_at_once"]

T = TypeVar("T")
F = TypeVar("F")

_LOOKS = 400


def list_at_once(fd: int, key: str, root: str, calls: Syscalls) -> tuple[Entry, ...]:
    """Return every entry of an open directory, sorted by name.

    Args:
        fd: descriptor of the directory.
        key: key of the directory, for messages only.
        root: path of the root, for messages only.
        calls: the system calls.

    Raises:
        StorageUnavailable: the directory changed during each try.
        OSError: the kernel refused.
    """

    def look(names: Iterable[str]) -> list[Entry] | None:
        try:
            return [entry_of(n, os.stat(n, dir_fd=fd, follow_symlinks=False)) for n in names]
        except FileNotFoundError:
            return None

    found = _at_once(fd, key, root, lambda: sorted(calls.names(fd)), look)
    return tuple(sorted(found, key=lambda entry: entry.name))


def marks_at_once(
    fd: int, name: str, key: str, root: str, calls: Syscalls
) -> dict[str, Hashable | None]:
    """Return the names in an open directory, each with the mark of one file in it.

    A write into a file changes the time of its last change, and another file has another inode.

    Args:
        fd: descriptor of the directory.
        name: the file.
        key: key of the directory, for messages only.
        root: path of the root, for messages only.
        calls: the system calls.

    Raises:
        StorageUnavailable: the directory changed during each try.
        OSError: the kernel refused.
    """

    def look(kinds: Mapping[str, bool]) -> dict[str, Hashable | None]:
        return {one: _mark(fd, f"{one}/{name}") if kinds[one] else None for one in kinds}

    return _at_once(fd, key, root, lambda: calls.kinds(fd), look)


def _mark(fd: int, path: str) -> Hashable | None:
    try:
        found = os.stat(path, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _at_once(
    fd: int, key: str, root: str, read: Callable[[], T], look: Callable[[T], F | None]
) -> F:
    """Return what `look` finds at the names that `read` returns; again until nothing changes.

    If the file system's clock is fine enough, the directory's change time also shows a change that
    both scans missed.
    """
    for _ in range(_LOOKS):
        changed_ns = os.fstat(fd).st_mtime_ns
        names = read()
        found = look(names)
        if found is not None and read() == names and os.fstat(fd).st_mtime_ns == changed_ns:
            return found
    raise StorageUnavailable(
        f"cannot list {key_in_words(key, root)}: expected names that stay the same during one "
        f"listing, found changes in each of {_LOOKS} tries. Find out which process creates and "
        "removes names there so fast, then retry.",
        path=key,
    )


def entry_of(name: str, status: os.stat_result, mount: int = 0) -> Entry:
    """Return the entry for a stat result."""
    return Entry(
        name=name,
        kind=entry_kind(status.st_mode),
        size_bytes=status.st_size,
        device=status.st_dev,
        inode=status.st_ino,
        mount=mount,
        num_names=status.st_nlink,
        modified_ns=status.st_mtime_ns,
    )
