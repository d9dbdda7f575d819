"""What a message costs the coordinator does not grow with the number of participants."""

from __future__ import annotations

from contextlib import ExitStack
from unittest import mock

import pytest
from tests.protocol._conversations import Inbox
from tests.protocol._hub_peers import TOKEN, connected
from tests.protocol._opened import Actors, opening

from stepseal.protocol import Deadlines, SocketHub
from stepseal.protocol import _messages as messages
from stepseal.protocol._lives import Lives
from stepseal.protocol._save_round import SaveRound

MANY = 64
SILENT = Deadlines(heartbeat_s=1e4, lost_s=1e5)


@pytest.mark.parametrize("number", [4, MANY])
def test_a_message_over_one_line_leaves_the_other_lines_alone(number: int) -> None:
    names = tuple(f"trainer/{rank}" for rank in range(number))
    inbox = Inbox()
    with ExitStack() as stack:
        hub = SocketHub("127.0.0.1", names, TOKEN, SILENT)
        stack.callback(hub.close)
        hub.start(inbox)
        peers = [stack.enter_context(connected(hub, name)) for name in names]
        for _ in names:
            inbox.next()
        real = hub._selector.modify
        with mock.patch.object(hub._selector, "modify", side_effect=real) as modify:
            for _ in range(10):
                hub.send(names[0], messages.Welcome())
                assert peers[0].next() == messages.Welcome()
        told = {call.args[0] for call in modify.call_args_list}
        assert len(told) == 1
        assert modify.call_count <= 2 * 10


def test_who_is_gone_is_looked_up_when_somebody_goes_and_not_for_each_message() -> None:
    names = tuple(f"trainer/{rank}" for rank in range(MANY))
    actors = Actors(*names)
    actors.admit(names[0])
    call = actors.open(opening())
    with (
        mock.patch.object(Lives, "_look", autospec=True, side_effect=Lives._look) as look,
        mock.patch.object(SaveRound, "missing", autospec=True, return_value=()) as missing,
    ):
        for name in names[:-1]:
            actors.capture(name, call)
    assert look.call_count <= 1
    assert missing.call_count == 0
    actors.lose(names[-1])
    assert set(actors.outcome(call).failures) == {names[-1]}
