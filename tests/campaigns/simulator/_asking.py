"""What the coordinator says about safe points, judged from outside: it forgets no trigger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepseal.protocol import _messages as messages

if TYPE_CHECKING:
    from tests.campaigns.simulator._coordinator import Head

__all__ = ["Asking"]


class Asking:
    """Watches the requests of one coordinator.

    Args:
        head: its process.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._gone: set[str] = set()
        self._closed = False
        self._asked: set[str] = set()
        """Who was asked, and is not at the target, as far as the coordinator knows."""
        self._request = 0
        self._target: messages.Target | None = None
        self._fired: list[messages.Fired] = []
        """What no target has told."""

    def hear(self, participant: str, message: messages.FromParticipant) -> None:
        """Take what the coordinator hears."""
        match message:
            case messages.Goodbye():
                self._gone.add(participant)
                self._closed = True
            case messages.Fired() if participant not in self._gone:
                if not self._serves(participant, message):
                    self._fired.append(message)
            case messages.SafePoint() if message.request == self._request:
                if self._target is not None and message.point == self._target.point:
                    self._asked.discard(participant)

    def _serves(self, participant: str, fired: messages.Fired) -> bool:
        """Tell whether a rank is on its way to where all do what this asks for."""
        due = None if self._target is None else self._target.due
        if due is None or participant not in self._asked:
            return False
        return bool(due.save) and (bool(due.stop) or not fired.stop)

    def lose(self, participant: str) -> None:
        """Take the loss of a participant."""
        self._gone.add(participant)

    def say(self, to: str, message: messages.FromCoordinator) -> None:
        """Take what the coordinator says."""
        if isinstance(message, messages.AskSafePoint):
            if message.request != self._request:
                self._request, self._target, self._asked = message.request, None, set()
            self._asked.add(to)
        elif isinstance(message, messages.Lapsed) and message.request == self._request:
            self._asked.discard(to)
        elif isinstance(message, messages.Target):
            if self._target is None and self._fired:
                due = message.due or messages.Due()
                stops = any(one.stop for one in self._fired)
                told = bool(due.save) and bool(due.stop) >= stops
                self._head.oracle.require("a target tells what fired", told, due, self._fired)
            self._target, self._fired = message, []

    def judge(self) -> None:
        """Judge, when the coordinator has answered, that it asks for what fired."""
        if not self._fired:
            return
        if self._closed or self._gone >= set(self._head.participants):
            self._fired = []  # the others go on, and close next
            return
        if not self._head.protocol._lives.all_connected:
            return  # it is asked for once they have
        asks = bool(self._asked - self._gone)
        self._head.oracle.require("what fired is asked for", asks, self._head.node.name)
