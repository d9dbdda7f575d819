"""Counters that number operations, in one process or in several that share a file."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Count", "FileCount", "Operation", "ThreadCount"]

_HEADER_BYTES = 32  # number of operations and end of the records, 16 digits each


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operation."""

    index: int
    """Position in the common sequence, from 0."""
    name: str
    """The method: make_dir, create_file, write, sync, close, sync_dir, link, rename, exchange,
    remove_file or remove_dir; if reads are numbered, also open_read, read, stat,
    list_dir or list_marks."""
    key: str
    """Key; for link, rename and exchange `"<source> -> <target>"`."""
    process_id: int
    """Id of the process."""


class Count(Protocol):
    """A common sequence of operations."""

    def take(self, operation: str, key: str) -> int:
        """Record an operation and return its unique index."""

    def operations(self) -> tuple[Operation, ...]:
        """Return every operation recorded so far, in order."""


class ThreadCount:
    """A sequence shared by the threads of one process."""

    __slots__ = ("_lock", "_operations")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._operations: list[Operation] = []

    def take(self, operation: str, key: str) -> int:
        """Record an operation and return its index."""
        with self._lock:
            index = len(self._operations)
            self._operations.append(Operation(index, operation, key, os.getpid()))
        return index

    def operations(self) -> tuple[Operation, ...]:
        """Return every operation recorded so far, in order."""
        with self._lock:
            return tuple(self._operations)


class FileCount:
    """A sequence shared by all threads and processes that use the same file.

    Works even if a process is killed at any time: its lock ends with it, and an operation is
    counted before it is carried out. Does not survive power loss.

    Args:
        path: file outside the storage under test; created if missing.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str | Path) -> None:
        self._path = os.fspath(path)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def take(self, operation: str, key: str) -> int:
        """Record an operation and return its index."""
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # of this open file, so threads exclude each other too
            index, end = _header(fd)
            record = json.dumps([index, operation, key, os.getpid()]).encode() + b"\n"
            os.pwrite(fd, record, end)
            os.pwrite(fd, b"%016d%016d" % (index + 1, end + len(record)), 0)
        finally:
            os.close(fd)
        return index

    def operations(self) -> tuple[Operation, ...]:
        """Return every operation recorded so far, in order."""
        with open(self._path, "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH)
            _, end = _header(file.fileno())
            file.seek(_HEADER_BYTES)
            lines = file.read(end - _HEADER_BYTES).splitlines()
        return tuple(Operation(*json.loads(line)) for line in lines)


def _header(fd: int) -> tuple[int, int]:
    header = os.pread(fd, _HEADER_BYTES, 0)
    if not header:
        return 0, _HEADER_BYTES
    return int(header[:16]), int(header[16:])
