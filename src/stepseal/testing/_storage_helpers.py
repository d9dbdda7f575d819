"""Helpers of the storage suite: bad keys, small trees, and races."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stepseal.storage import put_if_absent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepseal.storage import Storage

__all__ = ["BAD_KEYS", "ODD_NAMES", "names", "put", "race", "renaming", "tree", "uses_of"]

BAD_KEYS = (
    "/", "/a", "a/", "a//b", "//", ".", "..", "./a", "../a", "a/.", "a/..", "a/../b", "a/./b",
    "../../etc/passwd", "/etc/passwd", "a\x00b", "\x00", "\udfff\ud800", "a/\ud800",
)  # fmt: skip

ODD_NAMES = (
    ".hidden", "a b", "é", "..a", "...", "x" * 255, "-rf", "a:b", "*", "a\\b", "\\", "..\\a",
    "a\nb", "\x1b[2J", "\x01", "\udcff\udcfe", "~", "CON", "trailing.",
)  # fmt: skip
"""Unusual file names that are valid on Linux; they are listed and removed like any other."""


def put(storage: Storage, key: str, data: bytes | memoryview) -> None:
    """Create a file, without durability."""
    with storage.create_file(key) as handle:
        handle.write(data, 0)


def names(storage: Storage, key: str) -> list[str]:
    """Return the names in a directory."""
    return [entry.name for entry in storage.list_dir(key)]


def tree(storage: Storage) -> None:
    """Make two files, an empty directory, and two directories with one file each."""
    for key in ("empty", "full", "moving"):
        storage.make_dir(key)
    for key, data in {"a": b"a", "file": b"file", "full/x": b"x", "moving/m": b"m"}.items():
        put(storage, key, data)


def uses_of(storage: Storage, key: str) -> list[Callable[[], object]]:
    """Return calls of every operation on a key, or on a name below it; `ok` is a valid file."""
    return [
        lambda: storage.open_read(key),
        lambda: storage.stat(key),
        lambda: storage.list_dir(key),
        lambda: storage.sync_dir(key),
        lambda: storage.adopt(key),
        lambda: storage.create_file(f"{key}/new"),
        lambda: storage.remove_file(key),
        lambda: storage.remove_dir(key),
        lambda: storage.link(key, "new"),
        lambda: storage.link("ok", f"{key}/new"),
        lambda: storage.rename(key, "new"),
        lambda: storage.rename(key, "new", replace=True),
        lambda: storage.rename("ok", f"{key}/new"),
        lambda: storage.exchange("ok", key),
        lambda: storage.exchange(key, "ok"),
    ]


def race(storage: Storage, key: str, num_threads: int) -> list[bool]:
    """Let threads put the same bytes at once; return the result of each."""
    barrier = threading.Barrier(num_threads)
    told: list[bool] = []

    def claim() -> None:
        barrier.wait(timeout=30)
        told.append(put_if_absent(storage, key, b"same for all"))

    threads = [threading.Thread(target=claim) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@contextmanager
def renaming(storage: Storage, key: str) -> Iterator[None]:
    """Let a thread rename the only file `0` of a directory repeatedly."""
    ended = threading.Event()

    def rename() -> None:
        number = 0
        while not ended.is_set():
            storage.rename(f"{key}/{number}", f"{key}/{number + 1}")
            number += 1

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
