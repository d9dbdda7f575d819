"""Lines of participants that are admitted, admitted again, and released, while the hub runs."""

from __future__ import annotations

from contextlib import closing

from tests.protocol._conversations import PATIENT, Inbox
from tests.protocol._hub_peers import TOKEN, Peer, running

from stepseal.protocol import InProcessHub, SocketHub
from stepseal.protocol import _messages as messages


def hello(name: str, life: str) -> messages.Hello:
    return messages.Hello(name, TOKEN, "0", life)


def is_closed(peer: Peer) -> bool:
    """Wait for the end of a connection; what still arrives is dropped."""
    while peer.next() is not None:
        pass
    return True


def test_a_participant_connects_once_it_is_admitted() -> None:
    with running() as (hub, inbox):
        with closing((early := Peer(hub)).socket):
            early.send(hello("new", "one"))
            assert is_closed(early)
        hub.admit("new", "one")
        with closing((peer := Peer(hub)).socket):
            peer.send(hello("new", "one"))
            assert inbox.next() == ("new", hello("new", "one"), "one")


def test_a_new_life_replaces_the_line_of_the_old_one() -> None:
    with running() as (hub, inbox):
        hub.admit("new", "one")
        with closing((old := Peer(hub)).socket), closing((young := Peer(hub)).socket):
            old.send(hello("new", "one"))
            inbox.next()
            hub.admit("new", "two")
            delivered = inbox.next()
            assert isinstance(delivered, tuple)
            assert (delivered[0], delivered[2]) == ("new", "one")
            assert "replaced" in delivered[1].message
            assert is_closed(old)
            young.send(hello("new", "two"))
            assert inbox.next() == ("new", hello("new", "two"), "two")


def test_an_old_life_cannot_come_back() -> None:
    with running() as (hub, inbox):
        hub.admit("new", "one")
        hub.admit("new", "two")
        with closing((old := Peer(hub)).socket), closing((young := Peer(hub)).socket):
            old.send(hello("new", "one"))
            assert is_closed(old)
            young.send(hello("new", "two"))
            assert inbox.next() == ("new", hello("new", "two"), "two")


def test_two_processes_with_one_life_are_told_apart() -> None:
    with running() as (hub, inbox):
        hub.admit("new", "one")
        with closing((first := Peer(hub)).socket), closing((second := Peer(hub)).socket):
            first.send(hello("new", "one"))
            inbox.next()
            second.send(hello("new", "one"))
            assert is_closed(second)
            first.send(messages.Goodbye())
            assert inbox.next() == ("new", messages.Goodbye(), "one")


def test_a_dismissal_arrives_before_the_line_ends() -> None:
    with running() as (hub, inbox):
        hub.admit("new", "one")
        with closing((peer := Peer(hub)).socket):
            peer.send(hello("new", "one"))
            inbox.next()
            hub.send("new", messages.Dismiss())
            assert peer.next() == messages.Dismiss()
            assert is_closed(peer)
        with closing((again := Peer(hub)).socket):
            again.send(hello("new", "one"))
            assert is_closed(again)


def test_lives_of_participants_in_the_same_process() -> None:
    hub, to_hub, first, second = InProcessHub(), Inbox(), Inbox(), Inbox()
    hub.start(to_hub)
    old = hub.link("a", "one")
    old.start(first)
    assert to_hub.next() == ("a", messages.Hello("a", "", "", "one"), "one")
    hub.admit("a", "two")
    assert isinstance(first.next(), messages.Failure)
    young = hub.link("a", "two")
    young.start(second)
    assert to_hub.next() == ("a", messages.Hello("a", "", "", "two"), "two")
    hub.send("a", messages.Welcome())
    assert second.next() == messages.Welcome()
    assert first.taken.empty()
    hub.send("a", messages.Dismiss())
    assert second.next() == messages.Dismiss()
    hub.send("a", messages.Welcome())
    assert second.taken.empty()


def test_a_hub_without_participants_listens() -> None:
    with closing(SocketHub("127.0.0.1", (), TOKEN, PATIENT)) as hub:
        assert hub.address.port
