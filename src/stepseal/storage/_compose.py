"""Functions that combine storage operations: durable files, conditional puts, tree walks.

They work with any backend and any wrapper, because every change goes through `Storage`. Temporary
names are `.tmp-`, eight hex digits of Unix time and 24 random ones; temporaries are in the
directory of their target.
"""

from __future__ import annotations

import errno
import re
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt, StorageUnavailable
from stepseal.storage._keys import check_key, parent_key, split_key
from stepseal.storage._verbs import KeyExists, KeyNotFound

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from stepseal.storage._verbs import Entry, Storage

__all__ = [
    "create_durable",
    "exists",
    "make_dirs",
    "put_if_absent",
    "read_bytes",
    "remove_tree",
    "replace_durable",
    "sweep_temporaries",
    "walk_files",
]


_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})[0-9a-f]{24}")
_DAY_S = 86_400.0
_MAX_WALKED_BYTES = 1024
"""Longest path of a directory that is walked; no file of a step has a longer path."""
_MAX_LEVELS = 32
"""Deepest level at which a directory is emptied in place; deeper ones are moved up first."""


def make_dirs(storage: Storage, key: str, *, base: str = "") -> None:
    """Create a directory and its missing parents, durably; existing ones are fine.

    All participants may call it at once. Existing directories are synced, too, because the process
    that created them may have died before its sync.

    Args:
        storage: the storage.
        key: the directory to create.
        base: a directory above `key` that exists and is durable; nothing above it is touched.

    Raises:
        Corrupt: an entry on the path exists and is not a directory.

    Durability: on return `key` survives power loss if `base` does.
    """
    segments = split_key(key)
    start = len(split_key(base))
    for depth in range(start, len(segments)):
        directory = "/".join(segments[: depth + 1])
        try:
            storage.make_dir(directory)
        except KeyExists:
            _require_directory(storage, directory)
        storage.sync_dir("/".join(segments[:depth]))


def read_bytes(storage: Storage, key: str, max_bytes: int) -> bytes:
    """Return all bytes of a small file; refuse a large one before allocating memory.

    Raises:
        KeyNotFound: the key does not exist.
        Corrupt: the file is larger than `max_bytes`, or not a regular file.
    """
    with storage.open_read(key) as handle:
        if handle.size_bytes > max_bytes:
            raise Corrupt(
                f"cannot read {key!r}: expected at most {max_bytes} bytes, found "
                f"{handle.size_bytes}. Verify the step, or look at what wrote this file.",
                path=key,
                expected=max_bytes,
                found=handle.size_bytes,
                problems=(f"{key}: {handle.size_bytes} bytes, at most {max_bytes} allowed",),
            )
        data = bytearray(handle.size_bytes)
        handle.read_into(data, 0)
    return bytes(data)


def create_durable(storage: Storage, key: str, data: Buffer) -> None:
    """Create a file with these bytes: create, write, sync, close.

    Raises:
        KeyExists: the key exists; nothing was written.
        StorageUnavailable: the storage refused; the file may exist with a part of the bytes.

    Durability: the bytes survive power loss; the name survives once the caller has synced the
    directory.
    """
    with storage.create_file(key) as handle:
        handle.write(data, 0)
        handle.sync()


def exists(storage: Storage, key: str) -> bool:
    """Return whether the key exists now; use `put_if_absent`, not this, before creating it.

    Raises:
        StorageUnavailable: the storage refused.
    """
    try:
        storage.stat(key)
    except KeyNotFound:
        return False
    return True


def put_if_absent(storage: Storage, key: str, data: Buffer) -> bool:
    """Create a complete, durable file if the key is free; exactly one of concurrent callers wins.

    Readers see all of the bytes or no file. This caller has won if the key and its own temporary
    are the same file (same inode). So a lost answer of `link` does no harm.

    Returns:
        True if this call created the key, False if it existed already.

    Raises:
        StorageUnavailable: the storage refused. The key may have been created: read it.

    Durability: on return the key survives power loss, also if another caller created it. A crash or
    a failed removal may leave a temporary.
    """
    directory = parent_key(key)
    temporary = _temporary_key(directory)
    try:
        create_durable(storage, temporary, data)
        try:
            storage.link(temporary, key)
            ours = True
        except StorageUnavailable as error:
            ours = _same_file(storage, temporary, key)
            if not ours and not isinstance(error, KeyExists):
                raise
        storage.sync_dir(directory)
    finally:
        with suppress(StorageUnavailable):
            storage.remove_file(temporary)
    return ours


def replace_durable(storage: Storage, key: str, data: Buffer) -> None:
    """Create or replace a file atomically; readers see either the old or the new bytes.

    Raises:
        StorageUnavailable: the storage refused; the key has either the old or the new bytes.

    Durability: on return the new bytes survive power loss.
    """
    directory = parent_key(key)
    temporary = _temporary_key(directory)
    try:
        create_durable(storage, temporary, data)
        storage.rename(temporary, key, replace=True)
    except BaseException:
        with suppress(StorageUnavailable):
            storage.remove_file(temporary)
        raise
    storage.sync_dir(directory)


