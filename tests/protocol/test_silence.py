"""Silence counts only while the one who judges it ran, and after it has read what waits.

A job that is suspended as a whole, a C call that holds the GIL, a debugger: whoever wakes up has
heard nothing for long, and so may everybody else.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import time
import warnings
from typing import TYPE_CHECKING

import pytest
from tests._forks import in_child
from tests.protocol._conversations import PATIENT, Inbox, Job
from tests.protocol._hub_peers import (
    GOODBYE,
    HEARTBEAT,
    TOKEN,
    accepted,
    connected,
    idle,
    running,
)

from stepseal import errors
from stepseal.process import OwnTime, _forks
from stepseal.protocol import (
    Address,
    Deadlines,
    SocketLink,
    _coordinator_driver,
    _socket_hub,
    _socket_link,
)
from stepseal.protocol import _messages as messages
from stepseal.protocol._actions import Send
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._restore_round import RestoreRound
from stepseal.protocol._wire import pack_message

if TYPE_CHECKING:
    from types import ModuleType

BEAT_S, LOST_S = 5.0, 30.0
FAST = Deadlines(heartbeat_s=0.01, lost_s=LOST_S)
"""Of real time a beat takes next to nothing; the clock of the tests decides what it counts."""


class Clock:
    """Monotonic seconds that a test moves, by itself or with each look."""

    def __init__(self, tick_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.tick_s = tick_s
        self.looks: queue.SimpleQueue[float] = queue.SimpleQueue()

    def __call__(self) -> float:
        self.now_s += self.tick_s
        self.looks.put(self.now_s)
        return self.now_s

    def wait_looks(self, number: int) -> None:
        """Wait until somebody has looked that often, from now on."""
        while not self.looks.empty():
            self.looks.get()
        for _ in range(number):
            self.looks.get(timeout=60)


def go_by(clock: Clock, module: ModuleType, patch: pytest.MonkeyPatch, *, naive: bool) -> None:
    """Let a side go by a clock; `naive` counts the time in which nobody looked, too."""
    own = (lambda _: clock) if naive else (lambda _: OwnTime(BEAT_S, clock))
    patch.setattr(module, "OwnTime", own)


@pytest.mark.parametrize("naive", [False, True])
def test_a_hub_that_was_stopped_holds_it_against_nobody(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    go_by(clock, _socket_hub, monkeypatch, naive=naive)
    with idle() as hub, connected(hub):
        line = accepted(hub)
        hub._judge()
        clock.now_s += 3600.0
        hub._judge()
        assert line.is_open is not naive


def test_who_alone_is_silent_is_lost_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    go_by(clock, _socket_hub, monkeypatch, naive=False)
    with idle() as hub, connected(hub):
        line = accepted(hub)
        for _ in range(int(LOST_S / BEAT_S)):
            clock.now_s += BEAT_S
            hub._judge()
            assert line.is_open
        clock.now_s += BEAT_S
        hub._judge()
        assert not line.is_open


@pytest.mark.parametrize("naive", [False, True])
def test_the_hub_reads_what_waits_before_it_judges(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with idle() as hub, connected(hub) as peer:
        line = accepted(hub)
        hub._on_message = Inbox()
        line.participant = "a"
        line.last_seen -= 2 * PATIENT.lost_s
        peer.socket.sendall(HEARTBEAT)
        if naive:
            monkeypatch.setattr(hub, "_read_ready", lambda _: None)
        hub._judge()
        assert line.is_open is not naive


@contextlib.contextmanager
def linked(deadlines: Deadlines = FAST):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """A link that runs, its inbox, and the coordinator's socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], TOKEN)
        link, inbox = SocketLink(address, "a", deadlines, "0"), Inbox()
        peer, _ = listener.accept()
        with peer:
            link.start(inbox)
            try:
                yield link, inbox, peer
            finally:
                link.close()


