"""Tells the coordinator how far a participant is in a call, at most once per second."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from stepseal.protocol._progressed import Progressed

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.protocol._participant_driver import ParticipantDriver

__all__ = ["Teller"]

_EVERY_S = 1.0
_MOST_PER_S = 1000
"""Messages of all participants that the coordinator takes per second."""


class Teller:
    """Tells the coordinator how far this participant is; thread-safe.

    Args:
        driver: line to the coordinator.
        call: number of the call.
        num_participants: of the job; many of them tell less often each.
        called_at_s: monotonic time at which the call began here.
        of_bytes: bytes that will be written; 0 where that is not known.
        clock: monotonic time.
    """

    def __init__(
        self,
        driver: ParticipantDriver,
        call: int,
        num_participants: int,
        called_at_s: float,
        of_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._driver = driver
        self._call = call
        self._clock = clock
        self._every_s = max(_EVERY_S, num_participants / _MOST_PER_S)
        self._called_at_s = called_at_s
        self._of_bytes = of_bytes
        self._lock = threading.Lock()
        self._size_bytes = 0
        self._next_s = called_at_s + self._every_s
        self._freed_at_s: float | None = None

    def freed(self) -> None:
        """Note that the owner goes on; the last time counts."""
        self._freed_at_s = self._clock()

    def count(self, size_bytes: int) -> None:
        """Add bytes that were written or read; tell it if it is time."""
        now = self._clock()
        with self._lock:
            self._size_bytes += size_bytes
            if now < self._next_s:
                return
            self._next_s = now + self._every_s
        self.tell()

    def tell(self, size_bytes: int | None = None) -> None:
        """Tell it now.

        Args:
            size_bytes: bytes of everything, once that is known.
        """
        if size_bytes is not None:
            self._size_bytes = size_bytes
        freed, called = self._freed_at_s, self._called_at_s
        blocked_s = None if freed is None else freed - called
        told = Progressed(
            self._call, self._size_bytes, self._of_bytes, self._clock() - called, blocked_s
        )
        self._driver._link.send(told)
