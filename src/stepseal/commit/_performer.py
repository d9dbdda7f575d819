"""What the coordinator's protocol asks for, done on storage.

Invariants: whatever goes wrong becomes an event, so that every participant hears of it; removing
leftovers and moving `latest` never fail a save. Runs on one thread, but for `housekeep` and
`discard_aborted`, which delete: that may take long, and has a thread of its own.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepseal.commit import _actions as actions
from stepseal.commit import _causes as causes
from stepseal.commit._attempts import attempt_at, begin, discard
from stepseal.commit._catalog import list_steps, read_step
from stepseal.commit._claims import check_current, claim
from stepseal.commit._draft import JobFacts, Origin, draft_manifest
from stepseal.commit._durability import durability_of
from stepseal.commit._foreign import offer_foreign, warn_of_foreign
from stepseal.commit._leases import Lease, release_lease, take_lease
from stepseal.commit._out_of_place import commits_out_of_place, put_back_pruned
from stepseal.commit._publish import Finisher, PublishUnconfirmed, check_place, publish
from stepseal.commit._resume import Selection, highest_incarnation, select
from stepseal.commit._room import with_room
from stepseal.commit._roots import initialise_root
from stepseal.errors import CheckpointError, InternalError, NotRestored, StorageUnavailable
from stepseal.layout import LATEST, Lineage, step_name
from stepseal.storage import replace_durable

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.storage import Storage

    Housekeep = Callable[[str, int, bool], None]
    """Run id, incarnation, whether it has committed: what is done after a claim and after each
    commit; raises nothing."""

__all__ = ["Performer", "discard_aborted"]

_log = logging.getLogger("stepseal")
_SELECTIONS = 8


@dataclass(slots=True)
class _Incarnation:
    """What the coordinator knows of its own life."""

    run_id: str
    number: int | None = None
    head: Lineage | None = None
    """Step that the next one names as its parent."""
    lease: Lease | None = None
    """On the candidate of the restore in progress."""


class Performer:
    """Performs actions on one root, and remembers which incarnation this is.

    Args:
        storage: the root, existing and writable.
        participants: everyone, in ordinal order.
        finisher: writes the index and inspects files.
        facts: what goes into each manifest.
        lease_s: longest time from the selection of a candidate to the claim.
        housekeep: sweeps and prunes.
        clock: Unix time, for claims, leases and manifests.

    Raises:
        InvalidInput: the root is a DCP folder itself.
        IncompatibleFormat: the root was made by a newer format version.
        Corrupt: the root's marker is damaged, or missing although there are steps.
        StorageUnavailable: the root cannot be written.
    """

    def __init__(
        self,
        storage: Storage,
        participants: tuple[str, ...],
        *,
        finisher: Finisher,
        facts: JobFacts,
        lease_s: float = 3600.0,
        housekeep: Housekeep | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._participants = participants
        self._finisher = finisher
        self._facts = facts
        self._lease_s = lease_s
        self._housekeep = housekeep
        self._clock = clock
        self._life = _Incarnation(initialise_root(storage))
        self._durability = durability_of(storage)

    def perform(
        self, action: actions.BeginStaging | actions.Publish | actions.Select | actions.Claim
    ) -> actions.DriverEvent:
        """Perform one action; whatever goes wrong becomes an event for all participants."""
        try:
            match action:
                case actions.BeginStaging():
                    return self._begin(action)
                case actions.Publish():
                    return self._publish(action)
                case actions.Select():
                    return self._select(action)
                case actions.Claim():  # pragma: no branch - no other is taken
                    return self._claim(action)
        except PublishUnconfirmed as error:
            return actions.PublishUnknown(action.call, causes.cause_of(error))
        except (CheckpointError, OSError) as error:
            return actions.IoFailed(action.call, causes.cause_of(error))
        except Exception as error:
            _log.exception("stepseal: defect in the coordinator")
            text = f"{type(error).__name__}: {error} (a defect; see the coordinator's log)"
            cause = causes.cause_of(InternalError(text))
            if isinstance(action, actions.Publish):  # where it stopped is not known
                return actions.PublishUnknown(action.call, cause)
            return actions.IoFailed(action.call, cause)

    def after_commit(self) -> None:
        """Move `latest`; a failure is only logged."""
        assert self._life.head is not None
        step = self._life.head.step
        try:
            replace_durable(self._storage, LATEST, f"{step_name(step)}\n".encode())
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: after the commit of step %d: %s", step, error)

    def housekeep(self) -> None:
        """Sweep after a claim, and prune after a commit; may run beside everything else here."""
        if self._housekeep is not None and self._life.number is not None:
            head, number = self._life.head, self._life.number
            committed = head is not None and head.incarnation == number
            self._housekeep(self._life.run_id, number, committed)

    def close(self) -> None:
        """End the lease of a restore that did not come to its claim; a failure is only logged."""
        lease, self._life.lease = self._life.lease, None
        if lease is None:
            return
        try:
            release_lease(self._storage, lease)
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: the lease on a step ends by itself: %s", error)

    def _begin(self, action: actions.BeginStaging) -> actions.Staged:
        number = self._life.number
        if number is None:
            number = self._life.number = self._claim_unrestored()
        # both are judged again at the commit; here they spare a write that would be for nothing
        check_current(self._storage, number)
        check_place(self._storage, action.step, self._life.run_id)
        staging = begin(self._storage, action.step, number, action.attempt)
        return actions.Staged(action.call, staging.key, staging.nonce)

    def _claim_unrestored(self) -> int:
        commits = [entry for entry in list_steps(self._storage) if entry.is_commit]
        names = [entry.name for entry in commits] or [*commits_out_of_place(self._storage)]
        if names:
            raise NotRestored(
                f"the root already holds steps up to {names[-1]} ({len(names)} in all), and "
                "restore() was not called. Call restore() before training, or restore(fresh=True) "
                "to start anew beside them.",
                step=commits[-1].step if commits else None,
                path=names[-1],
            )
        return self._claim_next(None)

    def _claim_next(self, parent: Lineage | None, above: int = 0) -> int:
        def write() -> int:
            return claim(self._storage, parent, now_s=self._clock(), above=above)

        return with_room(self._storage, write)

    def _publish(self, action: actions.Publish) -> actions.Published:
        life = self._life
        assert life.number is not None
        origin = Origin(life.run_id, life.number, life.head, self._participants, self._durability)
        draft = draft_manifest(action, origin, self._facts, now_s=self._clock())
        sha256 = publish(
            self._storage,
            action.staging,
            draft,
            finisher=self._finisher,
            deadline_passed=lambda: time.monotonic() > action.deadline,
        )
        life.head = Lineage(action.step, sha256, life.number)
        return actions.Published(action.call, sha256)

    def _select(self, action: actions.Select) -> actions.Selected:
        if action.unverified and (foreign := offer_foreign(self._storage, action)) is not None:
            return foreign
        found = self._select_leased(action)
        if not found.has_commits:
            warn_of_foreign(self._storage)
        lineage = None if found.entry is None else found.entry.lineage()
        manifest = None if found.entry is None else found.entry.manifest
        attempt = "" if manifest is None else manifest.attempt
        return actions.Selected(action.call, lineage, attempt, found.has_commits, found.reasons)

    def _select_leased(self, action: actions.Select) -> Selection:
        """Select, lease what was selected, and look whether it still stands: else select again."""
        put_back_pruned(self._storage, self._clock())
        for _ in range(_SELECTIONS):
            self.close()
            found = select(
                self._storage,
                self._life.run_id,
                step=action.step,
                exclude=action.exclude,
                inspect=functools.partial(self._finisher.inspect, exact=False),
            )
            if found.entry is None or found.entry.manifest is None:
                return found
            self._life.lease = with_room(
                self._storage, functools.partial(self._take_lease, found.entry.step)
            )
            if attempt_at(self._storage, found.entry.name) == found.entry.manifest.attempt:
                return found
        self.close()
        raise StorageUnavailable(
            f"restore: {_SELECTIONS} selected steps in a row were pruned before they could be "
            "leased. Is another job or `stepseal prune` at work on this root? Stop it."
        )

    def _take_lease(self, step: int) -> Lease:
        return take_lease(self._storage, step, ttl_s=self._lease_s, now_s=self._clock())

    def _claim(self, action: actions.Claim) -> actions.Claimed:
        if action.parent is not None:
            self._require_standing(action.parent)
        above = highest_incarnation(self._storage, self._life.run_id, action.parent)
        self._life.number = self._claim_next(action.parent, above)
        self._life.head = action.parent
        self.close()  # as the parent of a claim it is protected without a lease
        return actions.Claimed(action.call, self._life.number)

    def _require_standing(self, parent: Lineage) -> None:
        """Refuse to descend from a step that another start of the job superseded meanwhile."""
        entry = read_step(self._storage, parent.step, self._life.run_id)
        if entry.manifest_sha256 != parent.manifest_sha256:
            raise StorageUnavailable(
                f"restore: {entry.name} was superseded, or damaged, while it was restored. Is "
                "another start of the job at work on this root? Stop it, and restore again.",
                step=parent.step,
                path=entry.name,
            )


def discard_aborted(storage: Storage, action: actions.Discard) -> None:
    """Remove the folder of an aborted attempt, beside everything else; a failure is only logged."""
    try:
        discard(storage, action.staging)
    except (CheckpointError, OSError) as error:
        _log.warning("stepseal: leftovers of an aborted save stay for the next sweep: %s", error)
