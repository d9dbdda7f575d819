"""Lists a directory as it was at one instant.

The kernel reads a directory in pieces: a listing that overlaps a rename may contain neither the old
nor the new name. So the names are read, then each entry's status, then the names again, until
nothing has changed meanwhile.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from stepseal.errors import StorageUnavailable
from stepseal.storage._refusals import entry_kind, key_in_words
from stepseal.storage._verbs import Entry

if TYPE_CHECKING:
    from stepseal.storage._syscalls import Syscalls

__all__ = ["entry_of", "list_at_once"]

_LOOKS = 100


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
    for _ in range(_LOOKS):
        found = _look(fd, calls)
        if found is not None:
            return tuple(sorted(found, key=lambda entry: entry.name))
    raise StorageUnavailable(
        f"cannot list {key_in_words(key, root)}: expected names that stay the same during one "
        f"listing, found changes in each of {_LOOKS} tries. Find out which process creates and "
        "removes names there so fast, then retry.",
        path=key,
    )


def _look(fd: int, calls: Syscalls) -> list[Entry] | None:
    """Return the entries, or None if the directory changed meanwhile.

    If the file system's clock is fine enough, the directory's change time also shows a change that
    both scans missed.
    """
    changed_ns = os.fstat(fd).st_mtime_ns
    names = calls.names(fd)
    try:
        found = [entry_of(n, os.stat(n, dir_fd=fd, follow_symlinks=False)) for n in names]
    except FileNotFoundError:
        return None
    if sorted(calls.names(fd)) != sorted(names) or os.fstat(fd).st_mtime_ns != changed_ns:
        return None
    return found


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
