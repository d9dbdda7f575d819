"""SIGTERM in a job without a trigger for it: the process ends after the save in flight.

Without this, the default action ends the process in the middle of a write. It is touched only while
a save is in flight, and only where nobody else handles the signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

from stepseal.errors import CheckpointError, ParticipantFailed
from stepseal.process import watch_signal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.process import SignalWatch
    from stepseal.session._inflight import InFlight

__all__ = ["Termination"]

_log = logging.getLogger("stepseal")


class Termination:
    """Puts the default action of SIGTERM off while a save is in flight.

    Args:
        flight: what is in flight.
    """

    def __init__(self, flight: InFlight) -> None:
        self._watch: SignalWatch | None = None
        self._flight = flight
        self._step = 0
        self._called = threading.Event()
        """The call has returned, or raised: what is in flight is known."""

    @contextlib.contextmanager
    def off(self, step: int) -> Iterator[None]:
        """Put it off from here on, until `end`: a save begins, and its call ends with the block."""
        self.end()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._step = step
            self._called.clear()
            try:
                self._watch = watch_signal(signal.SIGTERM, self._finish)
            except ParticipantFailed as error:  # the save itself needs no further thread
                _log.warning("stepseal: step %d: SIGTERM would end its save: %s", step, error)
        try:
            yield
        finally:
            self._called.set()

    def end(self) -> None:
        """Restore the default action: nothing is in flight. Idempotent."""
        self._called.set()
        if self._watch is not None:
            self._watch.end()
            self._watch = None

    def _finish(self) -> None:
        """Wait for the save, say how it ended, and let the signal do what it does by default."""
        try:
            if not self._called.is_set() or self._is_in_flight():
                self._wait()
        except CheckpointError as error:
            _log.error("stepseal: SIGTERM: %s", error)
        finally:
            # signal.signal works on the main thread alone, which may never come back
            ctypes.pythonapi.PyOS_setsig(int(signal.SIGTERM), ctypes.c_void_p(0))
            os.kill(os.getpid(), signal.SIGTERM)

    def _is_in_flight(self) -> bool:
        pending = self._flight.pending
        return pending is not None and not pending.done()

    def _wait(self) -> None:
        _log.warning(
            "stepseal: SIGTERM: the process ends when the save of step %d in flight has ended. To "
            'save the newest step, and end the loop, add stepseal.on_signal("SIGTERM") to save=.',
            self._step,
        )
        self._called.wait()
        if (pending := self._flight.pending) is not None:
            pending.wait()
            _log.warning("stepseal: SIGTERM: step %d is committed", self._step)
