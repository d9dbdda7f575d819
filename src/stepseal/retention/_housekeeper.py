"""What a coordinator does after its commits, off the path of the next save: sweep and prune.

Nothing of it ever fails a training job: a refusal is logged, and the next commit tries again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from stepseal.commit import INCARNATIONS, PINS, TRASH, drop_expired, sweep
from stepseal.errors import CheckpointError
from stepseal.retention._plan import plan_prune
from stepseal.retention._prune import prune
from stepseal.retention._rules import Retention, latest
from stepseal.storage import sweep_temporaries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepseal.commit import Finisher, StepEntry
    from stepseal.layout import Manifest
    from stepseal.retention._plan import Plan
    from stepseal.retention._prune import PruneReport
    from stepseal.storage import Storage

__all__ = ["Housekeeper"]

_log = logging.getLogger("stepseal")
_FINISHING = Retention(latest(1), trash_grace_s=86_400.0)


class Housekeeper:
    """Sweeps once per incarnation, and prunes after each commit. Used by one thread.

    Args:
        storage: the root.
        retention: what to keep; None keeps every step.
        finisher: tells whether a step's files are all there.
        clock: Unix time.
    """

    def __init__(
        self,
        storage: Storage,
        retention: Retention | None,
        finisher: Finisher,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage = storage
        self._retention = retention
        self._finisher = finisher
        self._clock = clock
        self._swept: int | None = None
        self._stopped = False
        """A sync failed: what was moved may not be durable, whatever a later one says."""
        self._doubt = ""
        """The claim record that was last warned of."""
        self._sound: set[str] = set()
        """Attempts whose files were found to be all there."""

    def __call__(self, run_id: str, incarnation: int, committed: bool) -> None:
        """Sweep, and prune where something was committed, as the coordinator of an incarnation.

        The sweep does not wait for a commit: what an earlier start left in staging may be what
        keeps this one from having the room for one. Nothing is removed after a failed sync.
        """
        if self._stopped:
            return
        if self._swept != incarnation:
            self._attempt(lambda: self._sweep(run_id, incarnation))
        if committed and self._retention is not None:  # also where something cannot be swept
            retention = self._retention
            self._attempt(lambda: self._report(self._prune(run_id, incarnation, retention)))

    def _attempt(self, chore: Callable[[], None]) -> None:
        try:
            chore()
        except (CheckpointError, OSError) as error:
            _log.warning("stepseal: housekeeping goes on after the next commit: %s", error)
        except Exception:
            _log.exception("stepseal: defect in housekeeping; steps stay where they are")

    def _sweep(self, run_id: str, incarnation: int) -> None:
        sweep(self._storage, incarnation)
        drop_expired(self._storage, self._clock())
        for key in ("", INCARNATIONS, PINS):
            sweep_temporaries(self._storage, key, now_s=self._clock())
        if self._retention is None and self._storage.list_dir(TRASH):
            self._report(self._finish(run_id, incarnation))
        self._swept = incarnation

    def _finish(self, run_id: str, incarnation: int) -> PruneReport | None:
        """Finish what prunes began when there was a rule, or by hand; every step stays."""
        plan = self._plan(run_id, incarnation, _FINISHING)
        if plan is None:
            return None
        trash = replace(plan, steps=(), superseded=())
        return prune(self._storage, trash, _FINISHING, clock=self._clock)

    def _plan(self, run_id: str, incarnation: int, retention: Retention) -> Plan | None:
        plan = plan_prune(
            self._storage, run_id, retention, inspect=self._inspect, now_s=self._clock()
        )
        if plan.incarnation != incarnation:
            return None  # another start of the job owns the root now
        self._warn_of(plan.doubt)
        return plan

    def _prune(self, run_id: str, incarnation: int, retention: Retention) -> PruneReport | None:
        plan = self._plan(run_id, incarnation, retention)
        if plan is None:
            return None
        return prune(self._storage, plan, retention, clock=self._clock)

    def _warn_of(self, doubt: str) -> None:
        """Say once for which claim record steps stay."""
        if doubt and doubt != self._doubt:
            _log.warning(
                "stepseal: prune: %s, so which older steps count is not known, and they stay. "
                "`stepseal prune --dry-run` names them; remove by hand what is not needed.",
                doubt,
            )
        self._doubt = doubt

    def _report(self, done: PruneReport | None) -> None:
        if done is None:
            return
        for failure in done.failures:
            _log.warning("stepseal: prune: %s", failure)
        if done.sync_failed:
            self._stopped = True
            _log.warning("stepseal: this job removes nothing more; the next start of it goes on")
        if done.removed:
            _log.info("stepseal: pruned steps %s", ", ".join(map(str, done.removed)))

    def _inspect(self, entry: StepEntry, manifest: Manifest) -> Sequence[str]:
        if manifest.attempt in self._sound:
            return ()
        problems = self._finisher.inspect(self._storage, entry.name, manifest, exact=False)
        if not problems:
            self._sound.add(manifest.attempt)
        return problems
