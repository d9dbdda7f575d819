"""Sweeps and prunes after the coordinator's commits, without delaying the next save.

An error here never fails a training job: it is logged, and the next commit tries again.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError
from stepseal.retention._carry_out import prune
from stepseal.retention._keep_rules import Retention, latest
from stepseal.retention._plan import plan_prune
from stepseal.retention._publications import prune_published

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.retention._plan import Plan
    from stepseal.retention._soundness import Inspect
    from stepseal.steps import PruneReport, RemoveSteps

__all__ = ["Housekeeper"]

_log = logging.getLogger("stepseal")
_FINISHING = Retention(latest(1), trash_grace_s=86_400.0)


class Housekeeper:
    """Sweeps once per incarnation, and prunes after each commit. Used by one thread.

    Args:
        removal: the step store.
        retention: what to keep; None keeps every step.
        inspect: returns the problems of a commit, one line each.
        publish_keep: how many publications stay, at least 1.
    """

    def __init__(
        self,
        removal: RemoveSteps,
        retention: Retention | None,
        inspect: Inspect,
        *,
        publish_keep: int = 2,
    ) -> None:
        self._removal = removal
        self._retention = retention
        self._inspect = inspect
        self._publish_keep = publish_keep
        self._swept: int | None = None
        self._stopped = False
        """A sync failed, so moves may not be durable, even if a later sync succeeds."""
        self._doubt = ""
        """The claim record of the last warning."""
        self._sound: set[str] = set()
        """Attempts whose files were found complete."""

    def __call__(self, run_id: str, incarnation: int, committed: bool) -> None:
        """Sweep, and prune publications, and steps if one was committed; then repair `latest`.

        Called by the coordinator of an incarnation.

        The sweep does not wait for a commit, because leftovers in staging may fill the disk and
        prevent one. Nothing is removed after a failed sync.
        """
        if self._stopped:
            return
        if self._swept != incarnation:
            self._attempt(lambda: self._sweep(run_id, incarnation))
        if committed and self._retention is not None:  # even if the sweep failed
            retention = self._retention
            self._attempt(lambda: self._report(self._prune(run_id, incarnation, retention)))
        if not self._stopped:
            self._attempt(lambda: self._prune_published(run_id, incarnation))
        if not self._stopped:
            self._attempt(lambda: self._removal.repair_latest(run_id))

    def _attempt(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: housekeeping failed; next try after the next commit: %s", error)
        except Exception:
            _log.exception("stepseal: defect in housekeeping; steps stay where they are")

    def _sweep(self, run_id: str, incarnation: int) -> None:
        self._removal.sweep(incarnation)
        if self._retention is None and self._removal.trash():
            self._report(self._finish(run_id, incarnation))
        self._swept = incarnation

    def _finish(self, run_id: str, incarnation: int) -> PruneReport | None:
        """Without a keep rule, only finish earlier prunes; every step stays."""
        plan = self._plan(run_id, incarnation, _FINISHING)
        if plan is None:
            return None
        trash = replace(plan, steps=(), superseded=())
        return prune(self._removal, trash, _FINISHING)

    def _plan(self, run_id: str, incarnation: int, retention: Retention) -> Plan | None:
        plan = plan_prune(
            self._removal, run_id, retention, inspect=self._inspect, sound=self._sound
        )
        if plan.incarnation != incarnation:
            return None  # another start of the job owns the root now
        self._warn_of(plan.doubt)
        return plan

    def _prune(self, run_id: str, incarnation: int, retention: Retention) -> PruneReport | None:
        plan = self._plan(run_id, incarnation, retention)
        if plan is None:
            return None
        return prune(self._removal, plan, retention)

    def _prune_published(self, run_id: str, incarnation: int) -> None:
        done = prune_published(
            self._removal,
            run_id,
            incarnation,
            self._publish_keep,
            inspect=self._inspect,
            sound=self._sound,
        )
        self._report(done, "versions")

    def _warn_of(self, doubt: str) -> None:
        """Warn once per claim record that steps stay because of it."""
        if doubt and doubt != self._doubt:
            _log.warning(
                "stepseal: prune: %s, so it is not known which older steps are in the lineage, and "
                "they stay. `stepseal prune --dry-run` lists them; remove unneeded ones by hand.",
                doubt,
            )
        self._doubt = doubt

    def _report(self, done: PruneReport | None, what: str = "steps") -> None:
        if done is None:
            return
        for failure in done.failures:
            _log.warning("stepseal: prune: %s", failure)
        if done.sync_failed:
            self._stopped = True
            _log.warning("stepseal: this job removes no more steps; its next start will")
        if done.removed:
            _log.info("stepseal: pruned %s %s", what, ", ".join(map(str, done.removed)))
