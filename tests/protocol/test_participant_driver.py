from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import pytest
from tests.protocol._conversations import PATIENT, QUICK, Job, together
from tests.steps._kit import TWO, attempt_id, captured, cause, part_report

from stepseal import errors
from stepseal.protocol import Deadlines, InProcessHub, SocketHub, SocketLink
from stepseal.protocol import _messages as messages
from stepseal.protocol._participant_driver import ParticipantDriver, no_digests
from stepseal.protocol._wire import Address

if TYPE_CHECKING:
    from stepseal.protocol._transport import FromHub

WRITE = messages.Write(1, attempt_id(1), "staging", "nonce", 0)
COMMITTED = messages.Committed(1, attempt_id(1), 10, "a" * 64)


class Line:
    """A link whose other end is the test."""

    def __init__(self, *, welcome: bool = True) -> None:
        self.sent: list[messages.FromParticipant] = []
        self.closed = 0
        self.welcome = welcome

    def start(self, on_message: FromHub) -> None:
        self.deliver = on_message
        if self.welcome:
            on_message(messages.Welcome())

    def send(self, message: messages.FromParticipant) -> None:
        self.sent.append(message)
        if isinstance(message, messages.Goodbye) and self.welcome:
            self.deliver(messages.Welcome())

    def close(self) -> None:
        self.closed += 1


def driver(deadlines: Deadlines = PATIENT) -> tuple[ParticipantDriver, Line]:
    line = Line()
    return ParticipantDriver("a", line, deadlines), line


def test_participant_that_nobody_welcomes_gives_up() -> None:
    line = Line(welcome=False)
    with pytest.raises(errors.CoordinatorLost, match=r"no answer within 0\.05 s"):
        ParticipantDriver("a", line, Deadlines(connect_s=0.05))
    assert line.closed == 1


def test_participant_that_is_refused_hears_why_at_once() -> None:
    hub = SocketHub("127.0.0.1", ("a",), "token", PATIENT)
    hub.start(lambda *_: None)
    wrong = Address(hub.address.host, hub.address.port, "guess")
    with pytest.raises(errors.CoordinatorLost, match="did not accept"):
        ParticipantDriver("a", SocketLink(wrong, "a", PATIENT, "0"), PATIENT)
    hub.close()


def test_participant_of_another_release_is_told_so() -> None:
    hub = SocketHub("127.0.0.1", ("a",), "token", PATIENT, version="1")
    hub.start(lambda *_: None)
    with pytest.raises(errors.InvalidInput, match=r"runs stepseal '2': expected '1'"):
        ParticipantDriver("a", SocketLink(hub.address, "a", PATIENT, "2"), PATIENT)
    hub.close()


def test_calls_are_numbered() -> None:
    found, _ = driver()
    assert [found.new_call(), found.new_call()] == [1, 2]


def test_save_from_capture_to_outcome() -> None:
    found, line = driver()
    found.send_captured(captured(1))
    line.deliver(WRITE)
    assert found.wait_write(1) == WRITE
    assert not found.ended(1)
    assert found.wait_outcome(1, 0.0) is None
    assert found.send_prepared(1, attempt_id(1), part_report("a"))
    line.deliver(COMMITTED)
    state = found.wait_outcome(1, None)
    assert state is not None
    assert state.outcome == COMMITTED
    assert [type(m).__name__ for m in line.sent] == ["Captured", "Prepared"]


def test_order_to_write_is_returned_even_if_the_save_ended_behind_it() -> None:
    found, line = driver()
    line.deliver(WRITE)
    line.deliver(messages.Aborted(1, 10, "participant_failed", "no", {}))
    assert found.wait_write(1) == WRITE
    assert found.ended(1)


def test_inventory_is_waited_for_after_the_engines_returned() -> None:
    found, line = driver()
    found.send_returned(1, attempt_id(1))
    assert line.sent == [messages.EnginesReturned(1, attempt_id(1))]
    line.deliver(messages.TakeInventory(1, attempt_id(1)))
    line.deliver(messages.Aborted(1, 10, "participant_failed", "no", {}))
    assert found.wait_inventory(1)  # as all others do, although it has failed since


def test_abort_ends_the_wait_for_the_inventory() -> None:
    found, line = driver()
    line.deliver(messages.Aborted(1, 10, "participant_failed", "no", {}))
    assert not found.wait_inventory(1)


