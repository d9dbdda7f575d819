from __future__ import annotations

import itertools

import pytest
from tests.steps._kit import (
    DEADLINES,
    TWO,
    attempt_id,
    captured,
    cause,
    component,
    part_report,
    sent,
)

from stepseal.layout import StepRef
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator

STAGED = actions.Staged(1, "staging", "nonce")


def new() -> Coordinator:
    numbers = itertools.count(1)
    return Coordinator(TWO, DEADLINES, lambda: attempt_id(next(numbers)))


def in_write(call: int = 1) -> Coordinator:
    found = new()
    for name in TWO:
        found.on_message(name, captured(call), 0.0)
    found.on_driver(actions.Staged(call, "staging", "nonce"), 0.0)
    return found


def prepared(name: str, call: int = 1, attempt: int = 1) -> messages.Prepared:
    return messages.Prepared(call, attempt_id(attempt), part_report(name))


def in_publish() -> Coordinator:
    found = in_write()
    for name in TWO:
        todo = found.on_message(name, prepared(name), 1.0)
    assert isinstance(todo[0], actions.Publish)
    return found


def called(call: int = 1) -> messages.RestoreCalled:
    return messages.RestoreCalled(call, None, False, {})


def kinds(todo: list[actions.Action]) -> list[tuple[str, str]]:
    return [(name, type(message).__name__) for name, message in sent(todo)]


def test_save_from_capture_to_commit() -> None:
    found = in_publish()
    assert found.busy
    assert found.next_deadline() == 1.0 + DEADLINES.commit_s
    todo = found.on_driver(actions.Published(1, "a" * 64), 2.0)
    assert kinds(todo) == [(name, "Committed") for name in TWO]
    assert found.next_deadline() == float("inf")


def test_restore_from_call_to_claim() -> None:
    found = new()
    found.on_message(TWO[0], called(), 0.0)
    assert found.on_message(TWO[1], called(), 0.0) == [actions.Select(1, None, ())]
    event = actions.Selected(1, StepRef(5, "a" * 64, 1), attempt_id(9), True)
    assert kinds(found.on_driver(event, 0.0)) == [(name, "Candidate") for name in TWO]
    found.on_message(TWO[0], messages.Checked(1, 1), 0.0)
    todo = found.on_message(TWO[1], messages.Checked(1, 1), 0.0)
    assert kinds(todo) == [(name, "Apply") for name in TWO]
    found.on_message(TWO[0], messages.Applied(1, 1), 0.0)
    (claim,) = found.on_message(TWO[1], messages.Applied(1, 1), 0.0)
    assert isinstance(claim, actions.Claim)
    assert kinds(found.on_driver(actions.Claimed(1, 2), 0.0)) == [(n, "Restored") for n in TWO]


def test_rejection_reaches_the_round() -> None:
    found = new()
    for name in TWO:
        found.on_message(name, called(), 0.0)
    found.on_driver(actions.Selected(1, StepRef(5, "a" * 64, 1), "", True), 0.0)
    for name in TWO:
        todo = found.on_message(name, messages.Rejected(1, 1, False, cause(kind="corrupt")), 0.0)
    assert todo == [actions.Select(1, None, (5,))]


def test_messages_for_a_decided_call_change_nothing() -> None:
    found = in_publish()
    found.on_driver(actions.Published(1, "a" * 64), 2.0)
    late: list[messages.FromParticipant] = [
        captured(1),
        prepared(TWO[0]),
        messages.Failed(1, 10, "write", cause()),
        messages.Checked(1, 1),
        messages.Applied(1, 1),
        messages.Rejected(1, 1, True, cause()),
    ]
    for message in late:
        assert found.on_message(TWO[0], message, 3.0) == []
    assert not found.busy


def test_prepared_of_an_old_attempt_does_not_count_for_a_new_call() -> None:
    found = in_write()
    found.on_message(TWO[0], messages.Failed(1, 10, "write", cause()), 1.0)
    for name in TWO:
        found.on_message(name, captured(2), 2.0)
    found.on_driver(actions.Staged(2, "staging2", "nonce"), 2.0)
    for name in TWO:  # replayed, under the old call and under the new one
        assert found.on_message(name, prepared(name), 3.0) == []
        assert found.on_message(name, prepared(name, call=2, attempt=1), 3.0) == []
    found.on_message(TWO[0], prepared(TWO[0], call=2, attempt=2), 3.0)
    (publish,) = found.on_message(TWO[1], prepared(TWO[1], call=2, attempt=2), 3.0)
    assert isinstance(publish, actions.Publish)
    assert publish.attempt == attempt_id(2)


