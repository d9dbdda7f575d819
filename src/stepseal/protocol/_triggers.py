"""What is due at the next safe point of a job whose ranks make the calls, and why; no I/O.

A *trigger* is a reason to save that no step number tells: a signal, a time limit, minutes that have
passed. The coordinator alone holds them, and what came due: ranks hear of it at a target, all of
them at the same one. Invariant: what came due stays due until a target was named for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from stepseal import errors
from stepseal.protocol._failures import Failure

__all__ = ["Due", "Fired", "Timing", "Triggers"]

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_NEVER = float("inf")
_SHARE_OF_GRACE = 0.9
"""Share of a grace in which saves must be decided; the rest is for the end of the processes."""


class Fired(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """A trigger fired at this participant, which waits at its next safe point until it is asked."""

    reason: str
    stop: bool
    """Whether the loop is to end after the save."""
    grace_s: _Seconds | None = None
    """Seconds from now in which the job must have ended; None for no limit."""


class Due(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all ranks do at a target."""

    save: str = ""
    """Why they save there; empty if they do not."""
    stop: str = ""
    """Why their loop ends there; empty if it goes on."""
    failed: list[_Number] = []
    """Calls of saves in the background that were not committed, to be raised there."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The triggers that depend on time alone.

    Args:
        every_s: seconds after the last save at which one is due; None for none.
        stop_at: monotonic time at which the job must have ended; None for none.
        margin_s: seconds before `stop_at` at which ranks save and stop.
    """

    every_s: float | None = None
    stop_at: float | None = None
    margin_s: float = 0.0


class Triggers:
    """What is due, and when something comes due.

    Args:
        timing: triggers that depend on time alone.
    """

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._save = self._stop = ""
        self._failed: list[int] = []
        self._next_save = _NEVER
        self._ends = _NEVER if timing.stop_at is None else timing.stop_at
        """When a save that is not decided ends."""
        self._limit = "the time limit of the job"
        """What ends then."""
        self._saving_since: dict[int, float] = {}
        self._longest_s = 0.0
        """The longest save so far."""
        self._was_started = self._was_warned = False

    @property
    def is_due(self) -> bool:
        """True while something is due."""
        return bool(self._save or self._stop or self._failed)

    def deadline(self, now: float) -> float:
        """Return the next time after `now` at which `on_time` or `over` has something to do."""
        times = (self._next_save, self._stops_at(), self._ends)
        return min((one for one in times if one > now), default=_NEVER)

    def on_fired(self, participant: str, message: Fired, now: float) -> None:
        """Note a trigger that fired at a participant."""
        reason = f"{message.reason} at {participant}"
        self._save = self._save or reason
        if message.stop:
            self._stop = self._stop or reason
        self.limit(participant, message, now)

    def limit(self, participant: str, message: Fired, now: float) -> None:
        """Note when the job must have ended because of a trigger, if it must."""
        if message.grace_s is not None:
            ends = now + message.grace_s * _SHARE_OF_GRACE
            if ends < self._ends or self._ends <= now:  # an earlier grace ended nobody
                self._ends = ends
                self._limit = f"the grace of {message.reason} at {participant}"

    def on_time(self, now: float) -> None:
        """Note what comes due by time."""
        if not self._was_started:
            self.restart(now)
        if self._timing.every_s is not None and now >= self._next_save:
            self._save = self._save or f"{self._timing.every_s / 60:g} minutes without a save"
            self._next_save = _NEVER  # until a save has begun
        if self._timing.stop_at is not None and now >= self._stops_at():
            self._was_warned = True
            reason = f"the time limit of the job, {self._timing.stop_at - now:.0f} s from now"
            self._save, self._stop = self._save or reason, self._stop or reason

    def _stops_at(self) -> float:
        """Return when ranks save and stop because of the time limit: in time for a long save."""
        if self._timing.stop_at is None or self._was_warned:
            return _NEVER
        return self._timing.stop_at - max(self._timing.margin_s, 2 * self._longest_s)

    def restart(self, now: float) -> None:
        """Count the minutes anew: a save began, or a restore ended, or the job."""
        self._was_started = True
        if self._timing.every_s is not None:
            self._next_save = now + self._timing.every_s

    def on_saving(self, call: int, now: float, *, is_step: bool) -> None:
        """Note that a save, or a publication, has begun."""
        self._saving_since[call] = now
        if is_step:
            self.restart(now)

    def on_ended(self, call: int, now: float, *, committed: bool) -> None:
        """Note how a save ended; one that was not committed is due to be raised."""
        self._longest_s = max(self._longest_s, now - self._saving_since.pop(call, now))
        if not committed:
            self._failed.append(call)

    def take(self) -> Due:
        """Return what is due, for the target that is named now; nothing of it is due any more."""
        due = Due(self._save, self._stop, self._failed)
        self._save = self._stop = ""
        self._failed = []
        return due

    def over(self, call: int, now: float) -> Failure | None:
        """Return why a save that is not decided must end now, or None.

        One that begins when the time is over may go on: nobody has ended the job.
        """
        if now < self._ends or self._saving_since.get(call, now) >= self._ends:
            return None
        text = f"was not ready when {self._limit} was over"
        return Failure(errors.CommitTimeout.kind, text)
