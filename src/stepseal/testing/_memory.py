"""Storage in memory that behaves like a POSIX file system; for tests and simulators.

Each file remembers its synced bytes, and each directory its synced names. `after_power_loss`
returns the state of a disk after a power loss: all synced state, and the part of the unsynced
state that the caller lets survive.
"""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from stepseal.storage import (
    Entry,
    FreeSpace,
    SyncReport,
    byte_view,
    check_key,
    check_pair,
    refused,
    short_read,
    split_key,
    wrong_kind,
)
from stepseal.testing._memory_nodes import Dir, File, after_power_loss

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from typing_extensions import Buffer, Self

    from stepseal.errors import StorageUnavailable
    from stepseal.testing._memory_nodes import Survives

__all__ = ["MemoryStorage"]

_ROOT = "memory"


class MemoryStorage:
    """A tree in memory; one per instance, shared by the threads of one process."""

    __slots__ = ("_lock", "_root")

    def __init__(self) -> None:
        self._root = Dir()
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return "MemoryStorage()"

    def open_read(self, key: str) -> _MemoryReader:
        """Open a file for reading."""
        with self._lock:
            parent, name = self._place("open", key)
            node = _present(parent, "open", key, name)
            if isinstance(node, Dir):
                raise wrong_kind("open", key, _ROOT, expected="regular file", found="directory")
            return _MemoryReader(node, key, self._lock)

    def stat(self, key: str) -> Entry:
        """Return the entry of a key."""
        with self._lock:
            if not split_key(key):
                return _entry("", self._root)
            parent, name = self._place("stat", key)
            return _entry(name, _present(parent, "stat", key, name))

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        """Return every entry of a directory, sorted by name."""
        with self._lock:
            directory = self._walk(split_key(key), "list", key)
            return tuple(_entry(name, node) for name, node in sorted(directory.entries.items()))

    def list_marks(self, key: str, name: str) -> dict[str, Hashable | None]:
        """Return all names in a directory, each with a mark of one file in it."""
        assert "/" not in name
        with self._lock:
            directory = self._walk(split_key(key), "list", key)
            return {one: _mark(node, name) for one, node in directory.entries.items()}

    def local_path(self, key: str) -> str | None:
        """Return None: no other program sees this memory."""
        split_key(key)
        return None

    def adopt(self, key: str) -> Entry:
        """Make a file's bytes, or the names in a directory, survive `after_power_loss`."""
        with self._lock:
            parent, name = self._place("sync", key)
            node = _present(parent, "sync", key, name)
            node.sync()
            return _entry(name, node)

    def sync_support(self) -> SyncReport:
        """Report that fsync is honoured; `after_power_loss` simulates such a disk."""
        return SyncReport()

    def free_space(self) -> FreeSpace | None:
        """Tell nothing: nothing here has a size."""
        return None

    def create_file(self, key: str) -> _MemoryWriter:
        """Create a new file."""
        with self._lock:
            parent, name = self._place("create", key)
            _require_free(parent, "create", key, name)
            node = parent.entries[name] = File()
            return _MemoryWriter(node, key, self._lock)

    def make_dir(self, key: str) -> None:
        """Create a new directory."""
        with self._lock:
            parent, name = self._place("make directory", key)
            _require_free(parent, "make directory", key, name)
            parent.entries[name] = Dir()

    def sync_dir(self, key: str) -> None:
        """Make the names inside a directory survive `after_power_loss`."""
        with self._lock:
            directory = self._walk(split_key(key), "sync directory", key)
            directory.sync()

    def link(self, source: str, target: str) -> None:
        """Give a file a second name, only if that name is free."""
        check_pair(source, target)
        with self._lock:
            parent, name = self._place("link", source)
            node = _present(parent, "link", source, name)
            directory, new = self._place("link", target)
            _require_free(directory, "link", target, new)
            if isinstance(node, Dir):
                raise _refusal("link", source, errno.EPERM)
            directory.entries[new] = node

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        """Move a file or directory to another name."""
        check_pair(source, target)
        with self._lock:
            parent, name = self._place("rename", source)
            node = _present(parent, "rename", source, name)
            directory, new = self._place("rename", target)
            old = directory.entries.get(new)
            if old is node and replace:
                return  # two links of one file: POSIX leaves both
            if old is not None:
                _require_replaceable(node, old, target, replace=replace)
            del parent.entries[name]
            directory.entries[new] = node

    def exchange(self, first: str, second: str) -> None:
        """Swap two existing entries."""
        check_pair(first, second)
        with self._lock:
            parent, name = self._place("exchange", first)
            one = _present(parent, "exchange", first, name)
            directory, other = self._place("exchange", second)
            two = _present(directory, "exchange", second, other)
            parent.entries[name], directory.entries[other] = two, one

    def remove_file(self, key: str) -> None:
        """Remove a file."""
        with self._lock:
            parent, name = self._place("remove", key)
            if isinstance(_present(parent, "remove", key, name), Dir):
                raise _refusal("remove", key, errno.EISDIR)
            del parent.entries[name]

    def remove_dir(self, key: str) -> None:
        """Remove an empty directory."""
        with self._lock:
            parent, name = self._place("remove directory", key)
            node = _present(parent, "remove directory", key, name)
            if not isinstance(node, Dir):
                raise _refusal("remove directory", key, errno.ENOTDIR)
            if node.entries:
                raise _refusal("remove directory", key, errno.ENOTEMPTY)
            del parent.entries[name]

    def after_power_loss(self, survives: Survives) -> MemoryStorage:
        """Return a storage as it would be after a power loss now; this storage does not change.

        A file with a durable name that was renamed since has its old name, its new name, or both:
        no file system in use loses a file because of a rename.

        Args:
            survives: called for each unsynced change with its kind and key. `"entry"` is a name
                that was added, moved or removed; the change survives if the result is at least
                0.5. `"data"` are the bytes of a file; the result is the fraction that survives: 0
                keeps the synced bytes, 1 the written bytes, else a prefix followed by zeros.
        """
        image = MemoryStorage()
        with self._lock:
            image._root = after_power_loss(self._root, survives)
        return image

    def _walk(self, segments: Sequence[str], verb: str, key: str) -> Dir:
        node: File | Dir = self._root
        for depth, name in enumerate(segments):
            assert isinstance(node, Dir)
            child = node.entries.get(name)
            if child is None:
                raise _refusal(verb, key, errno.ENOENT)
            if not isinstance(child, Dir):
                prefix = "/".join(segments[: depth + 1])
                found = "regular file"
                raise wrong_kind(verb, prefix, _ROOT, expected="directory", found=found)
            node = child
        assert isinstance(node, Dir)
        return node

    def _place(self, verb: str, key: str) -> tuple[Dir, str]:
        parents, name = check_key(key)
        return self._walk(parents, verb, key), name


