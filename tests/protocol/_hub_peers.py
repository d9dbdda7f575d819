"""A `SocketHub` and those who connect to it, byte by byte."""

from __future__ import annotations

import socket
import struct
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from tests.protocol._conversations import PATIENT, Inbox

from stepseal.protocol import Deadlines, SocketHub
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import MessageReader, pack_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepseal.protocol._line import Line

TOKEN = "t" * 32
NAMES = ("a", "b", "c")
GOODBYE = messages.Goodbye()
HEARTBEAT = pack_message(messages.encode_message(messages.Heartbeat()))


class Peer:
    """Somebody who connected: speaks bytes, sees frames and the end."""

    def __init__(self, hub: SocketHub) -> None:
        self.socket = socket.create_connection((hub.address.host, hub.address.port), timeout=30)
        self.reader = MessageReader(1 << 30)

    def send(self, message: messages.FromParticipant) -> None:
        self.socket.sendall(pack_message(messages.encode_message(message)))

    def hello(self, name: str = "a", token: str = TOKEN) -> None:
        self.send(messages.Hello(name, token, "0"))

    def next(self) -> messages.FromCoordinator | None:
        """Return the next message that is no heartbeat, or None at the end."""
        while True:
            while (body := self.reader.take()) is not None:
                message = messages.decode_from_coordinator(body)
                if not isinstance(message, messages.Heartbeat):
                    return message
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.reader.feed(data)


@contextmanager
def running(
    deadlines: Deadlines = PATIENT, version: str | None = None
) -> Iterator[tuple[SocketHub, Inbox]]:
    inbox = Inbox()
    hub = SocketHub("127.0.0.1", NAMES, TOKEN, deadlines, version)
    hub.start(inbox)
    try:
        yield hub, inbox
    finally:
        hub.close()


@contextmanager
def connected(hub: SocketHub, name: str | None = None) -> Iterator[Peer]:
    peer = Peer(hub)
    with closing(peer.socket):
        if name is not None:
            peer.hello(name)
        yield peer


@contextmanager
def idle() -> Iterator[SocketHub]:
    """A hub without its thread: the test does the rounds."""
    with closing(SocketHub("127.0.0.1", NAMES, TOKEN, PATIENT)) as hub:
        yield hub


def accepted(hub: SocketHub) -> Line:
    """Wait for a connection, and return its line."""
    while not hub._strangers:
        for key, mask in hub._selector.select(30):
            hub._on_ready(key, mask)
    (line,) = hub._strangers
    return line


def lost(delivered: Any) -> messages.Failure:  # noqa: ANN401 - narrowed here
    _, cause = delivered
    assert isinstance(cause, messages.Failure), delivered
    return cause


def reset(peer: Peer) -> None:
    """Break the connection off, as a host that lost its state does."""
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.socket.close()
