"""Which of several addresses a participant takes, and what it says if none is the coordinator's."""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.protocol._conversations import PATIENT, Inbox
from tests.protocol._hub_peers import NAMES, TOKEN, running

from stepseal import errors
from stepseal.protocol import Address, SocketHub, SocketLink, place_of, reach
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import pack_message, prove

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 30.0
CLOSE = b""
"""A stranger that hangs up at once."""


@contextmanager
def stranger(answer: bytes | None) -> Iterator[tuple[Address, queue.SimpleQueue[bytes]]]:
    """Somebody else at an address: gives one answer, or none; what it hears is put in the queue."""
    heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            stack.enter_context(closing(connection))
            heard.put(connection.recv(1 << 16))
            if answer is not None:
                connection.sendall(answer)
            if answer == CLOSE:
                connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1], TOKEN), heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def nobody() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return Address("127.0.0.1", listener.getsockname()[1], TOKEN)


ANSWERS = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "wrong proof": pack_message(messages.encode_message(messages.Proof(prove("guess", "n")))),
    "welcome": pack_message(messages.encode_message(messages.Welcome())),
    "hangs up": CLOSE,
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_stranger_at_the_first_address_is_passed_over_and_is_not_told_the_token(
    what: str,
) -> None:
    with running() as (hub, inbox), stranger(ANSWERS[what]) as (address, heard):
        connection = reach([address, nobody(), hub.address], "a", LIMIT_S)
        link = SocketLink(hub.address, "a", PATIENT, "0", connection)
        with closing(link):
            link.start(Inbox())
            assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))
        assert TOKEN.encode() not in heard.get()


def test_the_first_address_wins() -> None:
    with running() as (hub, _), closing(reach([hub.address, nobody()], "a", LIMIT_S)) as found:
        assert found.getpeername()[1] == hub.address.port
        assert found.gettimeout() is None


def test_ipv6() -> None:
    try:
        hub = SocketHub("::1", NAMES, TOKEN, PATIENT)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    hub.start(Inbox())
    with closing(hub), closing(reach([hub.address], "a", LIMIT_S)) as connection:
        assert connection.family == socket.AF_INET6


def test_every_address_that_was_tried_is_named_with_its_reason() -> None:
    with running() as (hub, _), stranger(b"garbage garbage") as (other, _):
        wrong = Address(hub.address.host, hub.address.port, "another token")
        name = Address("not-numeric", 1, TOKEN)
        tried = [nobody(), name, other, wrong, Address("255.255.255.255", 9, TOKEN)]
        with pytest.raises(errors.CoordinatorLost) as caught:
            reach(tried, "trainer/1", LIMIT_S)
    found = caught.value
    assert found.participant == "trainer/1"
    assert len(found.problems) == len(tried)
    for address, problem in zip(tried, found.problems, strict=True):
        assert problem.startswith(f"{place_of(address)}: ")
        assert problem in str(found)
    assert "refused" in found.problems[0]
    assert "somebody else" in found.problems[2]
    assert "somebody else" in found.problems[3]
    assert "control_port=" in str(found)
    assert "control_host=" in str(found)
    assert TOKEN not in str(found)


@pytest.mark.parametrize("answer", [None, b"\x00\x00"])
def test_silence_ends_at_the_limit(answer: bytes | None) -> None:
    with stranger(answer) as (silent, _), pytest.raises(errors.CoordinatorLost) as caught:
        reach([silent, nobody()], "a", 0.1)
    assert "connected, but no answer within 0.1 s" in caught.value.problems[0]
    assert "not tried in time" in caught.value.problems[1]


def test_an_address_that_drops_everything_costs_little() -> None:
    with ExitStack() as stack, running() as (hub, _):
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the kernel drops what comes to a full queue
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        dropped = Address("127.0.0.1", full.getsockname()[1], TOKEN)
        with pytest.raises(errors.CoordinatorLost, match=r"\d: no answer within"):
            reach([dropped], "a", 0.05)
        with closing(reach([dropped, hub.address], "a", LIMIT_S)) as connection:
            assert connection.getpeername()[1] == hub.address.port


def test_place_of_ipv6_is_in_brackets() -> None:
    assert place_of(Address("fd00::1", 80, "")) == "[fd00::1]:80"
