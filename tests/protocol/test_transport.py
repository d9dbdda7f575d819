from __future__ import annotations

from tests.protocol._conversations import Inbox

from stepseal.errors import CoordinatorLost
from stepseal.protocol import InProcessHub
from stepseal.protocol import _messages as messages

HELLO = messages.Hello("a", "", "")


def test_messages_go_both_ways_and_start_with_hello() -> None:
    hub, to_hub, to_link = InProcessHub(), Inbox(), Inbox()
    hub.start(to_hub)
    link = hub.link("a")
    assert hub.link("a") is link
    link.start(to_link)
    link.send(messages.Goodbye())
    assert [to_hub.next(), to_hub.next()] == [("a", HELLO), ("a", messages.Goodbye())]
    hub.send("a", messages.Welcome())
    hub.send("nobody", messages.Welcome())
    assert to_link.next() == messages.Welcome()


def test_participant_may_start_before_the_coordinator() -> None:
    hub, to_hub = InProcessHub(), Inbox()
    hub.link("a").start(Inbox())
    hub.start(to_hub)
    assert to_hub.next() == ("a", HELLO)


def test_message_to_a_link_that_is_not_started_is_dropped() -> None:
    hub = InProcessHub()
    hub.link("a")
    hub.send("a", messages.Welcome())


def test_closing_tells_participants_once_and_stops_delivery() -> None:
    hub, to_hub, to_link = InProcessHub(), Inbox(), Inbox()
    hub.start(to_hub)
    link = hub.link("a")
    link.start(to_link)
    to_hub.next()
    hub.close()
    hub.close()
    lost = to_link.next()
    assert isinstance(lost, messages.Failure)
    assert lost.kind == CoordinatorLost.kind
    link.send(messages.Goodbye())
    assert to_hub.taken.empty()
    assert to_link.taken.empty()


def test_start_after_the_hub_closed_is_told_at_once() -> None:
    hub, to_link = InProcessHub(), Inbox()
    hub.close()
    hub.link("a").start(to_link)
    assert isinstance(to_link.next(), messages.Failure)


def test_closed_link_delivers_nothing() -> None:
    hub, to_link = InProcessHub(), Inbox()
    link = hub.link("a")
    link.start(to_link)
    link.close()
    hub.send("a", messages.Welcome())
    assert to_link.taken.empty()
