"""Who is late: one warning for each phase of a call, long before its deadline; pure.

A phase is late once a fixed part of its time limit has passed. So the rule knows no speeds: whoever
expects slow storage raises the limit, and with it the time until the warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.protocol import _actions as actions
from stepseal.protocol._failures import named
from stepseal.protocol._figures import seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import TypeAlias

    from stepseal.protocol._restore_round import RestoreRound
    from stepseal.protocol._save_round import SaveRound

    Waiting: TypeAlias = Mapping[str, str | None]
    """Participant to where it is; None for one that waits for others."""

__all__ = ["LATE", "Stragglers"]

LATE = 0.25
"""Part of the time limit of a phase after which the phase is late."""
_OWN = frozenset({"staging", "publish", "select", "claim"})
"""Phases in which the coordinator's own storage is awaited."""
_NEVER = float("inf")


class Stragglers:
    """What was said about the calls that are open."""

    def __init__(self) -> None:
        self._phases: dict[int, tuple[str, float]] = {}
        """Call to its phase, and the seconds that the phase had when it was first seen."""
        self._said: dict[int, str] = {}
        """Call to the last phase that is settled: a warning was given, or nobody was awaited."""
        self.next_s = _NEVER
        """Monotonic time of the next look."""

    def look(
        self,
        rounds: Iterable[SaveRound | RestoreRound],
        waiting: Mapping[int, Waiting],
        now: float,
    ) -> list[actions.Action]:
        """Return the warnings of phases that have become late.

        Args:
            rounds: those that are open.
            waiting: call to the participants that are known to wait for others; None for those.
            now: monotonic time.
        """
        before, self._phases = self._phases, {}
        told: list[actions.Action] = []
        self.next_s = _NEVER
        for found in rounds:
            phase, limit_s = before.get(found.call, ("", 0.0))
            if phase != found.phase:
                limit_s = found.deadline - now
            self._phases[found.call] = (found.phase, limit_s)
            if found.deadline == _NEVER or self._said.get(found.call) == found.phase:
                continue
            left_s = found.deadline - now  # a deadline that is put off puts this off, too
            late_at = found.deadline - (1 - LATE) * limit_s
            if now < late_at:
                self.next_s = min(self.next_s, late_at)
                continue
            self._said[found.call] = found.phase
            notes = waiting.get(found.call, {})
            names = [one for one in found.awaited() if notes.get(one, "") is not None]
            if text := _whom(found.phase, names):
                told.append(actions.Warn(_text(found, text, limit_s - left_s, left_s)))
        self._said = {call: phase for call, phase in self._said.items() if call in self._phases}
        return told


def _whom(phase: str, names: list[str]) -> str:
    return "the coordinator's storage" if phase in _OWN else named(names)


def _text(found: SaveRound | RestoreRound, whom: str, so_far_s: float, left_s: float) -> str:
    so_far, left = seconds_text(so_far_s), seconds_text(left_s)
    return f"{found.what}, phase {found.phase}: waiting for {whom} for {so_far}; deadline in {left}"
