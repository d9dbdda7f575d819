"""The time in which this process ran: it stands still while the process is stopped.

Who was stopped cannot tell whether others were silent meanwhile: perhaps they were stopped, too,
and what they had said before waits in the sockets. A job is stopped as a whole by a suspend of the
scheduler, the cgroup freezer or the pause of a machine; a process alone by a debugger, or by a C
call that holds the GIL.

Invariant: between two looks at the clock at most one slice counts, so whoever waits for others
looks at it at least once per slice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["OWN_SLICE_S", "LeaseTime", "OwnTime", "own_time_s"]

OWN_SLICE_S = 5.0
"""Seconds that count at most between two looks at `own_time_s`."""
_JITTER_S = 1.0
"""Seconds by which a thread may come late without having been stopped."""


class OwnTime:
    """A monotonic clock that counts only while its observer runs; each call is a look.

    Args:
        slice_s: seconds that count at most between two looks.
        clock: monotonic seconds.
    """

    def __init__(self, slice_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.slice_s = slice_s
        self._clock = clock
        now_s = clock()
        self._seen = (now_s, now_s)
        """When the last look was, and what it returned."""

    def __call__(self) -> float:
        """Return the seconds in which the observer ran. Any thread may look; nobody waits."""
        looked_s, own_s = self._seen
        now_s = self._clock()
        own_s += min(max(0.0, now_s - looked_s), self.slice_s)
        self._seen = (now_s, own_s)  # of two threads at once either is right
        return own_s


own_time_s = OwnTime(OWN_SLICE_S)
"""By this clock a process waits for others.

The threads of a coordinator and of a connection look at it at least once per slice, so that it goes
on while nobody waits.
"""


class LeaseTime:
    """Unix time by which the leases of others are judged, behind by what this process was stopped.

    The holders may have been stopped, too, and renew their leases soon after. Once the process has
    run for `catch_up_s` again, it is Unix time as before.

    Args:
        catch_up_s: seconds after which every holder that lives has renewed.
        clock: Unix time.
        monotonic: monotonic seconds.
        own_s: those of them in which this process ran.
    """

    def __init__(
        self,
        catch_up_s: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        own_s: Callable[[], float] = own_time_s,
    ) -> None:
        self._catch_up_s = catch_up_s
        self._clock, self._monotonic, self._own_s = clock, monotonic, own_s
        self._stopped_s = monotonic() - own_s()
        self._behind_s = self._until_s = 0.0

    def __call__(self) -> float:
        """Return the time; used by one thread."""
        own_s = self._own_s()
        stopped_s = self._monotonic() - own_s
        if stopped_s - self._stopped_s > _JITTER_S:
            self._behind_s += stopped_s - self._stopped_s
            self._until_s = own_s + self._catch_up_s
        elif own_s >= self._until_s:
            self._behind_s = 0.0
        self._stopped_s = stopped_s
        return self._clock() - self._behind_s
