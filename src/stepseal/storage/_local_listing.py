"""What a directory holds, as it was at one instant.

The kernel reads a directory piece by piece: a listing that overlaps changes may show neither the
name that went nor the one that came in its place. So names are read twice, with the look at each
between the two, until nothing changed meanwhile.
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
        fd: of the directory.
        key: of the directory, for messages only.
        root: for messages only.
        calls: answers for the kernel.

    Raises:
        StorageUnavailable: the directory changed during each look.
        OSError: as the kernel refused.
    """
    for _ in range(_LOOKS):
        found = _look(fd, calls)
        if found is not None:
            return tuple(sorted(found, key=lambda entry: entry.name))
    raise StorageUnavailable(
        f"cannot list {key_in_words(key, root)}: expected names that stay for the time of one "
        f"look, found that the directory kept changing during {_LOOKS} looks. Find out what makes "
        "and removes names there so fast, then retry.",
        path=key,
    )


def _look(fd: int, calls: Syscalls) -> list[Entry] | None:
    """Return the entries, or None if the directory changed meanwhile.

    Its time of change tells, where clocks are fine enough, also of a change in either scan that
    both missed.
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
    """Return what a stat says as an entry."""
    return Entry(
        name=name,
        kind=entry_kind(status.st_mode),
        size_bytes=status.st_size,
        device=status.st_dev,
        inode=status.st_ino,
        mount=mount,
    )
