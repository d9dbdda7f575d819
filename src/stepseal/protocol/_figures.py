"""What a call costs: bytes, time, and who is how far; pure, for people to see.

Invariant: nothing is decided by these figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from stepseal.protocol._progressed import Progressed

__all__ = ["Cost", "Figures", "Show", "View", "seconds_text"]


@dataclass(frozen=True, slots=True)
class View:
    """How far one call is, for the progress line."""

    what: str
    """Such as `save of step 500`, or `restore`."""
    phase: str
    size_bytes: int
    """Bytes written or read so far, by all participants."""
    of_bytes: int
    """Bytes that all are going to write; 0 where that is not known."""
    who: str
    """Such as `8 ranks`."""
    called_at_s: float
    """Monotonic time at which the call began."""


class Show(Protocol):
    """Shows people what the coordinator does; no method blocks for long, and none raises."""

    def calls(self, views: tuple[View, ...]) -> None:
        """Take note of the calls that are open now."""
        ...

    def line(self, text: str) -> None:
        """Say that a call ended well."""
        ...

    def hide(self) -> None:
        """Make room for a message of somebody else."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


Cost: TypeAlias = tuple[int | None, float | None, float | None]
"""Bytes, seconds for which owners were blocked, and seconds until the commit; None if unknown."""


class Figures:
    """Figures of one call, summed up over its participants.

    Args:
        now: monotonic time of the first report.
    """

    def __init__(self, now: float) -> None:
        self.noun = "rank"
        """What one of those who take part is called."""
        self.called_at_s = now
        self._told: dict[str, Progressed] = {}
        self.size_bytes = 0
        self.of_bytes = 0

    def progressed(self, participant: str, told: Progressed, now: float) -> None:
        """Take note of how far a participant is; a message that was overtaken changes nothing."""
        before = self._told.get(participant)
        if before is not None and before.called_s > told.called_s:
            return
        self._told[participant] = told
        self.size_bytes += told.size_bytes - (0 if before is None else before.size_bytes)
        self.of_bytes += told.of_bytes - (0 if before is None else before.of_bytes)
        self.called_at_s = min(self.called_at_s, now - told.called_s)

    def took_s(self, now: float) -> float:
        """Return the seconds since the first participant made the call."""
        return now - self.called_at_s

    def of_commit(self, now: float) -> Cost:
        """Return what a commit cost; who is still blocked by then was blocked by all of it."""
        told = [one.blocked_s for one in list(self._told.values())]
        if not told:
            return None, None, None
        took_s = self.took_s(now)
        blocked_s = max(took_s if one is None else min(one, took_s) for one in told)
        return self.size_bytes, blocked_s or None, took_s


def seconds_text(seconds: float) -> str:
    """Return a duration with two digits that mean something, such as `0.12 s` or `75 s`."""
    digits = 0 if seconds >= 10 else 1 if seconds >= 1 else 2
    return f"{seconds:.{digits}f} s"