def sweep_temporaries(storage: Storage, key: str, *, now_s: float) -> None:
    """Remove leftover temporaries from a directory; does nothing if the directory is missing.

    Removes only temporaries that are more than a day old, which no process uses any more.

    Args:
        storage: the storage.
        key: the directory.
        now_s: Unix time, by the clock of the hosts that created the temporaries.

    Raises:
        StorageUnavailable: the storage refused.
    """
    try:
        entries = storage.list_dir(key)
    except KeyNotFound:
        return
    for entry in entries:
        match = _TEMPORARY.fullmatch(entry.name)
        if match and entry.kind == "file" and int(match[1], 16) + _DAY_S < now_s:
            with suppress(KeyNotFound):
                storage.remove_file(_join(key, entry.name))


def remove_tree(storage: Storage, key: str) -> None:
    """Remove an entry and everything below it; symlinks are removed and never followed.

    Ignores entries that vanish meanwhile. Does not enter mounts, nor bind mounts if the backend can
    detect them. Time is proportional to the number of entries at any depth: directories far down
    are first moved directly below `key`.

    Raises:
        InvalidInput: the key is the root itself.
        KeyNotFound: the key does not exist.
        Corrupt: a directory was replaced by another kind of entry while it was emptied.
        StorageUnavailable: the storage refused, or a mount is inside; the rest stays in place.
    """
    check_key(key)
    top = storage.stat(key)
    if top.kind != "directory":
        storage.remove_file(key)
        return
    pending: list[tuple[str, int, bool]] = [(key, 0, False)]
    while pending:
        directory, level, emptied = pending.pop()
        if emptied:
            with suppress(KeyNotFound):
                storage.remove_dir(directory)
            continue
        pending.append((directory, level, True))
        with suppress(KeyNotFound):
            for path in _remove_leaves(storage, directory, top):
                if level < _MAX_LEVELS:
                    pending.append((path, level + 1, False))
                    continue
                with suppress(KeyNotFound):
                    raised = _temporary_key(key)
                    storage.rename(path, raised)  # every operation walks from the root
                    pending.append((raised, 1, False))


def walk_files(storage: Storage, key: str) -> list[tuple[str, Entry]]:
    """Return all entries below a directory except directories, sorted by relative path.

    Symlinks and special files are listed with their kind, so that a caller can refuse them. A
    directory with a path that is too long for a step is listed, too, and not entered.

    Raises:
        KeyNotFound: the key does not exist.
        Corrupt: the key is not a directory.
    """
    found: list[tuple[str, Entry]] = []
    pending = [""]
    while pending:
        relative = pending.pop()
        for entry in storage.list_dir(_join(key, relative)):
            path = _join(relative, entry.name)
            size_bytes = len(path.encode("utf-8", "surrogateescape"))
            if entry.kind == "directory" and size_bytes <= _MAX_WALKED_BYTES:
                pending.append(path)
            else:
                found.append((path, entry))
    return sorted(found, key=lambda item: item[0])


def _remove_leaves(storage: Storage, directory: str, top: Entry) -> list[str]:
    """Remove all entries except directories; return the directories, which are not empty yet."""
    directories: list[str] = []
    for entry in storage.list_dir(directory):
        path = _join(directory, entry.name)
        with suppress(KeyNotFound):
            if entry.kind != "directory":
                storage.remove_file(path)
                continue
            found = storage.stat(path)
            if (found.device, found.mount) != (top.device, top.mount):
                raise StorageUnavailable(
                    f"cannot remove {path!r}: expected a directory of the same file system, found "
                    "a mount. Unmount it first.",
                    path=path,
                    errno=errno.EXDEV,
                )
            directories.append(path)
    return directories


def _require_directory(storage: Storage, key: str) -> None:
    found = storage.stat(key).kind
    if found != "directory":
        raise Corrupt(
            f"cannot make directory {key!r}: expected a directory, found a {found}. Remove it.",
            path=key,
            expected="directory",
            found=found,
            problems=(f"{key}: expected a directory, found a {found}",),
        )


def _same_file(storage: Storage, first: str, second: str) -> bool:
    try:
        one, other = storage.stat(first), storage.stat(second)
    except KeyNotFound:
        return False
    return one.inode != 0 and (one.device, one.inode) == (other.device, other.inode)


def _temporary_key(directory: str) -> str:
    return _join(directory, f".tmp-{int(time.time()):08x}{secrets.token_hex(12)}")


def _join(directory: str, name: str) -> str:
    if not name:
        return directory
    return f"{directory}/{name}" if directory else name