@pytest.mark.parametrize("naive", [False, True])
def test_a_participant_that_was_stopped_does_not_hold_it_against_the_coordinator(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    go_by(clock, _socket_link, monkeypatch, naive=naive)
    with linked() as (_, inbox, peer):
        clock.wait_looks(2)
        clock.now_s += 3600.0
        if naive:
            found = inbox.next()
            assert isinstance(found, messages.Failure)
            assert "no sign of life" in found.message
            return
        clock.wait_looks(2)
        peer.sendall(pack_message(messages.encode_message(messages.Welcome())))
        assert inbox.next() == messages.Welcome()


def test_a_coordinator_that_alone_is_silent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    go_by(Clock(tick_s=BEAT_S), _socket_link, monkeypatch, naive=False)
    with linked() as (_, inbox, _):
        found = inbox.next()
        assert isinstance(found, messages.Failure)
        assert found.kind == errors.CoordinatorLost.kind
        assert "no sign of life" in found.message


@pytest.mark.parametrize("naive", [False, True])
def test_a_participant_reads_what_waits_before_it_judges(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait ends in time, and the GIL comes back late: the welcome arrives in between."""
    go_by(Clock(tick_s=2 * LOST_S), _socket_link, monkeypatch, naive=True)
    is_ready = SocketLink._is_ready
    late: list[bool] = []

    def ready(self: SocketLink, event: int, limit_s: float | None = None) -> bool:
        if limit_s is None and event == select.POLLIN and not late:
            late.append(True)
            return False
        return not (naive and limit_s == 0.0) and is_ready(self, event, limit_s)

    monkeypatch.setattr(SocketLink, "_is_ready", ready)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], TOKEN)
        link, inbox = SocketLink(address, "a", FAST, "0"), Inbox()
        peer, _ = listener.accept()
        with peer:
            peer.sendall(pack_message(messages.encode_message(messages.Welcome())))
            link.start(inbox)
            found = inbox.next()
            link.close()
    assert isinstance(found, messages.Failure if naive else messages.Welcome)


@pytest.mark.parametrize("naive", [False, True])
def test_a_coordinator_that_was_stopped_waits_on(
    naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the captures of two ranks the whole job is suspended for an hour."""
    if naive:
        monkeypatch.setattr(Coordinator, "on_slept", lambda _, slept_s: None)
    coordinator = Coordinator(("t/0", "t/1"), PATIENT, lambda: "0" * 32)
    coordinator.on_message("t/0", messages.Captured(1, 5, [], {}, {}, []), 0.0)
    coordinator.on_slept(3600.0)
    assert bool(coordinator.on_time(3601.0)) is naive
    if not naive:
        assert coordinator.on_time(3600.0 + PATIENT.capture_s)  # who alone is silent is named


def test_the_driver_tells_the_coordinator_how_long_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: queue.SimpleQueue[float] = queue.SimpleQueue()
    slept_s = [0.0]
    monkeypatch.setattr(Coordinator, "on_slept", lambda _, seconds: told.put(seconds))
    monkeypatch.setattr(_coordinator_driver, "own_time_s", lambda: time.monotonic() - slept_s[0])
    job = Job()
    slept_s[0] = 3600.0
    job.coordinator.release("nobody")  # whatever wakes it up
    assert told.get(timeout=30) == pytest.approx(3600.0, abs=30)
    job.coordinator.close(linger=False)


def test_no_message_promises_a_save_that_cannot_succeed() -> None:
    coordinator = Coordinator(("t/0", "t/1"), PATIENT, lambda: "0" * 32)
    coordinator.on_lost("t/1", messages.Failure(errors.ParticipantFailed.kind, "no sign of life"))
    told = coordinator.on_message("t/0", messages.Captured(1, 5, [], {}, {}, []), 0.0)
    found = [one.message for one in told if isinstance(one, Send)]
    aborted = [one for one in found if isinstance(one, messages.Aborted)]
    assert len(aborted) == 2
    for one in aborted:
        assert "next save" not in one.message
        assert "restart the job" in one.message


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_a_forked_child_does_not_hold_the_lines_of_a_dead_coordinator(is_forgotten: bool) -> None:
    with idle() as hub, connected(hub) as peer:
        line = accepted(hub)
        if not is_forgotten:
            _forks._held.clear()
        hold, release = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this process has threads
            child = os.fork()
        if child == 0:
            os.close(release)
            os.read(hold, 1)
            os._exit(0)
        hub._selector.unregister(line.connection)
        line.connection.close()  # without a shutdown, as at the end of a process
        peer.socket.settimeout(30 if is_forgotten else 0.2)
        with contextlib.suppress(TimeoutError):
            assert peer.socket.recv(1) == b""
            assert is_forgotten, "the child kept it open before the hub forgot forks"
        os.close(release)
        os.close(hold)
        os.waitpid(child, 0)


def test_the_hub_of_a_parent_serves_on_when_a_child_has_closed_its_copy() -> None:
    with running() as (hub, inbox), connected(hub, "a") as peer:
        inbox.next()
        assert in_child(hub.close) == "None"
        peer.send(GOODBYE)
        assert inbox.next() == ("a", GOODBYE)


def test_a_line_that_takes_nothing_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    go_by(Clock(tick_s=BEAT_S), _socket_link, monkeypatch, naive=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address("127.0.0.1", listener.getsockname()[1], TOKEN)
        link = SocketLink(address, "a", FAST, "0")
        peer, _ = listener.accept()
        with peer:
            link.send(messages.Failed(1, 1, "write", messages.Failure("x", "x" * (16 << 20))))
            peer.settimeout(60)
            while peer.recv(1 << 20):
                pass  # until its end
        link.close()


def test_both_ends_forget_their_descriptors_without_a_word() -> None:
    with idle() as hub, connected(hub) as peer:
        line = accepted(hub)
        hub.forget()
        assert not line.is_open
        assert peer.socket.recv(1) == b""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = SocketLink(Address("127.0.0.1", listener.getsockname()[1], TOKEN), "a", FAST, "0")
        peer_end, _ = listener.accept()
        with peer_end:
            link.forget()
            assert peer_end.recv(1) == b""
            link.send(messages.Heartbeat())  # is lost
        link.close()


def test_a_restore_waits_on_after_a_sleep() -> None:
    found = RestoreRound(1, ("t/0", "t/1"), PATIENT, 0.0)
    found.postpone(3600.0)
    assert found.deadline == PATIENT.connect_s + 3600.0
