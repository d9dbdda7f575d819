"""Steps taken out of sight first, looked at again second, deleted last.

Invariants: a step leaves its place whole, by one rename, and its absence is durable before a byte
of it is deleted. What is found protected, or not what was judged, after the move goes back. A
folder in the trash is put back or deleted by its name alone: `.pruned` is whole, `.deleting` is
not, and is never put back. Once a sync failed nothing more is moved or deleted: what it was for may
be lost, and another sync that succeeds would not say otherwise. Names that stepseal did not give
are left alone; symlinks and mounts are never entered.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, NotCurrent, StorageUnavailable
from stepseal.layout import duration_text, step_name
from stepseal.steps._attempts import attempt_at
from stepseal.steps._claims import check_current
from stepseal.steps._folders import FolderName, parse_folder
from stepseal.steps._guards import read_guards
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import KeyExists, KeyNotFound, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from stepseal.layout import Manifest
    from stepseal.steps._guards import Guards
    from stepseal.storage import Storage

__all__ = ["PruneReport", "Retirement", "reasons_to_go_back"]


@dataclass(slots=True)
class PruneReport:
    """What was done."""

    removed: list[int] = field(default_factory=list)
    """Steps that are gone from their place, durably."""
    in_trash: dict[int, str] = field(default_factory=dict)
    """Steps that were moved into the trash and whose files still lie there, with the reason."""
    put_back: dict[int, str] = field(default_factory=dict)
    """Steps that had to stay after all, with the reason."""
    removed_superseded: list[str] = field(default_factory=list)
    removed_trash: list[str] = field(default_factory=list)
    """Folders that lay in the trash already."""
    put_back_trash: dict[str, str] = field(default_factory=dict)
    """Folders of the trash that went back, with the reason."""
    failures: list[str] = field(default_factory=list)
    """What could not be done, and why; all the rest was, unless a sync failed."""
    sync_failed: bool = False
    """A directory could not be synced; nothing was deleted after that. Who prunes again in the same
    process must not take a sync that succeeds then for this one."""


def reasons_to_go_back(storage: Storage, folder: FolderName, guards: Guards) -> str:
    """Return why a whole folder in the trash must not be deleted; empty when it may be.

    Raises:
        StorageUnavailable: it cannot be told.
    """
    held = attempt_at(storage, f"{TRASH}/{folder}")
    if held is None:
        return "its manifest is missing or damaged"
    if held != folder.attempt:
        return "another attempt had taken its place"
    return "; ".join(guards.reasons(folder.step))


class Retirement:
    """Removes steps of one root, one after another, as one incarnation.

    Safe to interrupt at any instant and to run beside readers, pins, and another start of the job.

    Args:
        storage: the root.
        incarnation: that was the newest when the steps were judged.
        trash_grace_s: seconds that a step which is hidden now stays in the trash.
        trashed: names of what lay in the trash before.
        clock: Unix time.
    """

    def __init__(
        self,
        storage: Storage,
        incarnation: int,
        *,
        trash_grace_s: float,
        trashed: Collection[str],
        clock: Callable[[], float],
    ) -> None:
        self.report = PruneReport()
        self._storage = storage
        self._incarnation = incarnation
        self._trashed = frozenset(trashed)
        self._trash_grace_s = trash_grace_s
        self._clock = clock

    def attempt(self, action: Callable[..., None], *arguments: object) -> None:
        """Do one thing; a failure is noted, and stops the others only if a sync failed.

        Raises:
            NotCurrent: a newer incarnation owns the root; what was done so far stays done.
        """
        if self.report.sync_failed:
            return
        try:
            action(*arguments)
        except NotCurrent:
            raise
        except CheckpointError as error:
            self.report.failures.append(str(error))

    def confirm_commits(self) -> None:
        """Make durable what is visible: newer steps, for which older ones are removed."""
        self._sync("")

    def _sync(self, area: str) -> None:
        """Make the names in a directory durable; a failure ends the prune."""
        try:
            self._storage.sync_dir(area)
        except StorageUnavailable as error:
            self.report.sync_failed = True
            raise StorageUnavailable(
                f"sync of {area or 'the root'}: {error} What was moved may come back after a "
                "power loss, and another sync would not prove otherwise, so nothing more is "
                "removed. Look after the disk, then start again.",
                errno=error.errno,
                path=area,
            ) from error

    def remove_step(self, manifest: Manifest) -> None:
        """Take one step out of its place, and delete it unless it turns out to be protected."""
        self._check_current()
        whose = FolderName(manifest.step, manifest.incarnation, manifest.attempt)
        name = whose.moved(self._clock(), ".pruned")
        try:
            self._storage.rename(step_name(manifest.step), f"{TRASH}/{name}")
        except KeyNotFound:
            return  # somebody else took it
        self.report.in_trash[name.step] = "moved into the trash, but not deleted yet"
        self._sync("")
        self._sync(TRASH)
        self._finish(name)

    def _finish(self, name: FolderName) -> None:
        """Settle what this prune has moved, and report it."""
        grace_s = self._trash_grace_s
        with suppress(KeyNotFound):  # another prune finished it, and reports it
            if self._settle(name, delete=not grace_s):
                self.report.removed.append(name.step)
        self.report.in_trash.pop(name.step, None)
        if grace_s and name.step in self.report.removed:
            self.report.in_trash[name.step] = (
                f"kept in the trash for {duration_text(grace_s)}, by this prune; a job on this "
                "root goes by its own grace"
            )

    def remove_superseded(self, name: str) -> None:
        """Delete one folder of the superseded area."""
        self._check_current()
        folder = parse_folder(name)
        assert folder is not None
        trash = f"{TRASH}/{folder.with_fate('.deleting')}"
        try:
            self._storage.rename(f"{SUPERSEDED}/{name}", trash)
        except KeyNotFound:
            return
        self._sync(SUPERSEDED)
        self._delete(trash)
        self.report.removed_superseded.append(name)

    def settle_trashed(self, trashed: str, delete: bool) -> None:
        """Finish what an earlier prune began with one folder: put it back, or delete it."""
        name = parse_folder(trashed)
        assert name is not None
        if name.fate == ".deleting":
            self._sync(TRASH)  # who gave it this name may have died before it did so
            self._delete(f"{TRASH}/{name}")
        else:
            self._sync("")  # who moved it may have died, or failed, before it did so
            try:
                delete = self._settle(name, delete=delete) and delete
            except KeyNotFound:  # another prune finished it
                return
        if delete:
            self.report.removed_trash.append(trashed)

    def _settle(self, name: FolderName, *, delete: bool) -> bool:
        """Look again at a whole folder in the trash: put it back, or delete it where that is asked.

        Returns:
            True if it stays out of its place.
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
        dying = f"{TRASH}/{name.with_fate('.deleting')}"
        self._storage.rename(f"{TRASH}/{name}", dying)
        self._sync(TRASH)  # a half-deleted folder never bears the name of a whole one
        self._delete(dying)
        return True

    def _reasons_to_stay(self, name: FolderName) -> str:
        guards = read_guards(self._storage, self._clock())
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
        trash, area = f"{TRASH}/{name}", ""
        try:
            self._storage.rename(trash, step_name(name.step))
        except KeyExists:  # the number was saved again: beside it, this one is superseded
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
            return  # somebody else finished it
