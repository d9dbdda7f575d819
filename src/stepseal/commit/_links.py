"""How messages travel, as two small Protocols, and the hub for participants of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.commit import _messages as messages

__all__ = ["Hub", "InProcessHub", "Link"]


class Link(Protocol):
    """A participant's line to the coordinator."""

    def start(
        self, on_message: Callable[[messages.FromCoordinator | messages.Cause], None]
    ) -> None:
        """Begin to deliver messages, in order; a Cause says that the line is dead."""
        ...

    def send(self, message: messages.FromParticipant) -> None:
        """Hand a message over; never raises: a dead line is reported through `start`'s callback."""
        ...

    def close(self) -> None:
        """Stop delivering; idempotent."""
        ...


class Hub(Protocol):
    """The coordinator's lines to all participants."""

    def start(
        self, on_message: Callable[[str, messages.FromParticipant | messages.Cause], None]
    ) -> None:
        """Begin to deliver `(participant, message)`; a Cause says that the participant's line is dead."""
        ...

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Hand a message over; never blocks, never raises; what cannot be delivered is dropped."""
        ...

    def close(self) -> None:
        """Flush what was handed over, for a short while, and stop; idempotent."""
        ...


class InProcessHub:
    """Lines between a coordinator and participants of the same process; callbacks run on the sender's thread."""

    def __init__(self) -> None:
        self._links: dict[str, InProcessLink] = {}
        self._on_message: (
            Callable[[str, messages.FromParticipant | messages.Cause], None] | None
        ) = None

    def link(self, participant: str) -> InProcessLink:
        """Return the line of one participant."""
        return self._links.setdefault(participant, InProcessLink(self, participant))

    def start(
        self, on_message: Callable[[str, messages.FromParticipant | messages.Cause], None]
    ) -> None:
        """Begin to deliver to the coordinator."""
        self._on_message = on_message

    def take(self, participant: str, message: messages.FromParticipant) -> None:
        """Deliver a participant's message to the coordinator; dropped after `close`."""
        if self._on_message is not None:
            self._on_message(participant, message)

    def send(self, participant: str, message: messages.FromCoordinator) -> None:
        """Deliver a message to a participant of this process."""
        link = self._links.get(participant)
        if link is not None:
            link.deliver(message)

    def close(self) -> None:
        """Stop delivering."""
        self._on_message = None


class InProcessLink:
    """A participant's line to a coordinator in the same process."""

    def __init__(self, hub: InProcessHub, participant: str) -> None:
        self._hub = hub
        self._participant = participant
        self._on_message: Callable[[messages.FromCoordinator | messages.Cause], None] | None = None

    def start(
        self, on_message: Callable[[messages.FromCoordinator | messages.Cause], None]
    ) -> None:
        """Begin to deliver to the participant."""
        self._on_message = on_message

    def deliver(self, message: messages.FromCoordinator) -> None:
        """Hand a message to the participant; dropped before `start` and after `close`."""
        if self._on_message is not None:
            self._on_message(message)

    def send(self, message: messages.FromParticipant) -> None:
        """Hand a message to the coordinator."""
        self._hub.take(self._participant, message)

    def close(self) -> None:
        """Stop delivering."""
        self._on_message = None