def test_prepared_for_a_call_that_nobody_made_is_dropped() -> None:
    assert new().on_message(TWO[0], prepared(TWO[0], call=9), 0.0) == []


def test_strangers_are_not_heard() -> None:
    found = new()
    assert found.on_message("trainer/9", captured(), 0.0) == []
    assert not found.busy


def test_staged_after_the_abort_is_discarded() -> None:
    found = new()
    for name in TWO:
        found.on_message(name, captured(), 0.0)
    found.on_message(TWO[0], messages.Failed(1, 10, "write", cause()), 0.0)
    assert found.on_driver(STAGED, 1.0) == [actions.Discard("staging")]


@pytest.mark.parametrize(
    "event",
    [
        actions.Published(7, "a" * 64),
        actions.PublishUnknown(7, cause()),
        actions.Selected(7, None, "", False),
        actions.Claimed(7, 1),
        actions.IoFailed(7, cause()),
    ],
)
def test_answers_that_nobody_waits_for_are_dropped(event: actions.DriverEvent) -> None:
    assert new().on_driver(event, 0.0) == []


def test_failing_storage_and_unknown_outcome_reach_all() -> None:
    todo = in_publish().on_driver(actions.IoFailed(1, cause()), 2.0)
    assert kinds(todo) == [(name, "Aborted") for name in TWO]
    assert todo[-1] == actions.Discard("staging")
    todo = in_publish().on_driver(actions.PublishUnknown(1, cause()), 2.0)
    assert kinds(todo) == [(name, "Unresolved") for name in TWO]


def test_loss_aborts_only_what_waits_for_the_lost() -> None:
    found = in_write()
    found.on_message(TWO[0], prepared(TWO[0]), 1.0)
    assert found.on_lost(TWO[0], cause("gone")) == []  # its part is durable
    (publish,) = found.on_message(TWO[1], prepared(TWO[1]), 1.0)
    assert isinstance(publish, actions.Publish)
    found.on_driver(actions.Published(1, "a" * 64), 2.0)
    todo = found.on_message(TWO[1], captured(2), 3.0)
    assert kinds(todo) == [(name, "Aborted") for name in TWO]


def test_lost_stays_lost() -> None:
    found = new()
    found.on_lost(TWO[0], cause("first"))
    found.on_lost(TWO[0], cause("second"))
    assert found.on_message(TWO[0], messages.Hello(TWO[0], "", ""), 0.0) == []
    assert found.on_message(TWO[0], captured(), 0.0) == []
    (_, message), *_ = sent(found.on_message(TWO[1], captured(), 0.0))
    assert isinstance(message, messages.Aborted)
    assert message.failures == {TWO[0]: cause("first")}


def test_all_who_are_absent_are_named() -> None:
    found = Coordinator(("a", "b", "c"), DEADLINES, lambda: attempt_id(1))
    found.on_lost("a", cause("gone"))
    found.on_message("b", messages.Goodbye(), 0.0)
    (_, message), *_ = sent(found.on_message("c", captured(), 0.0))
    assert isinstance(message, messages.Aborted)
    assert set(message.failures) == {"a", "b"}
    assert "closed its checkpointer" in message.failures["b"].message


def test_goodbye_is_answered_and_is_no_loss() -> None:
    found = new()
    for name in TWO:
        assert not found.everybody_left
        assert found.on_message(name, messages.Goodbye(), 0.0) == [
            actions.Send(name, messages.Welcome())
        ]
        assert found.on_lost(name, cause("closed")) == []
    assert found.everybody_left


def test_loss_counts_as_having_left() -> None:
    found = new()
    found.on_lost(TWO[0], cause())
    found.on_message(TWO[1], messages.Goodbye(), 0.0)
    assert found.everybody_left


