"""The step store for the coordinator, which claims, begins, publishes and discards.

Implements `protocol.CoordinatorSteps` on POSIX storage.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, NotRestored, StepExists, StorageUnavailable
from stepseal.layout import Area
from stepseal.steps._attempts import attempt_at, begin, discard
from stepseal.steps._catalog import list_steps, read_step, step_numbers
from stepseal.steps._claims import check_current, claim, claim_key
from stepseal.steps._durability import durability_of
from stepseal.steps._foreign import offer_foreign, warn_of_foreign
from stepseal.steps._full_disk import retry_after_discards, retry_after_sweep
from stepseal.steps._hidden import hidden_commits, put_back_pruned
from stepseal.steps._immovable import require_movable
from stepseal.steps._latest import point_latest
from stepseal.steps._leases import Lease, release_lease, take_lease
from stepseal.steps._publish import check_place, publish
from stepseal.steps._publishers import PublishingLife
from stepseal.steps._reopening import Reopening
from stepseal.steps._roots import initialise_root
from stepseal.steps._select import Selection, highest_incarnation, select
from stepseal.storage import make_dirs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from stepseal.layout import Manifest, StepRef
    from stepseal.steps._attempts import AttemptFolder
    from stepseal.steps._publish import Indexer
    from stepseal.storage import Storage

__all__ = ["Chosen", "OwnedSteps"]

_log = logging.getLogger("stepseal")
_SELECTIONS = 8
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class Chosen:
    """The step to restore, and why newer steps were not chosen."""

    ref: StepRef | None
    attempt: str
    has_commits: bool
    reasons: Mapping[str, str] = field(default_factory=dict)
    unverified: bool = False
    roles: Mapping[str, str] = field(default_factory=dict)


class OwnedSteps:
    """The steps of a root that this process may change.

    Args:
        storage: the root, existing and writable.
        indexer: writes the index and inspects files.
        lease_s: longest time from the selection of a candidate to the claim.
        clock: Unix time, for claims and leases.
        layered: steps may lie in a lower layer of an overlay, where they cannot be moved.
        reopening: opens the root again if its mount died.

    Raises:
        InvalidInput: the root is a DCP folder itself.
        IncompatibleFormat: the root was made by a newer format version.
        Corrupt: the root's marker is damaged, or missing although there are steps.
        StorageUnavailable: the root cannot be written.
    """

    def __init__(
        self,
        storage: Storage,
        indexer: Indexer,
        *,
        lease_s: float = 3600.0,
        clock: Callable[[], float] = time.time,
        layered: bool = False,
        reopening: Reopening | None = None,
    ) -> None:
        self._storage = storage
        self._layered = layered
        self._reopening = reopening or Reopening(storage)
        self._indexer = indexer
        self._lease_s = lease_s
        self._clock = clock
        self._lease: Lease | None = None
        self._aborted: set[str] = set()
        """Attempts whose removal has begun, or failed."""
        self._publishing = PublishingLife(storage)
        self.run_id = initialise_root(storage)
        self._reopening.remember()
        self.durability = durability_of(storage)

    def claim(self, parent: StepRef | None) -> int:
        """Claim the next incarnation; see `CoordinatorSteps`.

        Raises:
            StorageUnavailable: the parent was superseded during the restore, a step that is in the
                way of later saves cannot be moved, or storage refused.
        """
        if parent is not None:
            self._require_standing(parent)
        elif self._layered:
            require_movable(self._storage, None)
        above = highest_incarnation(self._storage, self.run_id, parent)
        number = self._claim_next(parent, above)
        self.release()  # the claim now protects its parent
        return number

    def claim_unrestored(self) -> int:
        """Claim the first incarnation of a root without steps; see `CoordinatorSteps`."""
        commits = [entry for entry in list_steps(self._storage) if entry.is_commit]
        names = [entry.name for entry in commits] or [*hidden_commits(self._storage)]
        if names:
            raise NotRestored(
                f"the root already holds steps up to {names[-1]} ({len(names)} in all), and "
                "restore() was not called. Call restore() before training, or restore(fresh=True) "
                "to start from scratch and keep them.",
                step=commits[-1].step if commits else None,
                path=names[-1],
            )
        return self._claim_next(None)

    def _claim_next(self, parent: StepRef | None, above: int = 0) -> int:
        def write() -> int:
            return claim(self._storage, parent, now_s=self._clock(), above=above)

        number = retry_after_sweep(self._storage, write)
        self._reopening.remember(claim_key(number))
        return number

    def _require_standing(self, parent: StepRef) -> None:
        """Raise if another start of the job has superseded the parent meanwhile."""
        entry = read_step(self._storage, parent.step, self.run_id)
        if entry.manifest_sha256 != parent.manifest_sha256:
            raise StorageUnavailable(
                f"restore: {entry.name} was superseded or damaged during the restore. Is another "
                "start of the job running on this root? Stop it, and restore again.",
                step=parent.step,
                path=entry.name,
            )

    def begin(self, step: int, incarnation: int, attempt: str) -> AttemptFolder:
        """Make the folder of a new attempt; see `CoordinatorSteps`."""

        def start() -> AttemptFolder:
            # Both are checked again at the commit; checking here avoids a useless write.
            check_current(self._storage, incarnation)
            check_place(self._storage, step, self.run_id)
            return self._begin_with_room(step, incarnation, attempt)

        return self._reopening.between_attempts(start)

    def _begin_with_room(
        self, step: int, incarnation: int, attempt: str, area: Area = Area.STEPS
    ) -> AttemptFolder:
        def make() -> AttemptFolder:
            if area is Area.PUBLISHED:
                make_dirs(self._storage, area.folder)
                self._publishing.start(incarnation)
            return begin(self._storage, step, incarnation, attempt, area)

        return retry_after_discards(self._storage, make, incarnation, tuple(self._aborted))

    def begin_publication(self, version: int, incarnation: int, attempt: str) -> AttemptFolder:
        """Make the folder of a new attempt to publish; see `CoordinatorSteps`."""
        return self._reopening.between_attempts(
            lambda: self._begin_publication(version, incarnation, attempt)
        )

    def _begin_publication(self, version: int, incarnation: int, attempt: str) -> AttemptFolder:
        check_current(self._storage, incarnation)
        newest = max(step_numbers(self._storage, Area.PUBLISHED), default=-1)
        if version <= newest:
            raise StepExists(
                f"{Area.PUBLISHED.title(version)}: expected a version above {newest}, as "
                f"{Area.PUBLISHED.key(newest)} exists: versions only grow, in all lives of the "
                f"job. Publish version {newest + 1} or a higher one.",
                step=version,
                path=Area.PUBLISHED.key(newest),
                expected=f"> {newest}",
                found=version,
            )
        return self._begin_with_room(version, incarnation, attempt, Area.PUBLISHED)

    def close(self) -> None:
        """End what shows that this life publishes, and the lease; see `CoordinatorSteps`."""
        self.release()
        self._publishing.close()

    def publish(
        self, attempt_key: str, draft: Manifest, *, deadline_passed: Callable[[], bool]
    ) -> str:
        """Commit an attempt; see `CoordinatorSteps`."""
        return publish(
            self._storage,
            attempt_key,
            draft,
            indexer=self._indexer,
            deadline_passed=deadline_passed,
        )

    def discard(self, attempt_key: str) -> None:
        """Remove an aborted attempt; see `CoordinatorSteps`."""
        self._aborted.add(attempt_key)  # until it is removed
        discard(self._storage, attempt_key)
        self._aborted.discard(attempt_key)

    def point_latest(self, step: int) -> None:
        """Make the advisory `latest` name this step; see `CoordinatorSteps`."""
        point_latest(self._storage, step)

    def select(self, *, step: int | None, exclude: Collection[int], unverified: bool) -> Chosen:
        """Choose the step to restore, and lease it; see `CoordinatorSteps`."""
        if unverified and (foreign := offer_foreign(self._storage, step, exclude)) is not None:
            return Chosen(foreign, "", has_commits=bool(exclude), unverified=True)
        found = self._reopening.between_attempts(
            lambda: retry_after_sweep(self._storage, lambda: self._select_leased(step, exclude))
        )
        if not found.has_commits:
            warn_of_foreign(self._storage)
        entry = found.entry
        if entry is None or entry.manifest is None:
            return Chosen(None, "", found.has_commits, found.reasons)
        roles = {one.name: one.role for one in entry.manifest.components if one.role}
        return Chosen(
            entry.ref(),
            entry.manifest.attempt,
            found.has_commits,
            found.reasons,
            roles=roles,
        )

    def _select_leased(self, step: int | None, exclude: Collection[int]) -> Selection:
        """Select a step, lease it, and check that it is still there; otherwise select again."""
        put_back_pruned(self._storage, self._clock())
        for _ in range(_SELECTIONS):
            self.release()
            found = select(
                self._storage,
                self.run_id,
                step=step,
                exclude=exclude,
                inspect=functools.partial(self._indexer.inspect, exact=False),
            )
            if found.entry is None or found.entry.manifest is None:
                return found
            if self._layered:
                require_movable(self._storage, found.entry.step)
            self._lease = self._take_lease(found.entry.step)
            if attempt_at(self._storage, found.entry.name) == found.entry.manifest.attempt:
                return found
        self.release()
        raise StorageUnavailable(
            f"restore: {_SELECTIONS} selected steps in a row were pruned before they could be "
            "leased. Is another job or `stepseal prune` running on this root? Stop it."
        )

    def _take_lease(self, step: int) -> Lease:
        try:
            return take_lease(self._storage, step, ttl_s=self._lease_s, now_s=self._clock())
        except StorageUnavailable as error:
            if error.errno not in _READ_ONLY:
                raise
            raise StorageUnavailable(
                f"restore: a job claims its root, and this root cannot be written: {error} To only "
                "read it, use ss.load(root, model=model) for live objects, or ss.open(root).",
                step=step,
                path=error.path,
                errno=error.errno,
            ) from error

    def release(self) -> None:
        """End the lease on a candidate; a failure is only logged, because the lease expires."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            release_lease(self._storage, lease)
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: a lease was not released and will expire: %s", error)
