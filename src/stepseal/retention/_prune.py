"""Steps taken out of sight first, looked at again second, deleted last.

Invariants: a step leaves its place whole, by one rename, and its absence is durable before a byte
of it is deleted. What is found protected, or not what was judged, after the move goes back. A
folder in the trash is put back or deleted by its name alone: `.pruned` is whole, `.deleting` is
not, and is never put back. Names that stepseal did not give are left alone; symlinks and mounts are
never entered.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from stepseal.commit import (
    SUPERSEDED,
    TRASH,
    FolderName,
    attempt_at,
    check_current,
    parse_folder,
    read_guards,
)
from stepseal.errors import CheckpointError, NotCurrent
from stepseal.layout import step_name
from stepseal.storage import KeyExists, KeyNotFound, remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import Manifest
    from stepseal.retention._plan import Plan
    from stepseal.retention._rules import Retention
    from stepseal.storage import Storage

__all__ = ["PruneReport", "prune"]

T = TypeVar("T")


@dataclass(slots=True)
class PruneReport:
    """What was done."""

    removed: list[int] = field(default_factory=list)
    """Steps that are gone."""
    put_back: dict[int, str] = field(default_factory=dict)
    """Steps that had to stay after all, with the reason."""
    removed_superseded: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """What could not be done, and why; all the rest was."""


def prune(
    storage: Storage,
    plan: Plan,
    retention: Retention,
    *,
    clock: Callable[[], float],
) -> PruneReport:
    """Carry out a plan: the oldest step first, one after another.

    Safe to interrupt at any instant and to run beside readers, pins, and another start of the job.

    Args:
        storage: the root.
        plan: of this root; void when another incarnation has claimed the root since.
        retention: by which it was made.
        clock: Unix time.

    Raises:
        NotCurrent: a newer incarnation owns the root; what was done so far stays done.
        StorageUnavailable: the steps that stay could not be made durable; nothing was removed.

    Durability: a step that is reported as removed stays removed after power loss.
    """
    work = _Prune(storage, plan, retention, clock)
    verdicts = ((plan.entries[v.step].manifest, v.keep) for v in plan.steps)
    doomed = [manifest for manifest, keep in verdicts if not keep and manifest is not None]
    if doomed:
        storage.sync_dir("")  # the newer steps of the plan may be visible, but not durable yet
    for manifest in doomed:
        work.attempt(work.remove_step, manifest)
    for aside in plan.superseded:
        if not aside.keep:
            work.attempt(work.remove_superseded, aside.name)
    work.attempt(work.empty_trash, TRASH)
    return work.report


class _Prune:
    """One run over one plan."""

    def __init__(
        self, storage: Storage, plan: Plan, retention: Retention, clock: Callable[[], float]
    ) -> None:
        self.report = PruneReport()
        self._storage = storage
        self._incarnation = plan.incarnation
        self._retention = retention
        self._clock = clock

    def attempt(self, action: Callable[[T], object], argument: T) -> None:
        """Do one thing; a failure is noted and does not stop the others."""
        try:
            action(argument)
        except NotCurrent:
            raise
        except CheckpointError as error:
            self.report.failures.append(str(error))

    def remove_step(self, manifest: Manifest) -> None:
        """Take one step out of its place, and delete it unless it turns out to be protected."""
        self._check_current()
        whose = FolderName(manifest.step, manifest.incarnation, manifest.attempt)
        name = whose.moved(self._clock(), ".pruned")
        try:
            self._storage.rename(step_name(manifest.step), f"{TRASH}/{name}")
        except KeyNotFound:
            return  # somebody else took it
        self._storage.sync_dir("")
        self._storage.sync_dir(TRASH)
        with suppress(KeyNotFound):  # another prune finished it, and reports it
            if self._settle(name) and manifest.step not in self.report.put_back:
                self.report.removed.append(manifest.step)

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
        self._storage.sync_dir(SUPERSEDED)
        self._delete(trash)
        self.report.removed_superseded.append(name)

    def empty_trash(self, area: str) -> None:
        """Finish what earlier prunes began: put back what is protected now, delete the rest."""
        for entry in self._storage.list_dir(area):
            name = parse_folder(entry.name)
            if name is not None and name.fate == ".deleting":
                self.attempt(self._delete, f"{area}/{name}")
            elif name is not None and name.fate == ".pruned":
                self.attempt(self._settle_again, name)

    def _settle_again(self, name: FolderName) -> None:
        self._storage.sync_dir("")  # who moved it may have died, or failed, before it did so
        with suppress(KeyNotFound):  # another prune finished it
            self._settle(name)

    def _settle(self, name: FolderName) -> bool:
        """Look again at a step that was moved: put it back, leave it for its grace, or delete it.

        Returns:
            True if it stays out of its place.
        """
        assert name.moved_at_s is not None
        try:
            reasons = self._reasons_to_stay(name)
        except CheckpointError:
            self._put_back(name, "its protection could not be read")
            raise
        if reasons:
            self._put_back(name, reasons)
            return False
        self._check_current_or_put_back(name)
        if self._clock() - name.moved_at_s < self._retention.trash_grace_s:
            return True
        dying = f"{TRASH}/{name.with_fate('.deleting')}"
        self._storage.rename(f"{TRASH}/{name}", dying)
        self._storage.sync_dir(TRASH)  # a half-deleted folder never bears the name of a whole one
        self._delete(dying)
        return True

    def _reasons_to_stay(self, name: FolderName) -> str:
        if attempt_at(self._storage, f"{TRASH}/{name}") != name.attempt:
            return "another attempt had taken its place"
        return "; ".join(read_guards(self._storage, self._clock()).reasons(name.step))

    def _check_current(self) -> None:
        if self._incarnation:
            check_current(self._storage, self._incarnation)

    def _check_current_or_put_back(self, name: FolderName) -> None:
        try:
            self._check_current()
        except NotCurrent:
            self._put_back(name, "a newer incarnation claimed the root")
            raise

    def _put_back(self, name: FolderName, why: str) -> None:
        trash = f"{TRASH}/{name}"
        try:
            self._storage.rename(trash, step_name(name.step))
            self._storage.sync_dir("")
        except KeyExists:  # the number was saved again: beside it, this one is superseded
            self._storage.rename(trash, f"{SUPERSEDED}/{name.with_fate('')}")
            self._storage.sync_dir(SUPERSEDED)
        self._storage.sync_dir(TRASH)
        self.report.put_back[name.step] = why

    def _delete(self, key: str) -> None:
        try:
            remove_tree(self._storage, key)
        except KeyNotFound:
            return  # somebody else finished it
