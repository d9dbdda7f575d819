from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import struct
from contextlib import closing
from typing import Any

import pytest
from tests.protocol._conversations import PATIENT, Inbox
from tests.protocol._hub_peers import (
    GOODBYE,
    HEARTBEAT,
    NAMES,
    TOKEN,
    Peer,
    accepted,
    connected,
    idle,
    lost,
    reset,
    running,
)
from tests.steps._kit import captured, component

from stepseal import errors
from stepseal.protocol import Deadlines, SocketHub, SocketLink, _line, _socket_hub
from stepseal.protocol import _messages as messages
from stepseal.protocol._wire import pack_message, prove


def test_messages_go_both_ways() -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer:
        assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))
        peer.send(messages.Heartbeat())  # not delivered: it only counts as a sign of life
        peer.send(GOODBYE)
        assert inbox.next() == ("a", GOODBYE)
        hub.send("a", messages.Welcome())
        hub.send("b", messages.Welcome())  # not connected: dropped
        assert peer.next() == messages.Welcome()


def test_long_message_right_behind_hello_is_taken() -> None:
    long = captured(components=[component(f"c{n}") for n in range(100)])
    with running() as (hub, inbox), connected(hub) as peer:
        first = pack_message(messages.encode_message(messages.Hello("a", TOKEN, "0")))
        peer.socket.sendall(first + pack_message(messages.encode_message(long)))
        inbox.next()
        assert inbox.next() == ("a", long)


@pytest.mark.parametrize(
    "data",
    [
        pack_message(messages.encode_message(messages.Hello("a", "wrong", "0"))),
        pack_message(messages.encode_message(messages.Hello("a", "", "0"))),
        pack_message(messages.encode_message(messages.Hello("stranger", TOKEN, "0"))),
        pack_message(messages.encode_message(GOODBYE)),
        pack_message(b"garbage"),
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 4097),
        pack_message(b"{" * 4096),
        pytest.param(os.urandom(64), id="noise"),
    ],
)
def test_who_does_not_introduce_himself_is_shown_out(data: bytes) -> None:
    with running() as (hub, inbox), connected(hub) as peer:
        peer.socket.sendall(data)
        if len(data) == 64:  # may announce a length that is still to come
            peer.socket.shutdown(socket.SHUT_WR)
        assert peer.next() is None
        with connected(hub, "a"):
            assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))


@pytest.mark.parametrize(
    "data", [pack_message(b"garbage"), struct.pack(">I", 0xFFFFFFFF), pack_message(b"\x00" * 5000)]
)
def test_garbage_of_a_participant_ends_its_line_with_a_cause(data: bytes) -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        peer.socket.sendall(data)
        assert "control plane" in lost(inbox.next()).message
        assert peer.next() is None


def test_hub_proves_itself_once_before_hello() -> None:
    with running() as (hub, inbox), connected(hub) as peer, connected(hub) as other:
        peer.send(messages.Challenge("nonce"))
        assert peer.next() == messages.Proof(prove(TOKEN, "nonce"))
        peer.hello()
        assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))
        peer.send(messages.Challenge("nonce"))
        assert "one Hello" in lost(inbox.next()).message
        for number in range(2):
            other.send(messages.Challenge(str(number)))
        assert other.next() == messages.Proof(prove(TOKEN, "0"))
        assert other.next() is None


def test_hub_listens_on_every_socket_that_it_is_given() -> None:
    sockets = [socket.create_server((f"127.0.0.{number}", 0)) for number in (1, 2)]
    hub, inbox = SocketHub(sockets, NAMES, TOKEN, PATIENT), Inbox()
    hub.start(inbox)
    with closing(hub):
        assert [one.host for one in hub.addresses] == ["127.0.0.1", "127.0.0.2"]
        for name, address in zip(("a", "b"), hub.addresses, strict=True):
            with closing(SocketLink(address, name, PATIENT, "0")) as link:
                link.start(Inbox())
                assert inbox.next() == (name, messages.Hello(name, TOKEN, "0"))
                link.send(GOODBYE)
                assert inbox.next() == (name, GOODBYE)
            lost(inbox.next())
    assert [one.fileno() for one in sockets] == [-1, -1]


