"""What one participant does at the safe points of its loop: each call of `step`, or of `save`.

There all ranks hear, at the same step, what came due meanwhile: a failure behind an earlier call, a
save that a trigger asks for, the end of the loop. Nothing is sent while nothing is due.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from stepseal.process import check_can_watch, wait_until_noticed, watch_signal
from stepseal.protocol import Fired, Timing

if TYPE_CHECKING:
    from stepseal.process import SignalWatch
    from stepseal.protocol import Due
    from stepseal.session._annotations import Annotations
    from stepseal.session._loop import Loop
    from stepseal.session._rules import OnSignal, When
    from stepseal.session._share import Share
    from stepseal.session._wiring import Wiring

__all__ = ["Points", "timing_of"]

_log = logging.getLogger("stepseal")


def timing_of(when: When) -> Timing:
    """Return the triggers that depend on time alone, for the coordinator.

    Raises:
        InvalidInput: there are signals, and this thread cannot watch them.
    """
    check_can_watch([one.signum for one in when.signals])
    if when.before is None:
        return Timing(when.every_s)
    stop_at = time.monotonic() + when.before.ends_at - time.time()
    return Timing(when.every_s, stop_at, when.before.margin_s)


class Points:
    """The safe points of one participant that makes the calls.

    Args:
        when: what the job's triggers are; signals are watched from here on.
        share: its part of every call.
        wiring: its connections.
        loop: its training loop, which ends where all ranks stop.
    """

    def __init__(self, when: When, share: Share, wiring: Wiring, loop: Loop) -> None:
        self._share = share
        self._driver = wiring.driver
        self._loop = loop
        self._watches = [self._watch(one) for one in when.signals]

    def _watch(self, trigger: OnSignal) -> SignalWatch:
        driver = self._driver
        fired = Fired(trigger.signum.name, trigger.stop, trigger.grace_s)
        return watch_signal(trigger.signum, lambda: driver.fire(fired))

    def pass_one(self, step: int) -> bool:
        """Pass the next safe point.

        Args:
            step: what the loop is at.

        Returns:
            Whether all ranks save here.

        Raises:
            CheckpointError: a save behind an earlier call failed; all ranks raise it here.
        """
        if self._watches:
            wait_until_noticed()
        due, flight = self._driver.take_due(), self._share.flight
        if due is None:
            if flight.pending is not None and self._driver.is_lost:
                self._share.settle()  # storage may show the outcome
            return False
        self._tell(due, step)
        if due.stop:
            self._loop.should_stop = True
        if flight.pending is not None and flight.pending._call in due.failed:
            self._share.settle()
        return bool(due.save)

    def _tell(self, due: Due, step: int) -> None:
        if self._share.topology.rank == 0 and (due.save or due.stop):
            end = "; the training loop ends here" if due.stop else ""
            _log.info("stepseal: step %d: saves because of %s%s", step, due.save or due.stop, end)

    def tell_saved_already(self, step: int, notes: Annotations) -> None:
        """Say that a step is not saved again, and what is not recorded therefore."""
        if self._share.topology.rank != 0:
            return
        lost = {"metrics": notes.metrics, "tags": notes.tags, "cut": notes.cut}
        names = " and ".join(name for name, value in lost.items() if value)
        if names:
            _log.warning(
                "stepseal: step %d is saved already, without the %s of this call", step, names
            )
        else:
            _log.info("stepseal: step %d is saved already", step)

    def end(self) -> None:
        """Watch no more signals. Idempotent."""
        for watch in self._watches:
            watch.end()
