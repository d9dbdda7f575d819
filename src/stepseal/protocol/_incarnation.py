"""Carries out the actions of the coordinator's protocol on the step store, for one incarnation.

Every error becomes an event, so that all participants receive it. A failure to remove leftovers or
to move `latest` never fails a save. Runs on one thread, except for `housekeep` and
`discard_aborted`: deletions may take long and have their own thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from stepseal.errors import CheckpointError, InternalError, OutcomeUnknown
from stepseal.layout import Area, StepRef
from stepseal.process import own_time_s
from stepseal.protocol import _actions as actions
from stepseal.protocol._draft import JobInfo, Origin, draft_manifest
from stepseal.protocol._failures import failure_of
from stepseal.protocol._figures import Figures

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.protocol._figures import Cost
    from stepseal.protocol._steps import CoordinatorSteps, DiscardAttempts

__all__ = ["Announce", "Housekeep", "Incarnation", "discard_aborted"]

Housekeep = Callable[[str, int, bool], None]
"""Called after a claim and after each commit, with the run id, the incarnation, and whether it has
committed. Never raises."""


class Announce(Protocol):
    """Tells others of each commit; neither method raises."""

    def commit(self, manifest: Manifest, sha256: str, cost: Cost) -> None:
        """Hand on a commit; called in the order of commits, once each is durable. Never blocks.

        Args:
            manifest: of the step.
            sha256: its digest.
            cost: see `Figures.of_commit`.
        """
        ...

    def close(self) -> None:
        """Wait, within a limit, until all were told."""
        ...


_log = logging.getLogger("stepseal")


class Incarnation:
    """Carries out actions on the step store, and remembers which incarnation this is.

    Args:
        steps: the root.
        job: facts for each manifest.
        housekeep: sweeps and prunes.
        announce: tells others of each commit.
        clock: Unix time, for manifests.
    """

    def __init__(
        self,
        steps: CoordinatorSteps,
        *,
        job: JobInfo,
        housekeep: Housekeep | None = None,
        announce: Announce | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._steps = steps
        self._job = job
        self._housekeep = housekeep
        self._announce = announce
        self._clock = clock
        self.number: int | None = None
        """None until the root is claimed."""
        self._head: StepRef | None = None
        """The parent of the next step."""
        self._committed: tuple[Manifest, Cost] | None = None
        """The step that `latest` does not name yet, and nobody was told of."""

    def perform(
        self, action: actions.BeginStaging | actions.Publish | actions.Select | actions.Claim
    ) -> actions.DriverEvent:
        """Perform one action; an error becomes an event for all participants."""
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
        except OutcomeUnknown as error:
            return actions.PublishUnknown(action.call, failure_of(error))
        except (CheckpointError, OSError) as error:
            return actions.IoFailed(action.call, failure_of(error))
        except Exception as error:
            _log.exception("stepseal: defect in the coordinator")
            text = f"{type(error).__name__}: {error} (a defect; see the coordinator's log)"
            failure = failure_of(InternalError(text))
            if isinstance(action, actions.Publish):  # it may have passed the commit point
                return actions.PublishUnknown(action.call, failure)
            return actions.IoFailed(action.call, failure)

    def after_commit(self) -> None:
        """Move `latest`, and tell others of the commit of a step; a failure is only logged."""
        found, self._committed = self._committed, None
        if found is None:
            return
        committed, cost = found
        assert self._head is not None
        try:
            self._steps.point_latest(committed.step)
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: after the commit of step %d: %s", committed.step, error)
        if self._announce is not None:
            self._announce.commit(committed, self._head.manifest_sha256, cost)

    def housekeep(self) -> None:
        """Sweep after a claim, and prune after a commit; may run concurrently with other calls."""
        if self._housekeep is not None and self.number is not None:
            head = self._head
            committed = head is not None and head.incarnation == self.number
            self._housekeep(self._steps.run_id, self.number, committed)

    def close(self) -> None:
        """End the lease of a candidate that was never claimed, and the sign of life for readers."""
        self._steps.close()

    def _begin(self, action: actions.BeginStaging) -> actions.Staged:
        if self.number is None:
            self.number = self._steps.claim_unrestored()
        steps, is_step = self._steps, action.area is Area.STEPS
        begin = steps.begin if is_step else steps.begin_publication
        begun = begin(action.step, self.number, action.attempt)
        return actions.Staged(action.call, begun.key, begun.nonce)

    def _publish(self, action: actions.Publish) -> actions.Published:
        steps = self._steps
        assert self.number is not None
        origin = Origin(steps.run_id, self.number, self._head, steps.durability)
        draft = draft_manifest(action, origin, self._job, now_s=self._clock())
        left_s, begun_s = action.deadline - time.monotonic(), own_time_s()
        sha256 = steps.publish(
            action.staging,
            draft,
            deadline_passed=lambda: own_time_s() - begun_s > left_s,
        )
        if action.area is Area.STEPS:
            figures = action.figures or Figures(time.monotonic())
            self._committed = draft, figures.of_commit(time.monotonic())
            self._head = StepRef(action.step, sha256, self.number)
        return actions.Published(action.call, sha256)

    def _select(self, action: actions.Select) -> actions.Selected:
        found = self._steps.select(
            step=action.step, exclude=action.exclude, unverified=action.unverified
        )
        return actions.Selected(
            action.call,
            found.ref,
            found.attempt,
            found.has_commits,
            found.reasons,
            found.unverified,
            found.roles,
        )

    def _claim(self, action: actions.Claim) -> actions.Claimed:
        self.number = self._steps.claim(action.parent)
        self._head = action.parent
        return actions.Claimed(action.call, self.number)


def discard_aborted(steps: DiscardAttempts, action: actions.Discard) -> None:
    """Remove an aborted attempt, concurrently with other work; a failure is only logged."""
    try:
        steps.discard(action.staging)
    except (CheckpointError, OSError) as error:
        _log.warning("stepseal: the next sweep will remove the aborted save: %s", error)