class _Handle:
    __slots__ = ("_closed", "_key", "_lock", "_node")

    def __init__(self, node: File, key: str, lock: threading.RLock) -> None:
        self._node = node
        self._key = key
        self._lock = lock
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True

    def _require_open(self, verb: str) -> None:
        if self._closed:
            raise _refusal(verb, self._key, errno.EBADF)


class _MemoryReader(_Handle):
    __slots__ = ("_size_bytes",)

    def __init__(self, node: File, key: str, lock: threading.RLock) -> None:
        super().__init__(node, key, lock)
        self._size_bytes = len(node.data)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_into(self, buffer: Buffer, offset: int) -> None:
        view = byte_view(buffer, offset, self._key, writable=True)
        self._require_open("read")
        with self._lock:
            found = self._node.data[offset : offset + len(view)]
        if len(found) != len(view):
            raise short_read(self._key, _ROOT, offset, expected=len(view), found=len(found))
        view[:] = found


class _MemoryWriter(_Handle):
    __slots__ = ()

    def write(self, data: Buffer, offset: int) -> None:
        view = byte_view(data, offset, self._key, writable=False)
        self._require_open("write")
        with self._lock:
            stored = self._node.data
            if len(view) and len(stored) < offset:
                stored.extend(bytes(offset - len(stored)))
            stored[offset : offset + len(view)] = view

    def sync(self) -> None:
        self._require_open("sync")
        with self._lock:
            self._node.sync()


def _entry(name: str, node: File | Dir) -> Entry:
    if isinstance(node, Dir):
        return Entry(name=name, kind="directory", size_bytes=0, device=0, inode=node.inode)
    return Entry(name=name, kind="file", size_bytes=len(node.data), device=0, inode=node.inode)


def _mark(node: File | Dir, name: str) -> Hashable | None:
    found = node.entries.get(name) if isinstance(node, Dir) else None
    return (found.inode, bytes(found.data)) if isinstance(found, File) else None


def _present(parent: Dir, verb: str, key: str, name: str) -> File | Dir:
    node = parent.entries.get(name)
    if node is None:
        raise _refusal(verb, key, errno.ENOENT)
    return node


def _require_free(parent: Dir, verb: str, key: str, name: str) -> None:
    if name in parent.entries:
        raise _refusal(verb, key, errno.EEXIST)


def _require_replaceable(node: File | Dir, old: File | Dir, target: str, *, replace: bool) -> None:
    if not replace:
        raise _refusal("rename", target, errno.EEXIST)
    if isinstance(old, Dir) and not isinstance(node, Dir):
        raise _refusal("rename", target, errno.EISDIR)
    if isinstance(node, Dir) and not isinstance(old, Dir):
        raise _refusal("rename", target, errno.ENOTDIR)
    if isinstance(old, Dir) and old.entries:
        raise _refusal("rename", target, errno.ENOTEMPTY)


def _refusal(verb: str, key: str, number: int) -> StorageUnavailable:
    return refused(verb, key, _ROOT, OSError(number, os.strerror(number)))
