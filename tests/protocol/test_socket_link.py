from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import warnings
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.protocol._conversations import PATIENT, QUICK, Inbox

from stepseal.errors import CoordinatorLost, InvalidInput
from stepseal.process import _forks
from stepseal.protocol import Address, Deadlines, SocketLink
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import MessageReader, pack_message

if TYPE_CHECKING:
    from collections.abc import Iterator


class Coordinator:
    """The other end: one accepted connection, in bytes."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(30)
        self.reader = MessageReader(1 << 30)

    def next(self) -> messages.FromParticipant | None:
        while (body := self.reader.take()) is None:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self.reader.feed(data)
        return messages.decode_from_participant(body)

    def send(self, message: messages.FromCoordinator) -> None:
        self.socket.sendall(pack_message(messages.encode_message(message)))


@contextmanager
def connected(deadlines: Deadlines = PATIENT) -> Iterator[tuple[SocketLink, Coordinator, Inbox]]:
    inbox = Inbox()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "token")
        link = SocketLink(address, "a", deadlines, "0")
        connection, _ = listener.accept()
        with closing(connection), closing(link):
            coordinator = Coordinator(connection)
            link.start(inbox)
            assert coordinator.next() == messages.Hello("a", "token", "0")
            yield link, coordinator, inbox


def cause(found: object) -> str:
    assert isinstance(found, messages.Failure)
    assert found.kind == CoordinatorLost.kind
    return found.message


def test_messages_go_both_ways() -> None:
    with connected() as (link, coordinator, inbox):
        link.send(messages.Goodbye())
        assert coordinator.next() == messages.Goodbye()
        coordinator.send(messages.Heartbeat())  # not delivered: it only counts as a sign of life
        coordinator.send(messages.Welcome())
        assert inbox.next() == messages.Welcome()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(CoordinatorLost, match="cannot reach") as caught:
        SocketLink(Address("127.0.0.1", port, "token"), "a", PATIENT, "0")
    assert caught.value.participant == "a"
    assert "token" not in str(caught.value)


def test_end_of_the_coordinator_is_told_once() -> None:
    with connected() as (link, coordinator, inbox):
        coordinator.socket.close()
        assert "closed the connection" in cause(inbox.next())
        link.send(messages.Goodbye())
        link.close()
        assert inbox.taken.empty()


def test_reset_by_the_coordinator_is_told() -> None:
    with connected() as (_, coordinator, inbox):
        option = struct.pack("ii", 1, 0)
        coordinator.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        coordinator.socket.close()
        assert "connection" in cause(inbox.next())


def test_silence_of_the_coordinator_is_told_and_ends_the_line() -> None:
    with connected(QUICK) as (_, coordinator, inbox):
        assert "no sign of life" in cause(inbox.next())
        while coordinator.next() is not None:
            pass  # heartbeats that were sent before


@pytest.mark.parametrize("data", [pack_message(b"garbage"), struct.pack(">I", 0xFFFFFFFF)])
def test_garbage_ends_the_line(data: bytes) -> None:
    with connected() as (_, coordinator, inbox):
        coordinator.socket.sendall(data)
        assert "control plane" in cause(inbox.next())
        assert coordinator.next() is None


def test_signs_of_life_are_sent() -> None:
    with connected(Deadlines(heartbeat_s=0.01, lost_s=30)) as (_, coordinator, _):
        assert coordinator.next() == messages.Heartbeat()


def test_send_to_one_who_does_not_read_gives_up() -> None:
    big = messages.Failed(1, 1, "write", messages.Failure("x", "x" * (16 << 20)))
    with connected(QUICK) as (link, _, inbox):
        link.send(big)
        cause(inbox.next())


def test_message_that_is_too_long_is_refused_and_the_line_lives() -> None:
    with connected() as (link, coordinator, _):
        with pytest.raises(InvalidInput):
            link.send(messages.Failed(1, 1, "write", messages.Failure("x", "x" * (65 << 20))))
        link.send(messages.Goodbye())
        assert coordinator.next() == messages.Goodbye()


def test_close_delivers_nothing_and_is_idempotent() -> None:
    with connected() as (link, coordinator, inbox):
        link.close()
        link.close()
        assert coordinator.next() is None
        assert inbox.taken.empty()


def test_close_from_a_callback_does_not_wait_for_itself() -> None:
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = SocketLink(Address("127.0.0.1", listener.getsockname()[1], ""), "a", PATIENT, "0")
        connection, _ = listener.accept()
        with closing(connection):

            def on_message(_: object) -> None:
                link.close()
                done.set()

            link.start(on_message)
            Coordinator(connection).send(messages.Welcome())
            assert done.wait(30)


def test_link_that_was_never_started_can_be_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "token")
        SocketLink(address, "a", PATIENT, "0").close()


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_forked_child_does_not_hold_the_line(is_forgotten: bool) -> None:
    """The worker of a loader is a fork: it must not keep the line of a dead actor open."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], "token")
        link = SocketLink(address, "a", PATIENT, "0")
        peer, _ = listener.accept()
        hold, release = os.pipe()
        if not is_forgotten:
            _forks._held.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process has threads
            child = os.fork()
        if child == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
        link._connection.close()  # without a shutdown, as at the end of a process
        peer.settimeout(30 if is_forgotten else 0.2)
        with peer, contextlib.suppress(TimeoutError):
            assert peer.recv(1) == b""
            assert is_forgotten, "the child kept it open before the line forgot forks"
        os.close(release)
        os.close(hold)
        os.waitpid(child, 0)
        link.close()
