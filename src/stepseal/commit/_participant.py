"""A participant's protocol without I/O: what it knows of each call, and what it must send.

Outcomes of a save are COMMITTED and ABORTED (both only when the coordinator said so), NOT COMMITTED
(we never prepared, so nobody can have committed) and UNKNOWN (we prepared and heard nothing:
storage decides).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.commit import _messages as messages

if TYPE_CHECKING:
    from stepseal.commit._deadlines import Deadlines

__all__ = ["Participant", "RestoreState", "SaveState"]

RestoreAnswer = messages.Restored | messages.Fresh | messages.RestoreFailed


@dataclass(slots=True)
class SaveState:
    """What a participant knows of one save call."""

    call: int
    deadline: float = float("inf")
    """Monotonic time after which this participant stops waiting."""
    write: messages.Write | None = None
    """The order to write, once it came."""
    prepared: bool = False
    """We reported our part: from now on the step may exist."""
    outcome: messages.Decided | None = None
    """What the coordinator decided."""
    lost: messages.Cause | None = None
    """Why we will not hear from the coordinator any more."""

    @property
    def settled(self) -> bool:
        """True when waiting longer would tell nothing new."""
        return self.outcome is not None or self.lost is not None


@dataclass(slots=True)
class RestoreState:
    """What a participant knows of one restore call."""

    call: int
    deadline: float = float("inf")
    inbox: list[messages.Candidate | messages.Apply] = field(default_factory=list)
    """Orders that were not taken yet, oldest first."""
    answer: RestoreAnswer | None = None
    lost: messages.Cause | None = None


class Participant:
    """State of all calls of one participant.

    Args:
        deadlines: limits per phase.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._saves: dict[int, SaveState] = {}
        self._restores: dict[int, RestoreState] = {}
        self._verdicts: dict[int, bool] = {}
        self._num_calls = 0
        self.welcomed = False
        self.lost: messages.Cause | None = None

    def new_call(self) -> int:
        """Return the number of the next call; equal on all participants that make the same calls."""
        self._num_calls += 1
        return self._num_calls

    def save(self, call: int) -> SaveState:
        """Return the state of a save call."""
        return self._saves.setdefault(call, SaveState(call, lost=self.lost))

    def restore(self, call: int) -> RestoreState:
        """Return the state of a restore call."""
        return self._restores.setdefault(call, RestoreState(call, lost=self.lost))

    def forget(self, call: int) -> None:
        """Drop a call whose outcome was taken."""
        self._saves.pop(call, None)
        self._restores.pop(call, None)

    def verdict(self, step: int) -> bool | None:
        """Return and forget the verdict posted for `step`, or None while there is none."""
        return self._verdicts.pop(step, None)

    def captured(self, call: int, now: float) -> None:
        """Start the clock of a save: from here on every wait ends."""
        self.save(call).deadline = now + self._deadlines.save_s

    def prepare(self, call: int, now: float) -> bool:
        """Pass the point of no return of this participant, unless the save ended before.

        Returns:
            True when the part may be reported; from then on only the coordinator or storage know
            the outcome.
        """
        self.on_time(now)
        state = self.save(call)
        if state.settled:
            return False
        state.prepared = True
        return True

    def on_message(self, message: messages.FromCoordinator) -> None:
        """Take a message; orders and outcomes for calls not made yet are kept for them."""
        match message:
            case messages.Write():
                self.save(message.call).write = message
            case messages.Committed() | messages.Aborted() | messages.Unresolved():
                self.save(message.call).outcome = message
            case messages.Candidate() | messages.Apply():
                self.restore(message.call).inbox.append(message)
            case messages.Restored() | messages.Fresh() | messages.RestoreFailed():
                self.restore(message.call).answer = message
            case messages.Verdict():
                self._verdicts[message.step] = message.decided
            case messages.Welcome():
                self.welcomed = True
            case messages.Heartbeat():
                pass

    def on_lost(self, cause: messages.Cause) -> None:
        """The coordinator is gone: every undecided call ends now."""
        self.lost = cause
        for state in (*self._saves.values(), *self._restores.values()):
            state.lost = cause

    def on_time(self, now: float) -> None:
        """End the waits whose deadline has passed."""
        for state in (*self._saves.values(), *self._restores.values()):
            if now >= state.deadline and state.lost is None:
                text = "the coordinator did not decide by the deadline"
                state.lost = messages.Cause(errors.CommitTimeout.kind, text)
