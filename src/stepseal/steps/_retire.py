"""Removes steps and publications: moves them to the trash, checks them again, and deletes them.

Invariants:

- One rename moves a whole step to the trash, and the move is durable before any byte is deleted.
- A step is put back if the second check finds it protected, or finds another step than was judged.
- The name decides about a folder in the trash: `.pruned` is a whole step; `.deleting` is partly
  deleted, and is never put back.
- A step that the storage refuses to move is removed where it lies; see `_in_place`.
- After a failed sync, nothing more is moved or deleted: earlier changes may be lost, and a later
  successful sync does not prove the opposite.
- Names that stepseal did not give are left alone; symlinks and mounts are never entered.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, NotCurrent, StorageUnavailable
from stepseal.layout import MANIFEST, Area, duration_text
from stepseal.steps._attempts import attempt_at
from stepseal.steps._claims import check_current
from stepseal.steps._folders import FolderName, parse_folder
from stepseal.steps._guards import read_guards
from stepseal.steps._in_place import (
    cannot_move,
    finish_in_place,
    remove_in_place,
    retire_in_place,
)
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import KeyExists, KeyNotFound, exists, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stepseal.steps._guards import Guards
    from stepseal.steps._remembered import KnownStep
    from stepseal.storage import Storage

__all__ = ["PruneReport", "Retirement", "reasons_to_go_back"]


@dataclass(slots=True)
class PruneReport:
    """What a prune of steps, or of publications, did; numbers are steps or versions."""

    removed: list[int] = field(default_factory=list)
    """Steps that were removed, durably."""
    in_trash: dict[int, str] = field(default_factory=dict)
    """Steps that were moved to the trash and not deleted yet, with the reason."""
    put_back: dict[int, str] = field(default_factory=dict)
    """Steps that stay although the plan removed them, with the reason."""
    removed_superseded: list[str] = field(default_factory=list)
    removed_trash: list[str] = field(default_factory=list)
    """Names of folders that were in the trash already and were deleted."""
    put_back_trash: dict[str, str] = field(default_factory=dict)
    """Folders that were put back from the trash, with the reason."""
    failures: list[str] = field(default_factory=list)
    """Failed actions and their reasons; all other actions were done, unless a sync failed."""
    sync_failed: bool = False
    """A directory could not be synced; nothing was deleted after that. If a later prune in the same
    process syncs successfully, this does not repair the failed sync."""


def reasons_to_go_back(storage: Storage, folder: FolderName, guards: Guards) -> str:
    """Return why a whole folder in the trash must be put back; empty if it may be deleted.

    Raises:
        StorageUnavailable: the folder cannot be read.
    """
    held = attempt_at(storage, f"{TRASH}/{folder}")
    if held is None and not exists(storage, f"{TRASH}/{folder}/{MANIFEST}"):
        return ""  # it was whole when it was moved: its deletion in place has begun
    if held is None:
        return "its manifest is damaged"
    if held != folder.attempt:
        return "another attempt had taken its place"
    return "; ".join(guards.reasons(folder.step))


class Retirement:
    """Removes steps of one root, one after another, as one incarnation.

    Safe to interrupt at any time, and to run concurrently with readers, pins, and another start of
    the job.

    Args:
        storage: the root.
        incarnation: the newest incarnation when the steps were judged.
        trash_grace_s: seconds to keep a step in the trash after its move.
        trashed: names of folders that were in the trash before.
        clock: Unix time.
        lease_clock: Unix time by which leases are judged.
    """

    def __init__(
        self,
        storage: Storage,
        incarnation: int,
        *,
        trash_grace_s: float,
        trashed: Collection[str],
        clock: Callable[[], float],
        lease_clock: Callable[[], float],
    ) -> None:
        self.report = PruneReport()
        self._storage = storage
        self._incarnation = incarnation
        self._trashed = frozenset(trashed)
        self._trash_grace_s = trash_grace_s
        self._clock = clock
        self._lease_clock = lease_clock

    def attempt(self, action: Callable[..., None], *arguments: object) -> None:
        """Run one action and note a failure; only a failed sync stops later actions.

        Raises:
            NotCurrent: a newer incarnation owns the root; completed removals are not undone.
        """
        if self.report.sync_failed:
            return
        try:
            action(*arguments)
        except NotCurrent:
            raise
        except CheckpointError as error:
            self.report.failures.append(str(error))

    def confirm_commits(self, area: Area = Area.STEPS) -> None:
        """Sync an area, so that newer commits are durable before older ones are removed."""
        self._sync(area.folder)

    def _sync(self, area: str) -> None:
        """Make the names in a directory durable; a failure ends the prune."""
        try:
            self._storage.sync_dir(area)
        except StorageUnavailable as error:
            self.report.sync_failed = True
            raise StorageUnavailable(
                f"sync of {area or 'the root'}: {error} Moved folders may reappear after a power "
                "loss, and a later sync cannot rule this out, so nothing more is removed. Check "
                "the disk, then start again.",
                errno=error.errno,
                path=area,
            ) from error

    def remove_step(self, known: KnownStep) -> None:
        """Move one step to the trash, and delete it unless it turns out to be protected."""
        self._check_current()
        area = known.area
        whose = FolderName(known.step, known.incarnation, known.attempt, area=area)
        name = whose.moved(self._clock(), ".pruned")
        try:
            self._storage.rename(name.place, f"{TRASH}/{name}")
        except KeyNotFound:
            return  # another process has moved it
        except StorageUnavailable as error:
            if not cannot_move(error):
                raise
            self._remove_in_place(name, error)
            return
        self.report.in_trash[name.step] = "moved into the trash, but not deleted yet"
        self._sync(area.folder)
        self._sync(TRASH)
        self._finish(name)

    def _finish(self, name: FolderName) -> None:
        """Delete or put back a step that this prune has moved, and report it."""
        grace_s = self._trash_grace_s
        with suppress(KeyNotFound):  # another prune finished it, and reports it
            if self._settle(name, delete=not grace_s):
                self.report.removed.append(name.step)
        self.report.in_trash.pop(name.step, None)
        if grace_s and name.step in self.report.removed:
            self.report.in_trash[name.step] = (
                f"this prune keeps it in the trash for {duration_text(grace_s)}; a job on this "
                "root uses its own grace"
            )

    def _remove_in_place(self, name: FolderName, refusal: StorageUnavailable) -> None:
        """Remove a step that cannot be moved; without the trash, it has no grace there."""
        if self._trash_grace_s:
            raise StorageUnavailable(
                f"{name.place}: expected to keep it in the trash for "
                f"{duration_text(self._trash_grace_s)}, but it cannot be moved there: {refusal} It "
                "stays. A prune without a grace for the trash removes it where it lies.",
                errno=refusal.errno,
                path=name.place,
            ) from refusal
        try:
            reasons = retire_in_place(
                self._storage, name, lambda: self._reasons_in_place(name), self._sync
            )
        except KeyNotFound:
            raise refusal from None
        if reasons:
            self.report.put_back[name.step] = reasons
        else:
            self.report.removed.append(name.step)

    def _reasons_in_place(self, name: FolderName) -> str:
        reasons = read_guards(self._storage, self._lease_clock(), name.area).reasons(name.step)
        self._check_current()
        return "; ".join(reasons)

    def remove_superseded(self, name: str) -> None:
        """Delete one folder of the superseded area."""
        self._check_current()
        folder = parse_folder(name)
        assert folder is not None
        trash = f"{TRASH}/{folder.with_fate('.deleting')}"
        try:
            self._delete_as(f"{SUPERSEDED}/{name}", trash, SUPERSEDED)
        except KeyNotFound:
            return
        self.report.removed_superseded.append(name)

    def settle_trashed(self, trashed: str, delete: bool) -> None:
        """Finish an earlier prune of one folder: put it back, or delete it."""
        name = parse_folder(trashed, None)
        assert name is not None
        if name.fate == ".in-place":
            finish_in_place(self._storage, name, self._sync)
        elif name.fate == ".deleting":
            self._sync(TRASH)  # the process that renamed it may have died before its sync
            self._delete(f"{TRASH}/{name}")
        else:
            self._sync(name.area.folder)  # the process that moved it may have died before its sync
            try:
                delete = self._settle(name, delete=delete) and delete
            except KeyNotFound:  # another prune finished it
                return
        if delete:
            self.report.removed_trash.append(trashed)

    def _settle(self, name: FolderName, *, delete: bool) -> bool:
        """Check a whole folder in the trash again: put it back, or delete it if `delete` is true.

        Returns:
            True if it was not put back.
        """
        try:
            reasons = self._reasons_to_stay(name)
        except CheckpointError:
            self._put_back(name, "its protection could not be read")
            raise
        if reasons:
            self._put_back(name, reasons)
            return False
        self._check_current_or_put_back(name)
        if not delete:
            return True
        self._delete_as(f"{TRASH}/{name}", f"{TRASH}/{name.with_fate('.deleting')}", TRASH)
        return True

    def _delete_as(self, key: str, dying: str, area: str) -> None:
        """Give a folder another name, as it must not have that of a whole one; then delete it.

        Raises:
            KeyNotFound: another prune was faster.
        """
        try:
            self._storage.rename(key, dying)
        except StorageUnavailable as error:
            if not cannot_move(error):
                raise
            remove_in_place(self._storage, key)
        else:
            self._sync(area)
            self._delete(dying)

    def _reasons_to_stay(self, name: FolderName) -> str:
        guards = read_guards(self._storage, self._lease_clock(), name.area)
        return reasons_to_go_back(self._storage, name, guards)

    def _check_current(self) -> None:
        check_current(self._storage, self._incarnation)

    def _check_current_or_put_back(self, name: FolderName) -> None:
        try:
            self._check_current()
        except NotCurrent:
            self._put_back(name, "a newer incarnation claimed the root")
            raise

    def _put_back(self, name: FolderName, why: str) -> None:
        trash, area = f"{TRASH}/{name}", name.area.folder
        try:
            self._storage.rename(trash, name.place)
        except KeyExists:  # the number was saved again, so this step is superseded
            area = SUPERSEDED
            self._storage.rename(trash, f"{area}/{name.with_fate('')}")
        if str(name) in self._trashed:
            self.report.put_back_trash[str(name)] = why
        else:
            self.report.in_trash.pop(name.step, None)
            self.report.put_back[name.step] = why
        self._sync(area)
        self._sync(TRASH)

    def _delete(self, key: str) -> None:
        try:
            remove_tree(self._storage, key)
        except KeyNotFound:
            return  # another process has removed it
