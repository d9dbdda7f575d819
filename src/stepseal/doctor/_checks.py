"""One function per ability: makes the call, then checks its effect.

A call that returns success proves nothing, because file systems ignore flags that they do not
know. So every check looks at the result. Each raises `NotHonoured`, or the kernel's `OSError`.
"""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from stepseal.errors import Corrupt
from stepseal.storage import RENAME_EXCHANGE, RENAME_NOREPLACE, create_durable, read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import LocalStorage, Syscalls

__all__ = ["ABILITIES", "CHECKS", "NotHonoured", "Place"]

ABILITIES = {
    "fsync": "fsync of a file",
    "exclusive_create": "O_EXCL creates only, for one of many",
    "link": "link creates only, for one of many",
    "rename_dir": "a renamed directory appears whole",
    "rename_keeps_full_dir": "rename never replaces a directory with entries",
    "noreplace": "RENAME_NOREPLACE",
    "exchange": "RENAME_EXCHANGE",
    "modes": "modes 0600 and 0700 are kept",
}
"""The abilities that are tried, with a description. The storage itself tests directory syncs."""
_RACERS = 4
_ROUNDS = 8


class NotHonoured(Exception):
    """The call returned success but did something else; the text says what."""


def require(condition: object, detail: str) -> None:
    """Raise `NotHonoured` with `detail` unless the condition is true."""
    if not condition:
        raise NotHonoured(detail)


class Place:
    """A new, empty directory for one check."""

    def __init__(self, storage: LocalStorage, key: str, calls: Syscalls) -> None:
        self.storage = storage
        self.key = key
        self.calls = calls

    def create(self, name: str, data: bytes = b"") -> None:
        """Create a file without syncing it; fails like the storage."""
        with self.storage.create_file(f"{self.key}/{name}") as handle:
            handle.write(data, 0)

    def make_dir(self, name: str, *files: str) -> None:
        """Make a directory with files; each file holds its own name."""
        self.storage.make_dir(f"{self.key}/{name}")
        for file in files:
            self.create(f"{name}/{file}", file.encode())

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None if there is none."""
        try:
            return read_bytes(self.storage, f"{self.key}/{name}", 64)
        except (FileNotFoundError, Corrupt):
            return None

    def link(self, source: str, target: str) -> None:
        """Give a file a second name."""
        self.storage.link(f"{self.key}/{source}", f"{self.key}/{target}")

    def rename(self, source: str, target: str) -> None:
        """Give an entry a new name, without a flag."""
        self.storage.rename(f"{self.key}/{source}", f"{self.key}/{target}", replace=True)

    def rename_with(self, flag: int, source: str, target: str) -> None:
        """Rename with a flag; uses absolute paths, so that directory descriptors play no role."""
        self.calls.renameat2(self.path(source), -1, self.path(target), -1, flag)

    def path(self, name: str) -> str:
        """Return the absolute path of a name."""
        return os.path.join(self.storage.root, self.key, name)


def _fsync(place: Place) -> None:
    create_durable(place.storage, f"{place.key}/f", b"x")


def _exclusive_create(place: Place) -> None:
    _require_one_winner("O_EXCL", lambda turn, _: place.create(f"{turn}"))


def _link(place: Place) -> None:
    place.create("a", b"a")
    place.link("a", "b")
    with open(place.path("a"), "r+b") as file:
        file.write(b"n")
    # not by inode: FUSE gives each name a number of its own
    require(place.read("b") == b"n", "link made a copy instead of a second name")
    for racer in range(_RACERS):
        place.create(f"own-{racer}")
    _require_one_winner("link", lambda turn, racer: place.link(f"own-{racer}", f"{turn}"))


def _require_one_winner(call: str, attempt: Callable[[int, int], None]) -> None:
    """Let threads create the same name at once, repeatedly; exactly one may succeed each time."""

    def wins(turn: int, racer: int) -> bool:
        try:
            attempt(turn, racer)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(_RACERS) as pool:
        for turn in range(_ROUNDS):
            winners = sum(pool.map(wins, [turn] * _RACERS, range(_RACERS)))
            require(winners == 1, f"{call} had {winners} winners among {_RACERS} threads")


def _rename_dir(place: Place) -> None:
    names = ["1", "2", "3", "4"]
    with ThreadPoolExecutor(1) as pool:
        for turn in range(_ROUNDS):
            place.make_dir(f"a{turn}", *names)
            renamed = threading.Event()
            seen = pool.submit(_first_sight, place.path(f"b{turn}"), renamed)
            try:
                place.rename(f"a{turn}", f"b{turn}")
            finally:
                renamed.set()
            require(seen.result() == names, f"a renamed directory showed only {seen.result()}")
            found = [place.read(f"b{turn}/{name}") for name in names]
            require(found == [name.encode() for name in names], "its files hold other bytes")
            require(place.read(f"a{turn}/1") is None, "the old name is still there")


def _first_sight(path: str, renamed: threading.Event) -> list[str]:
    """Return the contents of a directory when it first appears; empty if it appears too late."""
    while True:
        is_last = renamed.is_set()
        with suppress(FileNotFoundError):
            return sorted(os.listdir(path))
        if is_last:
            return []


def _rename_keeps_full_dir(place: Place) -> None:
    place.make_dir("a", "new")
    place.make_dir("b", "old")
    with suppress(OSError):  # any error is fine: the check looks at the result
        place.rename("a", "b")
    require(place.read("b/old") == b"old", "a directory with entries was replaced")
    require(place.read("a/new") == b"new", "the source left its name")


def _noreplace(place: Place) -> None:
    place.create("a", b"a")
    place.create("b", b"b")
    place.make_dir("d", "new")
    place.make_dir("e")
    for source, target in (("a", "b"), ("d", "e")):
        with suppress(FileExistsError):
            place.rename_with(RENAME_NOREPLACE, source, target)
    require(place.read("b") == b"b", "a file was replaced")
    require(place.read("e/new") is None, "an empty directory was replaced")
    for source, target in (("a", "c"), ("d", "f")):
        place.rename_with(RENAME_NOREPLACE, source, target)
    require(place.read("c") == b"a" and place.read("f/new") == b"new", "they did not move")


def _exchange(place: Place) -> None:
    place.make_dir("a", "1")
    place.make_dir("b", "2")
    place.rename_with(RENAME_EXCHANGE, "a", "b")
    require(place.read("a/2") == b"2" and place.read("b/1") == b"1", "they were not swapped")


def _modes(place: Place) -> None:
    place.make_dir("d")
    place.create("f")
    for name, mode in (("f", 0o600), ("d", 0o700)):
        found = stat.S_IMODE(os.stat(place.path(name)).st_mode)
        require(found & ~mode == 0, f"mode {mode:04o} became {found:04o}")


CHECKS: dict[str, Callable[[Place], None]] = {
    "fsync": _fsync,
    "exclusive_create": _exclusive_create,
    "link": _link,
    "rename_dir": _rename_dir,
    "rename_keeps_full_dir": _rename_keeps_full_dir,
    "noreplace": _noreplace,
    "exchange": _exchange,
    "modes": _modes,
}