def test_second_hello_on_one_line_ends_it() -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        peer.hello("b")
        assert "second" in lost(inbox.next()).message


def test_second_line_of_a_participant_is_refused_and_the_first_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running() as (hub, inbox), connected(hub, "a") as first:
        inbox.next()
        with caplog.at_level(logging.WARNING), connected(hub, "a") as second:
            assert second.next() is None
        assert "connected twice" in caplog.text
        first.send(GOODBYE)
        assert inbox.next() == ("a", GOODBYE)


def test_restarted_participant_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with running() as (hub, inbox):
        with connected(hub, "a"):
            inbox.next()
        assert "process ended" in lost(inbox.next()).message
        with connected(hub, "a") as again:
            assert again.next() is None
    assert "connected twice" in caplog.text


def test_name_of_a_local_participant_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    hub, inbox, own = SocketHub("127.0.0.1", NAMES, TOKEN, PATIENT), Inbox(), Inbox()
    link = hub.link("a")
    hub.start(inbox)
    with closing(hub):
        link.start(own)
        assert inbox.next() == ("a", messages.Hello("a", "", ""))
        with connected(hub, "a") as peer:
            assert peer.next() is None
        hub.send("a", messages.Welcome())
        assert own.next() == messages.Welcome()


def test_reset_connection_is_a_loss() -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        reset(peer)
        assert "connection" in lost(inbox.next()).message


def test_connection_that_breaks_between_reading_and_writing_is_a_loss() -> None:
    inbox, go = Inbox(), queue.SimpleQueue[None]()

    def deliver(participant: str, message: object, _life: str) -> None:
        inbox(participant, message)
        if not isinstance(message, messages.Failure):
            go.get(timeout=30)

    hub = SocketHub("127.0.0.1", NAMES, TOKEN, PATIENT)
    hub.start(deliver)
    with closing(hub), connected(hub, "a") as peer:
        inbox.next()
        peer.send(GOODBYE)
        hub.send("a", messages.Welcome())
        go.put(None)  # now the line can be read and be written to, in one round
        assert inbox.next() == ("a", GOODBYE)
        reset(peer)
        go.put(None)
        assert "connection failed" in lost(inbox.next()).message


def test_line_that_is_not_ready_after_all_waits_for_the_next_round() -> None:
    with idle() as hub, connected(hub):
        line = accepted(hub)
        hub._receive(line)
        assert line.is_open
        line.unsent += bytes(64 << 20)
        num_waiting = [64 << 20]
        while len(num_waiting) < 2 or num_waiting[-1] < num_waiting[-2]:
            hub._transmit(line)
            num_waiting.append(len(line.unsent))
        assert line.is_open
        assert 0 < num_waiting[-1] < 64 << 20


def test_line_that_was_dropped_for_another_is_not_served_in_the_same_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_socket_hub, "_MAX_STRANGERS", 1 - len(NAMES))
    with idle() as hub, connected(hub, "a") as first:
        line = accepted(hub)
        with connected(hub):
            while len(ready := hub._selector.select(30)) < 2:
                pass
            for key, mask in sorted(ready, key=lambda found: found[0].data is line):
                hub._on_ready(key, mask)
            assert first.next() is None
            assert line not in hub._strangers
            assert accepted(hub).is_open


def test_who_said_hello_and_nobody_else_gets_signs_of_life() -> None:
    with (
        running(Deadlines(heartbeat_s=0.01)) as (hub, inbox),
        connected(hub) as stranger,
        connected(hub, "a") as peer,
    ):
        inbox.next()
        data = b""
        while len(data) < 3 * len(HEARTBEAT):
            data += peer.socket.recv(1 << 16)
        assert data.startswith(3 * HEARTBEAT)
        (line,) = hub._strangers
        assert not line.unsent
        stranger.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.socket.recv(1)


def test_participant_of_another_release_is_told_and_nothing_more_of_it_is_taken() -> None:
    with running(version="1") as (hub, inbox):
        with connected(hub) as peer:
            hello = pack_message(messages.encode_message(messages.Hello("a", TOKEN, "2")))
            peer.socket.sendall(hello + pack_message(messages.encode_message(GOODBYE)))
            cause = lost(inbox.next())
            assert cause.kind == errors.InvalidInput.kind
            assert "a runs stepseal '2': expected '1'" in cause.message
            assert peer.next() == messages.Refused(cause.kind, cause.message)
            assert peer.next() is None
        with connected(hub) as same:
            same.send(messages.Hello("b", TOKEN, "1"))
            assert inbox.next() == ("b", messages.Hello("b", TOKEN, "1"))