def test_hello_is_welcomed_and_heartbeats_are_silent() -> None:
    found = new()
    assert kinds(found.on_message(TWO[0], messages.Hello(TWO[0], "", ""), 0.0)) == [
        (TWO[0], "Welcome")
    ]
    assert found.on_message(TWO[0], messages.Heartbeat(), 0.0) == []


def test_deadlines_are_judged_per_round() -> None:
    found = new()
    found.on_message(TWO[0], captured(1), 0.0)
    found.on_message(TWO[0], captured(2), 5.0)
    assert found.next_deadline() == DEADLINES.capture_s
    assert found.on_time(DEADLINES.capture_s - 0.1) == []
    todo = found.on_time(DEADLINES.capture_s)
    assert {m.call for _, m in sent(todo) if isinstance(m, messages.Aborted)} == {1}
    assert found.next_deadline() == 5.0 + DEADLINES.capture_s


def test_restore_where_others_save_fails_both_at_once() -> None:
    found = new()
    found.on_message(TWO[0], captured(), 0.0)
    todo = found.on_message(TWO[1], called(), 1.0)
    assert kinds(todo) == [(TWO[1], "RestoreFailed"), *((name, "Aborted") for name in TWO)]
    assert not found.busy
    # and the same after the save was decided
    assert kinds(found.on_message(TWO[1], called(), 1.0)) == [(TWO[1], "RestoreFailed")]


def test_save_where_others_restore_fails_both_at_once() -> None:
    found = new()
    found.on_message(TWO[0], called(), 0.0)
    todo = found.on_message(TWO[1], captured(), 1.0)
    assert kinds(todo) == [(TWO[1], "Aborted"), *((name, "RestoreFailed") for name in TWO)]
    assert not found.busy


def test_save_by_one_who_already_joined_the_restore_changes_no_round() -> None:
    found = new()
    found.on_message(TWO[0], called(), 0.0)
    todo = found.on_message(TWO[0], captured(), 1.0)
    assert kinds(todo) == [(TWO[0], "Aborted")]
    assert found.busy


def test_repeated_restore_call_after_the_answer_changes_nothing() -> None:
    found = new()
    for name in TWO:
        found.on_message(name, called(), 0.0)
    found.on_driver(actions.IoFailed(1, cause()), 0.0)
    assert found.on_message(TWO[0], called(), 0.0) == []


def test_votes_for_a_save_are_dropped() -> None:
    assert in_write().on_message(TWO[0], messages.Checked(1, 1), 0.0) == []
    found = new()
    found.on_message(TWO[0], called(), 0.0)
    assert found.on_message(TWO[0], prepared(TWO[0]), 0.0) == []


def test_who_connects_late_is_told_what_failed_before() -> None:
    found = new()
    hello = messages.Hello(TWO[0], "", "")
    found.on_message(TWO[0], hello, 0.0)
    found.on_message(TWO[0], called(), 0.0)
    found.on_time(DEADLINES.connect_s)
    assert found.on_message(TWO[1], called(), DEADLINES.connect_s + 1.0) == []
    hello = messages.Hello(TWO[1], "", "")
    todo = found.on_message(TWO[1], hello, DEADLINES.connect_s + 1.0)
    assert kinds(todo) == [(TWO[1], "Welcome"), (TWO[1], "RestoreFailed")]
    assert kinds(found.on_message(TWO[1], hello, 60.0)) == [(TWO[1], "Welcome")]


def test_replicas_that_differ_are_asked_about_and_answers_of_no_save_are_ignored() -> None:
    found = new()
    assert found.on_message(TWO[0], messages.Compared(1, {}), 0.0) == []
    report = captured(components=[component(validate="tensor", replicas={"": 2})])
    for name in TWO:
        found.on_message(name, report, 0.0)
    found.on_driver(STAGED, 0.0)
    for name in TWO:
        told = messages.Prepared(1, attempt_id(1), part_report(name), {"model": {"": name}})
        todo = found.on_message(name, told, 1.0)
    assert [type(message) for _, message in sent(todo)] == [messages.Compare] * 2
    assert found.on_message(TWO[0], messages.Compared(1, {}), 1.0) == []
    todo = found.on_message(TWO[1], messages.Compared(1, {}), 1.0)
    assert len(sent(todo, messages.Aborted)) == 2
    assert not found.busy
