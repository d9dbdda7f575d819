"""Message transport: two small Protocols, and the hub for participants of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from stepseal import errors
from stepseal.protocol import _messages as messages

__all__ = ["FromHub", "FromLinks", "Hub", "InProcessHub", "InProcessLink", "Link"]

FromHub = Callable[[messages.FromCoordinator | messages.Failure], None]
"""Receives what a link delivers; a Failure means that the connection is dead."""
FromLinks = Callable[[str, messages.FromParticipant | messages.Failure, str], None]
"""Receives a participant id, what it sent, and in which life; a Failure means that the connection
of that life is dead."""


class Link(Protocol):
    """A participant's connection to the coordinator."""

    def start(self, on_message: FromHub) -> None:
        """Send Hello and begin to deliver messages, in order. Called once."""
        ...

    def send(self, message: messages.FromParticipant) -> None:
        """Send a message; `start`'s callback, not this call, reports a dead connection."""
        ...

    def close(self) -> None:
        """Stop delivering; idempotent."""
        ...


class Hub(Protocol):
    """The coordinator's connections to all participants."""

    def start(self, on_message: FromLinks) -> None:
        """Begin to deliver messages, in order per participant. Called once."""
        ...

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Send a message without blocking; a message that cannot be delivered is dropped.

        After `Dismiss` the connection ends, and none is accepted any more.
        """
        ...

    def close(self) -> None:
        """Flush sent messages for a short time, then close all connections. Idempotent."""
        ...


class InProcessHub:
    """Connections between a coordinator and participants of the same process.

    Callbacks run on the sender's thread. Participants may start before the coordinator.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a callback may send; one at a time keeps the order
        self._links: dict[str, InProcessLink] = {}
        self._early: list[tuple[str, messages.FromParticipant, str]] = []
        self._on_message: FromLinks | None = None
        self._closed = False

    def link(self, participant: str, life: str = "") -> InProcessLink:
        """Return the link of one participant, in one life."""
        with self._lock:
            found = self._links.get(participant)
            if found is None or found.life != life:
                found = self._links[participant] = InProcessLink(self, participant, life)
            return found

    def admit(self, participant: str, life: str) -> None:
        """Take the messages of one life, and drop those of the one before."""
        with self._lock:
            before = self._links.pop(participant, None)
        if before is not None and before.life != life:
            before.deliver(closed_cause())
        self.link(participant, life)

    def start(self, on_message: FromLinks) -> None:
        """Begin to deliver to the coordinator; earlier messages come first."""
        with self._lock:
            self._on_message = on_message
            for participant, message, life in self._early:
                on_message(participant, message, life)
            self._early.clear()

    def take(self, participant: str, message: messages.FromParticipant, life: str = "") -> None:
        """Deliver a participant's message to the coordinator; drop it after `close`."""
        with self._lock:
            if self._on_message is not None:
                self._on_message(participant, message, life)
            elif not self._closed:
                self._early.append((participant, message, life))

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Deliver a message to a participant of this process."""
        with self._lock:
            link = self._links.get(participant)
            if isinstance(message, messages.Dismiss):
                self._links.pop(participant, None)
        if link is not None:
            link.deliver(message)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def close(self) -> None:
        """Stop delivering, and report the loss to participants that are still connected."""
        with self._lock:
            already, self._closed = self._closed, True
            self._on_message = None
            links = list(self._links.values())
        if not already:
            for link in links:
                link.deliver(closed_cause())


def closed_cause() -> messages.Failure:
    """Return the failure for a participant whose coordinator closed without waiting for it."""
    return messages.Failure(errors.CoordinatorLost.kind, "the coordinator was closed")


class InProcessLink:
    """A participant's connection to a coordinator in the same process."""

    def __init__(self, hub: InProcessHub, participant: str, life: str = "") -> None:
        self._hub = hub
        self._participant = participant
        self.life = life
        self._on_message: FromHub | None = None

    def start(self, on_message: FromHub) -> None:
        """Begin to deliver to the participant, and send its Hello."""
        self._on_message = on_message
        if self._hub.closed:
            on_message(closed_cause())
        self.send(messages.Hello(self._participant, "", "", self.life))

    def deliver(self, message: messages.FromCoordinator | messages.Failure) -> None:
        """Deliver a message to the participant; drop it before `start` and after `close`."""
        on_message = self._on_message
        if on_message is not None:
            on_message(message)

    def send(self, message: messages.FromParticipant) -> None:
        """Send a message to the coordinator."""
        self._hub.take(self._participant, message, self.life)

    def close(self) -> None:
        """Stop delivering."""
        self._on_message = None
