"""One accepted connection of the hub: who is at its other end, and what waits to be sent."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.protocol._messages import encode_message
from stepseal.protocol._wire import MAX_HELLO_BYTES, MAX_MESSAGE_BYTES, MessageReader, pack_message

if TYPE_CHECKING:
    import socket

    from stepseal.protocol._messages import FromCoordinator

__all__ = ["Line"]

MAX_UNSENT_BYTES = 2 * MAX_MESSAGE_BYTES


@dataclass(eq=False, slots=True)
class Line:
    """One accepted connection."""

    connection: socket.socket
    opened_at: float
    last_seen: float
    reader: MessageReader = field(default_factory=lambda: MessageReader(MAX_HELLO_BYTES))
    unsent: bytearray = field(default_factory=bytearray)
    participant: str | None = None
    life: str = ""
    challenged: bool = False
    """It has asked for a proof that the hub knows the token."""
    stuck: bool = False
    """Too many bytes wait to be sent, so the connection must be dropped."""

    @property
    def is_open(self) -> bool:
        """False once the connection was dropped."""
        return self.connection.fileno() >= 0

    def say_first(self, message: FromCoordinator) -> None:
        """Send a message at once: the first bytes on a connection always fit."""
        with suppress(OSError):
            self.connection.send(pack_message(encode_message(message)))

    def queue(self, data: bytes) -> None:
        """Append bytes to send; the connection is stuck if too many wait."""
        if len(self.unsent) + len(data) > MAX_UNSENT_BYTES:
            self.stuck = True
        else:
            self.unsent += data