def test_the_wait_for_the_inventory_ends_at_the_deadline() -> None:
    found, _ = driver(QUICK)
    found.send_captured(captured(1))
    assert not found.wait_inventory(1)
    assert found.ended(1)


def test_questions_about_replicas_are_answered_before_the_order_and_until_the_end() -> None:
    found, line = driver()
    found.send_captured(captured(1))
    ask = messages.Compare(1, {"model": [""]})
    seen: list[messages.Compare] = []

    def answer(asked: messages.Compare) -> messages.Compared:
        seen.append(asked)
        line.deliver(WRITE if len(seen) == 1 else COMMITTED)
        return messages.Compared(1, {"model": {"": {"w": "d"}}})

    line.deliver(ask)
    assert found.wait_write(1, answer) == WRITE
    line.deliver(ask)
    found.answer_until_settled(1, answer)
    assert seen == [ask, ask]
    assert [type(m).__name__ for m in line.sent] == ["Captured", "Compared", "Compared"]


def test_who_compares_nothing_says_so() -> None:
    assert no_digests(messages.Compare(1, {"model": [""]})) == messages.Compared(1, {})


def test_abort_ends_the_wait_for_the_order() -> None:
    found, line = driver()
    found.send_failed(1, 10, "capture", ValueError("bad"))
    line.deliver(messages.Aborted(1, 10, "participant_failed", "no", {}))
    assert found.wait_write(1) is None
    assert found.ended(1)
    assert not found.send_prepared(1, attempt_id(1), part_report("a"))
    (failed,) = line.sent
    assert isinstance(failed, messages.Failed)
    assert failed.cause.message == "ValueError: bad"


def test_silent_coordinator_does_not_hold_a_save() -> None:
    found, _ = driver(QUICK)
    found.send_captured(captured(1))
    assert found.wait_write(1) is None
    state = found.wait_outcome(1, None)
    assert state is not None
    assert state.lost is not None
    assert state.lost.kind == errors.CommitTimeout.kind


def test_silent_coordinator_does_not_hold_a_restore() -> None:
    found, line = driver()
    found.call_restore(messages.RestoreCalled(1, None, False, {}))
    with pytest.raises(errors.CommitTimeout, match="no order"):
        found.wait_order(1, 0.01)
    line.deliver(cause("gone"))
    with pytest.raises(errors.CoordinatorLost, match="gone"):
        found.wait_order(1, 30)


def test_orders_come_in_order_and_an_answer_voids_them() -> None:
    found, line = driver()
    candidate = messages.Candidate(1, 1, 10, attempt_id(1), "a" * 64)
    line.deliver(candidate)
    assert found.wait_order(1, 30) == candidate
    found.vote(messages.Checked(1, 1))
    line.deliver(messages.Apply(1, 1))
    failed = messages.RestoreFailed(1, "participant_failed", "b is gone", {}, {}, True)
    line.deliver(failed)
    assert found.wait_order(1, 30) == failed
    assert line.sent == [messages.Checked(1, 1)]


@pytest.mark.parametrize("end", ["answer", "loss"])
def test_restore_that_ended_is_known_while_an_order_is_carried_out(end: str) -> None:
    found, line = driver()
    found.call_restore(messages.RestoreCalled(1, None, False, {}))
    line.deliver(messages.Apply(1, 1))
    found.wait_order(1, 30)
    assert not found.restore_ended(1)
    if end == "answer":
        line.deliver(messages.RestoreFailed(1, "participant_failed", "b is gone", {}, {}, True))
    else:
        line.deliver(cause("gone"))
    assert found.restore_ended(1)


def test_goodbye_is_answered_once() -> None:
    found, line = driver()
    found.close()
    found.close()
    assert line.sent == [messages.Goodbye()]
    assert line.closed == 1


def test_close_does_not_wait_for_a_coordinator_that_is_gone_or_silent() -> None:
    for gone in (True, False):
        found, line = driver(PATIENT if gone else QUICK)
        line.welcome = False
        if gone:
            line.deliver(cause("gone"))
        start = time.monotonic()
        found.close()
        assert time.monotonic() - start < 20
        assert line.closed == 1


def test_forgotten_call_is_dropped() -> None:
    found, line = driver()
    line.deliver(COMMITTED)
    found.forget(1)
    assert found.wait_outcome(1, 0.0) is None


