"""A participant's protocol without I/O: what it knows of each call, and what it must send.

A save has four outcomes. COMMITTED and ABORTED come from the coordinator. NOT COMMITTED means that
this participant never prepared, so the step cannot have been committed. UNKNOWN means that it
prepared and received no decision; storage shows the outcome. The first outcome of a call counts;
repeated and late messages change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._safe_points import OwnPoints

if TYPE_CHECKING:
    from stepseal.protocol._deadlines import Deadlines
    from stepseal.protocol._opening import Begin

_LOST = errors.CoordinatorLost.kind

__all__ = ["Participant", "RestoreAnswer", "RestoreState", "SaveState"]

RestoreAnswer = messages.Restored | messages.Fresh | messages.RestoreFailed
"""How a restore ended."""


@dataclass(slots=True)
class SaveState:
    """What a participant knows about one save call."""

    call: int
    deadline: float = float("inf")
    """Monotonic time after which this participant stops waiting."""
    write: messages.Write | None = None
    """The order to write, once it has arrived."""
    inventory: bool = False
    """True once the order to take the inventory has arrived."""
    asked: list[messages.Compare] = field(default_factory=list)
    """Questions about replicas that differ, not answered yet."""
    thawed: bool = False
    """True once all participants have captured."""
    prepared: bool = False
    """True once we have reported our part; from then on the step may exist."""
    outcome: messages.Decided | None = None
    """The coordinator's decision."""
    lost: messages.Failure | None = None
    """Why the coordinator is gone."""

    @property
    def settled(self) -> bool:
        """True when there is nothing left to wait for."""
        return self.outcome is not None or self.lost is not None


@dataclass(slots=True)
class RestoreState:
    """What a participant knows about one restore call."""

    call: int
    inbox: list[messages.Candidate | messages.Apply] = field(default_factory=list)
    """Orders that were not fetched yet, oldest first."""
    ordered: set[tuple[str, int]] = field(default_factory=set)
    """Orders that have arrived, by type and round, so that none is carried out twice."""
    answer: RestoreAnswer | None = None
    lost: messages.Failure | None = None

    @property
    def has_news(self) -> bool:
        """True when there is an order, an answer or a loss to handle."""
        return bool(self.inbox) or self.answer is not None or self.lost is not None


class Participant:
    """State of all calls of one participant.

    Args:
        deadlines: limits per phase.
        points: own safe points, counted over all lives.
    """

    def __init__(self, deadlines: Deadlines, points: OwnPoints | None = None) -> None:
        self._deadlines = deadlines
        self.points = points or OwnPoints()
        self.points.forget()
        self._saves: dict[int, SaveState] = {}
        self._restores: dict[int, RestoreState] = {}
        self._forgotten: set[int] = set()
        self._num_calls = 0
        self._begins: list[Begin] = []
        self._begun = 0
        self._answers: dict[tuple[int, str], messages.SaveAnswer] = {}
        self.welcomed = False
        self.dismissed = False
        self.lost: messages.Failure | None = None

    def new_call(self) -> int:
        """Return the number of the next call; participants that make the same calls agree on it."""
        self._num_calls += 1
        return self._num_calls

    def next_begin(self) -> Begin | None:
        """Return and forget the oldest call that the coordinator opened; None if there is none."""
        return self._begins.pop(0) if self._begins else None

    def take_up(self, begin: Begin) -> bool:
        """Return whether to begin this call; False if it was begun before, or ended by now."""
        if begin.call <= self._begun:
            return False
        self._begun = begin.call
        return True

    def answer(self, step: int, name: str) -> messages.SaveAnswer | None:
        """Return and forget the answer to `SaveAsked`; None while it has not arrived."""
        return self._answers.pop((step, name), None)

    def save(self, call: int) -> SaveState:
        """Return the state of a save call."""
        return self._saves.setdefault(call, SaveState(call, lost=self.lost))

    def restore(self, call: int) -> RestoreState:
        """Return the state of a restore call."""
        return self._restores.setdefault(call, RestoreState(call, lost=self.lost))

    def forget(self, call: int) -> None:
        """Drop a call after its outcome was read; later messages for it are ignored."""
        self._forgotten.add(call)
        self._saves.pop(call, None)
        self._restores.pop(call, None)

    def captured(self, call: int, now: float) -> None:
        """Start the deadline of a save."""
        self.save(call).deadline = now + self._deadlines.save_s

    def prepare(self, call: int, now: float) -> bool:
        """Pass this participant's point of no return, unless the save has already ended.

        Returns:
            True if the part may be reported; from then on only the coordinator or storage knows
            the outcome.
        """
        self.on_time(now)
        state = self.save(call)
        if state.settled:
            return False
        state.prepared = True
        return True

    def on_message(self, message: messages.FromCoordinator) -> messages.SafePoint | None:
        """Handle a message; keep orders and outcomes of calls that were not made yet.

        Returns:
            The answer to send at once, if it is a question.
        """
        match message:
            case messages.AskSafePoint() | messages.Target() | messages.Lapsed():
                return self._on_points(message)
            case messages.Heartbeat() | messages.Proof():
                pass
            case messages.Welcome():
                self.welcomed = True
            case messages.Dismiss():
                self.dismissed = True
                self.on_lost(messages.Failure(_LOST, "the coordinator released this participant"))
            case messages.BeginSave() | messages.BeginRestore():
                self._begins.append(message)
            case messages.SaveGranted() | messages.SaveRefused():
                self._answers[message.step, message.name] = message
            case messages.Refused():
                self.on_lost(messages.Failure(message.kind, message.message))
            case _ if message.call in self._forgotten:
                pass
            case messages.Write():
                self.save(message.call).write = message
            case messages.TakeInventory():
                self.save(message.call).inventory = True
            case messages.Compare():
                self.save(message.call).asked.append(message)
            case messages.Thaw():
                self.save(message.call).thawed = True
            case messages.Committed() | messages.Aborted() | messages.Unresolved():
                save = self.save(message.call)
                save.outcome = save.outcome or message
            case messages.Candidate() | messages.Apply():
                self._on_order(self.restore(message.call), message)
            case (
                messages.Restored() | messages.Fresh() | messages.RestoreFailed()
            ):  # pragma: no branch - FromCoordinator has no other
                restore = self.restore(message.call)
                restore.answer = restore.answer or message
        return None

    def _on_points(
        self, message: messages.AskSafePoint | messages.Target | messages.Lapsed
    ) -> messages.SafePoint | None:
        if isinstance(message, messages.Lapsed):
            self._begins.clear()  # what was to begin at the target has ended
        return self.points.on_message(message)

    def _on_order(self, restore: RestoreState, order: messages.Candidate | messages.Apply) -> None:
        key = (type(order).__name__, order.round)
        if key not in restore.ordered:
            restore.ordered.add(key)
            restore.inbox.append(order)

    def on_lost(self, cause: messages.Failure) -> None:
        """End every undecided call: the coordinator is gone."""
        self.lost = self.lost or cause
        for save in self._saves.values():
            save.lost = save.lost or cause
        for restore in self._restores.values():
            restore.lost = restore.lost or cause

    def on_time(self, now: float) -> None:
        """End the waits whose deadline has passed."""
        for state in self._saves.values():
            if now >= state.deadline and not state.settled:
                text = "the coordinator did not decide by the deadline"
                state.lost = messages.Failure(errors.CommitTimeout.kind, text)
