"""The disk as one process sees it: verbs that may wait, fail, or never come back.

Every mutating verb is told to a `Watcher` before and after it was carried out, which judges it.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Protocol

from tests.campaigns.simulator._fibers import Killed

from stepseal.errors import StorageUnavailable
from stepseal.steps._claims import INCARNATIONS
from stepseal.steps._roots import STAGING
from stepseal.storage import KeyNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from tests.campaigns.simulator._world import Node, World
    from typing_extensions import Buffer, Self

    from stepseal.storage import Entry, FreeSpace, ReadHandle, SyncReport, WriteHandle

__all__ = ["Disk", "Watcher"]

_DECIDING = ("rename", "exchange", "link")
_ERRNOS = (errno.ENOSPC, errno.EIO, errno.EIO, errno.ETIMEDOUT)


class Watcher(Protocol):
    """Sees every change of the disk."""

    def before_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        """Take a verb that is about to be carried out, without anything in between."""
        ...

    def after_change(self, disk: Disk, verb: str, key: str, target: str) -> None:
        """Take a verb that was carried out."""
        ...


class Disk:
    """A `Storage` over the world's disk, for one thread of one process."""

    def __init__(self, world: World, node: Node, watcher: Watcher) -> None:
        self.world = world
        self.node = node
        self.watcher = watcher
        self.num_refused_reads = 0
        """Reads that were refused so far: what was passed over for it is no defect."""
        self.last_verb_at = 0.0
        """When its last storage verb was done."""
        self.last_verb_before = 0.0
        """When the verb before that was done."""
        self.is_full = False
        """There is no room for a file while anything is staged."""
        self.num_refused = 0
        """Changes that were refused so far for no reason."""
        self.had_no_room = False
        """It was full in the work that goes on: before a claim, what others staged goes then."""
        self.saw_claims_at = 0
        """Number of the verb by which it last listed the claims."""

    def open_read(self, key: str) -> ReadHandle:
        self._read(key)
        return self.world.disk.open_read(key)

    def stat(self, key: str) -> Entry:
        self._read(key)
        return self.world.disk.stat(key)

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        self._read(key)
        if key == INCARNATIONS:
            self.saw_claims_at = self.world.num_verbs
        return self.world.disk.list_dir(key)

    def list_marks(self, key: str, name: str) -> dict[str, Hashable | None]:
        self._read(key)
        return self.world.disk.list_marks(key, name)

    def local_path(self, key: str) -> str | None:
        return self.world.disk.local_path(key)

    def adopt(self, key: str) -> Entry:
        found: list[Entry] = []
        self.change("adopt", key, lambda: found.append(self.world.disk.adopt(key)))
        return found[0]

    def sync_support(self) -> SyncReport:
        return self.world.disk.sync_support()

    def free_space(self) -> FreeSpace | None:
        return self.world.disk.free_space()

    def create_file(self, key: str) -> WriteHandle:
        made: list[WriteHandle] = []
        self.change("create_file", key, lambda: made.append(self.world.disk.create_file(key)))
        return _Writer(self, key, made[0])

    def make_dir(self, key: str) -> None:
        self.change("make_dir", key, lambda: self.world.disk.make_dir(key))

    def sync_dir(self, key: str) -> None:
        self.change("sync_dir", key, lambda: self.world.disk.sync_dir(key))

    def link(self, source: str, target: str) -> None:
        self.change("link", source, lambda: self.world.disk.link(source, target), target)

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        verb = "replace" if replace else "rename"
        self.change(
            verb, source, lambda: self.world.disk.rename(source, target, replace=replace), target
        )

    def exchange(self, first: str, second: str) -> None:
        self.change("exchange", first, lambda: self.world.disk.exchange(first, second), second)

    def remove_file(self, key: str) -> None:
        self.change("remove_file", key, lambda: self.world.disk.remove_file(key))

    def remove_dir(self, key: str) -> None:
        self.change("remove_dir", key, lambda: self.world.disk.remove_dir(key))

    def _read(self, key: str) -> None:
        world = self.world
        world.before_verb(self.node)
        if world.roll() < world.faults.unreadable:
            self.num_refused_reads += 1
            world.note(self.node.name, "cannot read", key)
            raise _refusal("read", key, errno.EIO)
        self.last_verb_at = world.now

    def change(self, verb: str, key: str, run: Callable[[], object], target: str = "") -> None:
        """Carry out a mutating verb, or refuse it, or carry it out and say that it failed."""
        world = self.world
        world.before_verb(self.node)
        if verb in _DECIDING:
            world.stall(self.node)
        if self.is_full and verb == "create_file" and self.num_staged():
            self.had_no_room = True
            world.note(self.node.name, "has no room for", key)
            raise _refusal(verb, key, errno.ENOSPC)
        struck = world.roll()
        self.num_refused += struck < world.faults.refuse
        if struck < world.faults.refuse / 2:
            number = world.random.choice(_ERRNOS)
            if verb == "rename" and key.startswith(("step-", "published/")):
                number = errno.EIO if number == errno.ENOSPC else number  # else removed in place
            if number == errno.ETIMEDOUT and verb in ("rename", "exchange"):
                self._carry_out_late(verb, key, run, target)
            self.had_no_room = self.had_no_room or number == errno.ENOSPC
            world.note(self.node.name, verb, key, target, "is refused:", errno.errorcode[number])
            raise _refusal(verb, key, number)
        self._carry_out(verb, key, run, target)
        if struck < world.faults.refuse:
            world.note(self.node.name, verb, key, target, "loses its answer")
            raise _refusal(verb, key, errno.EIO)

    def num_staged(self) -> int:
        """Return how many folders are staged."""
        try:
            return len(self.world.disk.list_dir(STAGING))
        except KeyNotFound:
            return 0

    def _carry_out(self, verb: str, key: str, run: Callable[[], object], target: str) -> None:
        self.world.note(self.node.name, verb, key, target)
        self.watcher.before_change(self, verb, key, target)
        run()
        self.last_verb_before, self.last_verb_at = self.last_verb_at, self.world.now
        self.watcher.after_change(self, verb, key, target)

    def _carry_out_late(self, verb: str, key: str, run: Callable[[], object], target: str) -> None:
        """Let the server do what was given up, whenever it likes, if it still can."""
        disk, had_no_room = self.world.disk, self.had_no_room

        def late() -> None:
            if self.world.disk is disk:
                self.last_verb_at = self.last_verb_before  # it was asked for long ago
                now, self.had_no_room = self.had_no_room, had_no_room
                with contextlib.suppress(StorageUnavailable):
                    self._carry_out(verb, key, run, target)
                self.had_no_room = now

        self.world.at(self.world.roll() * 30.0, late)


class _Writer:
    def __init__(self, disk: Disk, key: str, inner: WriteHandle) -> None:
        self._disk = disk
        self._key = key
        self._inner = inner
        self._failed = False

    def write(self, data: Buffer, offset: int) -> None:
        self._change("write", lambda: self._inner.write(data, offset))

    def sync(self) -> None:
        self._change("sync", self._inner.sync)

    def close(self) -> None:
        if not self._disk.node.alive:
            raise Killed
        self._inner.close()

    def _change(self, verb: str, run: Callable[[], object]) -> None:
        if self._failed:
            raise _refusal(verb, self._key, errno.EIO)
        try:
            self._disk.change(verb, self._key, run)
        except StorageUnavailable:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _refusal(verb: str, key: str, number: int) -> StorageUnavailable:
    return StorageUnavailable(
        f"cannot {verb} {key!r}: refused by the simulated disk [{errno.errorcode[number]}].",
        path=key,
        errno=number,
    )