def test_job_over_sockets_saves_and_restores() -> None:
    hub = SocketHub("127.0.0.1", TWO, "token", PATIENT)
    own = hub.link(TWO[0])

    def link(name: str) -> object:
        return own if name == TWO[0] else SocketLink(hub.address, name, PATIENT, "0")

    with Job(hub=hub, link=link) as job:  # type: ignore[arg-type]
        assert set(together(TWO, job.restore).values()) == {messages.Fresh(1, 1)}
        results = together(TWO, lambda name: job.save(name, 10))
        assert all(isinstance(r, messages.Committed) for r in results.values()), results


def test_participant_that_ends_without_a_goodbye_is_named_to_the_others() -> None:
    hub = SocketHub("127.0.0.1", TWO, "token", PATIENT)
    own = hub.link(TWO[0])
    links: list[SocketLink] = []

    def link(name: str) -> object:
        if name == TWO[0]:
            return own
        links.append(SocketLink(hub.address, name, PATIENT, "0"))
        return links[0]

    with Job(hub=hub, link=link) as job:  # type: ignore[arg-type]
        links[0]._half_close()
        (result,) = together(TWO[:1], lambda name: job.save(name, 10)).values()
        assert isinstance(result, errors.ParticipantFailed)
        assert set(result.failures) == {TWO[1]}
        assert "process ended" in result.failures[TWO[1]]


def test_end_of_the_coordinators_process_ends_a_save_of_the_others() -> None:
    hub = SocketHub("127.0.0.1", ("a",), "token", PATIENT)
    hub.start(lambda name, *_: hub.send(name, messages.Welcome()))
    found = ParticipantDriver("a", SocketLink(hub.address, "a", PATIENT, "0"), PATIENT)
    found.send_captured(captured(1))
    hub.close()
    assert found.wait_write(1) is None
    found.close()


def test_in_process_hub_that_closes_ends_a_save() -> None:
    hub = InProcessHub()
    hub.start(lambda name, *_: hub.send(name, messages.Welcome()))
    found = ParticipantDriver("a", hub.link("a"), PATIENT)
    found.send_captured(captured(1))
    hub.close()
    assert found.wait_write(1) is None
    found.close()


def test_a_rank_answers_from_the_thread_of_its_link_and_waits_for_the_target() -> None:
    own, line = driver()
    assert not own.pass_safe_point()
    line.deliver(messages.AskSafePoint(1))
    assert line.sent == [messages.SafePoint(1, 1)], "while the rank is anywhere in its step"
    line.deliver(messages.Target(1, 3))
    assert not own.pass_safe_point()
    assert own.pass_safe_point()
    assert line.sent == [messages.SafePoint(1, 1), messages.SafePoint(1, 3)]
    begin = messages.BeginSave(1, "life", ["a"], 10)
    line.deliver(begin)
    assert own.wait_begin_here() == begin
    assert not own.pass_safe_point()


@pytest.mark.parametrize("how", ["lapsed", "lost"])
def test_a_rank_at_the_target_goes_on_if_nothing_begins_there(how: str) -> None:
    own, line = driver()
    line.deliver(messages.AskSafePoint(1))
    line.deliver(messages.Target(1, 1))
    assert own.pass_safe_point()
    if how == "lapsed":
        line.deliver(messages.Lapsed(1))
    else:
        line.deliver(cause("gone"))
    assert own.wait_begin_here() is None


def test_a_rank_that_waits_at_a_safe_point_goes_on_without_its_coordinator() -> None:
    own, line = driver()
    line.deliver(messages.AskSafePoint(1))
    line.deliver(cause("gone"))
    assert not own.pass_safe_point()


def test_a_coordinator_that_asks_and_says_no_more_holds_a_rank_for_a_time() -> None:
    own, line = driver(dataclasses.replace(QUICK, connect_s=0.05))
    line.deliver(messages.AskSafePoint(1))
    with pytest.raises(errors.CommitTimeout, match="neither named the target nor gave up"):
        own.pass_safe_point()
    assert not own.pass_safe_point()


def test_a_coordinator_that_never_thaws_holds_an_owner_for_a_time() -> None:
    own, line = driver(QUICK)
    own.send_captured(captured(7, 10))
    with pytest.raises(errors.CommitTimeout, match="nobody told it to go on"):
        own.wait_thaw(7, 10)
    failed = line.sent[-1]
    assert isinstance(failed, messages.Failed)
    assert (failed.call, failed.step, failed.cause.kind) == (7, 10, "commit_timeout")