def test_silence_is_a_loss() -> None:
    with running(Deadlines(heartbeat_s=0.01)) as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        hub._lines["a"].last_seen -= 31.0
        assert "no sign of life" in lost(inbox.next()).message
        assert peer.next() is None


def test_hello_that_comes_in_drops_does_not_keep_a_line_open() -> None:
    with running(Deadlines(heartbeat_s=0.01)) as (hub, inbox), connected(hub) as peer:
        peer.socket.sendall(struct.pack(">I", 4096))
        while not hub._strangers:
            hub.send("b", messages.Welcome())
        (line,) = hub._strangers
        line.opened_at -= 31.0  # although it was seen just now
        assert peer.next() is None
        assert inbox.taken.empty()


def test_many_who_say_nothing_do_not_keep_a_participant_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_socket_hub, "_MAX_STRANGERS", 1)
    with running() as (hub, inbox):
        mute = [Peer(hub) for _ in range(10)]
        with connected(hub, "a"):
            assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))
            assert mute[0].next() is None
            assert len(hub._strangers) <= hub._max_strangers
        for peer in mute:
            peer.socket.close()


def test_lack_of_descriptors_costs_strangers_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.accept
    answers: list[OSError | None] = [None, OSError(errno.EMFILE, "Too many open files")]

    def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
        answer = answers.pop(0) if answers else None
        if answer is not None:
            raise answer
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with running() as (hub, inbox), connected(hub) as mute, connected(hub, "a"):
        assert mute.next() is None
        assert inbox.next() == ("a", messages.Hello("a", TOKEN, "0"))


def test_participant_that_does_not_read_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_line, "MAX_UNSENT_BYTES", 1 << 20)
    big = messages.Unresolved(1, "a" * 32, 1, "x" * (1 << 18))
    with running() as (hub, inbox), connected(hub, "a"):
        inbox.next()
        for _ in range(200):
            hub.send("a", big)
        assert "does not read" in lost(inbox.next()).message


def test_long_messages_arrive_whole() -> None:
    big = messages.Unresolved(1, "a" * 32, 1, "x" * (8 << 20))
    with running() as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        hub.send("a", big)
        assert peer.next() == big


def test_closing_flushes_and_ends_all_lines() -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer, connected(hub) as stranger:
        inbox.next()
        hub.send("a", messages.Welcome())
        hub.close()
        hub.close()
        assert peer.next() == messages.Welcome()
        assert peer.next() is None
        assert stranger.next() is None
        assert inbox.taken.empty()
        hub.send("a", messages.Welcome())


def test_hub_that_was_never_started_can_be_closed() -> None:
    hub = SocketHub("127.0.0.1", NAMES, TOKEN, PATIENT)
    hub.close()
    hub.close()


def test_closing_gives_up_on_a_line_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_socket_hub, "_FLUSH_S", 0.05)
    with running() as (hub, inbox), connected(hub, "a"):
        inbox.next()
        hub.send("a", messages.Unresolved(1, "a" * 32, 1, "x" * (32 << 20)))
        hub.close()


def test_defect_of_the_hub_releases_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer, connected(hub) as stranger:
        inbox.next()
        monkeypatch.setattr(hub, "_watch_writes", lambda: 1 / 0)
        peer.send(messages.Heartbeat())
        assert "control plane failed" in lost(inbox.next()).message
        assert peer.next() is None
        assert stranger.next() is None
    assert "defect" in caplog.text


def test_interface_that_cannot_be_listened_on() -> None:
    with pytest.raises(OSError, match=r".+"):
        SocketHub("192.0.2.1", NAMES, TOKEN, PATIENT)


def test_ipv6() -> None:
    try:
        hub = SocketHub("::1", NAMES, TOKEN, PATIENT)
    except OSError:
        pytest.skip("no IPv6 loopback here")
    hub.start(Inbox())
    with closing(hub), connected(hub, "a"):
        assert hub.address.host == "::1"
