"""Whoever reaches the coordinator's port without the token changes nothing, blocks nobody and costs
little; who has it must still be of this job, of this release, and speak of this attempt.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import socket
import struct
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.protocol._conversations import PATIENT, Inbox
from tests.protocol._hub_peers import NAMES, TOKEN, connected, lost
from tests.steps._kit import attempt_id, captured, cause, part_report

from stepseal import errors
from stepseal.protocol import Deadlines, ParticipantDriver, SocketHub, SocketLink
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._wire import MAX_MESSAGE_BYTES, Address, MessageReader, pack_message

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "1.2.3"
HELLO = messages.encode_message(messages.Hello("a", TOKEN, VERSION))


@contextmanager
def hub_of(
    deadlines: Deadlines = PATIENT, host: str = "127.0.0.1"
) -> Iterator[tuple[SocketHub, Inbox]]:
    inbox = Inbox()
    hub = SocketHub(host, NAMES, TOKEN, deadlines, VERSION)
    hub.start(inbox)
    with closing(hub):
        yield hub, inbox


def still_serves(hub: SocketHub, inbox: Inbox, name: str = "a") -> None:
    """Check that a participant is let in and answered."""
    with connected(hub) as peer:
        peer.send(messages.Hello(name, TOKEN, VERSION))
        delivered = inbox.next()
        assert delivered == (name, messages.Hello(name, TOKEN, VERSION))
        hub.send(name, messages.Welcome())
        assert peer.next() == messages.Welcome()


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "pickle": pack_message(pickle.dumps({"participant": "a"})),
    "hostile pickle": pack_message(b"cos\nsystem\n(S'touch stepseal-was-here'\ntR."),
    "4 GiB": struct.pack(">I", 0xFFFFFFFF) + b"x" * 100,
    "2 GiB": struct.pack(">I", 0x7FFFFFFF) + b"x" * 100,
    "64 MiB": struct.pack(">I", MAX_MESSAGE_BYTES) + b"x" * 100,
    "nothing in it": pack_message(b""),
    "empty object": pack_message(b"{}"),
    "array": pack_message(b"[]"),
    "deep": pack_message(b"[" * 4000),
    "nan": pack_message(b"NaN"),
    "long int": pack_message(b'{"type":"Goodbye","x":' + b"9" * 4000 + b"}"),
    "not utf-8": pack_message(HELLO.replace(b'"a"', b'"\xff"')),
    "surrogate": pack_message(HELLO.replace(TOKEN.encode(), b"\\ud800")),
    "no token": pack_message(HELLO.replace(TOKEN.encode(), b"")),
    "wrong token": pack_message(HELLO.replace(TOKEN.encode(), b"u" * 32)),
    "prefix of the token": pack_message(HELLO.replace(TOKEN.encode(), TOKEN[:31].encode())),
    "token as a number": pack_message(HELLO.replace(f'"{TOKEN}"'.encode(), b"0")),
    "another participant": pack_message(HELLO.replace(b'"a"', b'"mallory"')),
    "extra field": pack_message(HELLO.replace(b"{", b'{"x":1,', 1)),
    "without hello": pack_message(messages.encode_message(captured())),
    "of the coordinator": pack_message(messages.encode_message(messages.Welcome())),
    "two hellos wrong first": pack_message(HELLO.replace(TOKEN.encode(), b""))
    + pack_message(HELLO),
    "zeros": bytes(4096),
    "noise": os.urandom(4096),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_shown_out_and_nobody_else_notices(what: str) -> None:
    with hub_of() as (hub, inbox), connected(hub) as peer:
        peer.socket.sendall(GARBAGE[what])
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_WR)
        assert peer.next() is None
        still_serves(hub, inbox)


def test_a_long_announcement_takes_no_memory() -> None:
    reader = MessageReader(4096)
    reader.feed(struct.pack(">I", 0xFFFFFFFF))
    with pytest.raises(errors.InvalidInput, match="at most 4096"):
        reader.take()
    with hub_of() as (hub, inbox):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                peer = stack.enter_context(connected(hub))
                with contextlib.suppress(OSError):
                    peer.socket.sendall(struct.pack(">I", 4000) + b"x" * 3999)
            still_serves(hub, inbox)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_half_open_connections_do_not_block_and_end() -> None:
    short = Deadlines(
        connect_s=30, capture_s=30, write_s=30, commit_s=30, check_s=30, apply_s=30, close_s=30,
        heartbeat_s=0.05, lost_s=0.5,
    )  # fmt: skip
    with hub_of(short) as (hub, inbox), contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(hub)) for _ in range(40)]
        data = pack_message(HELLO.replace(TOKEN.encode(), b"u" * 32))
        begun = time.monotonic()
        for peer in slow[:20]:
            peer.socket.sendall(data[:3])
        still_serves(hub, inbox)
        while time.monotonic() - begun < 20:  # a byte now and then does not buy more time
            try:
                for position, peer in enumerate(slow):
                    peer.socket.send(data[3 + position : 4 + position])
            except OSError:
                break
        for peer in slow:
            assert peer.next() is None
        assert time.monotonic() - begun < 20


def num_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_flood_of_connections_is_bounded_and_a_participant_gets_in() -> None:
    with hub_of() as (hub, inbox), contextlib.ExitStack() as stack:
        before = num_descriptors()
        num_flood = 300
        for _ in range(num_flood):
            stack.enter_context(connected(hub))
        still_serves(hub, inbox)
        held = num_descriptors() - before - num_flood  # what the hub holds of them
        assert held <= 64 + len(NAMES) + 2


def test_only_the_given_interface_is_listened_on() -> None:
    with hub_of() as (hub, _):
        hexes = {f"0100007F:{hub.address.port:04X}"}
        with open("/proc/net/tcp") as lines:
            listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
        port = f":{hub.address.port:04X}"
        assert {place for place in listening if place.endswith(port)} == hexes
        with pytest.raises(OSError, match=r"refused|unreachable"):
            socket.create_connection(("127.0.0.2", hub.address.port), timeout=5)


def test_another_release_is_refused_by_name_on_both_sides() -> None:
    with hub_of() as (hub, inbox):
        link = SocketLink(hub.address, "b", PATIENT, "9.9.9")
        with pytest.raises(errors.InvalidInput, match=r"b runs stepseal '9\.9\.9'.*'1\.2\.3'"):
            ParticipantDriver("b", link, PATIENT)
        found = lost(inbox.next())
        assert found.kind == errors.InvalidInput.kind
        assert "same release" in found.message
        still_serves(hub, inbox)


def test_the_wrong_token_of_a_real_participant_is_a_typed_error() -> None:
    with hub_of() as (hub, inbox):
        address = Address(hub.address.host, hub.address.port, "0" * 32)
        with pytest.raises(errors.CoordinatorLost, match="did not accept"):
            ParticipantDriver("b", SocketLink(address, "b", PATIENT, VERSION), PATIENT)
        still_serves(hub, inbox)


def test_the_token_is_compared_in_constant_time() -> None:
    source = SocketHub._knows.__code__.co_names
    assert "compare_digest" in source


# -- with the token: only messages of this call and attempt count ---------------------------------


def in_write() -> tuple[Coordinator, str]:
    """Return a coordinator that waits for two parts, and the attempt."""
    coordinator = Coordinator(("a", "b"), PATIENT, lambda: attempt_id(1))
    for name in ("a", "b"):
        todo = coordinator.on_message(name, captured(call=1), 0.0)
    assert any(isinstance(action, actions.BeginStaging) for action in todo)
    todo = coordinator.on_driver(actions.Staged(1, "staging", "nonce"), 0.0)
    assert any(isinstance(action, actions.Send) for action in todo)
    return coordinator, attempt_id(1)


def publishes(todo: list[actions.Action]) -> bool:
    return any(isinstance(action, actions.Publish) for action in todo)


def test_a_prepared_of_another_attempt_or_call_never_publishes() -> None:
    coordinator, attempt = in_write()

    def prepared(name: str, call: int = 1, of: str = attempt) -> messages.Prepared:
        return messages.Prepared(call, of, part_report(name))

    assert not publishes(coordinator.on_message("a", prepared("a"), 1.0))
    for replayed in (
        prepared("b", of=attempt_id(2)),
        prepared("b", of=""),
        prepared("b", call=2),
        prepared("b", call=0),
    ):
        assert not publishes(coordinator.on_message("b", replayed, 1.0))
    for name in ("stranger", "", "A"):
        assert coordinator.on_message(name, prepared("b"), 1.0) == []


def test_a_replayed_prepared_publishes_once_and_changes_nothing_later() -> None:
    coordinator, attempt = in_write()
    both = [messages.Prepared(1, attempt, part_report(name)) for name in ("a", "b")]
    first = coordinator.on_message("a", both[0], 1.0)
    again = coordinator.on_message("a", both[0], 1.0)
    assert not publishes(first)
    assert not publishes(again)
    assert publishes(coordinator.on_message("b", both[1], 1.0))
    for name, message in zip(("a", "b"), both, strict=True):
        assert coordinator.on_message(name, message, 2.0) == []


def test_nobody_counts_who_was_lost() -> None:
    coordinator, attempt = in_write()
    coordinator.on_lost("b", cause())
    for name in ("a", "b"):
        todo = coordinator.on_message(name, messages.Prepared(1, attempt, part_report(name)), 1.0)
        assert not publishes(todo)
