from __future__ import annotations

import pytest
from tests.steps._kit import DEADLINES, attempt_id, cause

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._participant import Participant

WRITE = messages.Write(1, attempt_id(1), "staging", "nonce", 0)
COMMITTED = messages.Committed(1, attempt_id(1), 10, "a" * 64)
ABORTED = messages.Aborted(1, 10, "participant_failed", "no", {})
UNRESOLVED = messages.Unresolved(1, attempt_id(1), 10, "who knows")
CANDIDATE = messages.Candidate(1, 1, 10, attempt_id(1), "a" * 64)
APPLY = messages.Apply(1, 1)
RESTORED = messages.Restored(1, 10, 2, {})
FAILED = messages.RestoreFailed(1, "corrupt", "no", {}, {}, False)


def new() -> Participant:
    found = Participant(DEADLINES)
    assert found.new_call() == 1
    return found


def test_calls_are_numbered_from_one() -> None:
    found = new()
    assert [found.new_call(), found.new_call()] == [2, 3]


@pytest.mark.parametrize("outcome", [COMMITTED, ABORTED, UNRESOLVED])
def test_outcome_settles_and_the_first_counts(outcome: messages.Decided) -> None:
    found = new()
    assert not found.save(1).settled
    found.on_message(outcome)
    assert found.save(1).settled
    for other in (COMMITTED, ABORTED, UNRESOLVED):
        found.on_message(other)
    assert found.save(1).outcome == outcome


def test_messages_before_the_call_are_kept_for_it() -> None:
    found = Participant(DEADLINES)
    found.on_message(ABORTED)
    found.on_message(messages.RestoreFailed(2, "corrupt", "no", {}, {}, False))
    assert found.save(found.new_call()).settled
    assert found.restore(found.new_call()).has_news


def test_prepare_passes_once_the_save_goes_on() -> None:
    found = new()
    found.captured(1, 0.0)
    found.on_message(WRITE)
    assert found.save(1).write == WRITE
    assert found.prepare(1, 1.0)
    assert found.save(1).prepared


def test_the_order_to_take_the_inventory_is_kept() -> None:
    found = new()
    found.captured(1, 0.0)
    assert not found.save(1).inventory
    found.on_message(messages.TakeInventory(1, attempt_id(1)))
    assert found.save(1).inventory
    assert not found.save(1).settled


@pytest.mark.parametrize("end", ["aborted", "lost", "deadline"])
def test_prepare_is_refused_once_the_save_ended(end: str) -> None:
    found = new()
    found.captured(1, 0.0)
    found.on_message(WRITE)
    if end == "aborted":
        found.on_message(ABORTED)
    elif end == "lost":
        found.on_lost(cause())
    assert not found.prepare(1, DEADLINES.save_s if end == "deadline" else 1.0)
    assert not found.save(1).prepared


def test_deadline_ends_a_save_but_not_one_that_is_settled() -> None:
    found = new()
    found.captured(1, 5.0)
    found.captured(2, 5.0)
    found.on_message(COMMITTED)
    found.on_time(4.9 + DEADLINES.save_s)
    assert not found.save(2).settled
    found.on_time(5.0 + DEADLINES.save_s)
    lost = found.save(2).lost
    assert lost is not None
    assert lost.kind == errors.CommitTimeout.kind
    assert found.save(1).lost is None


def test_loss_of_the_coordinator_ends_all_calls_with_its_first_cause() -> None:
    found = new()
    found.save(1)
    found.restore(2)
    found.on_lost(cause("first"))
    found.on_lost(cause("second"))
    assert found.lost == found.save(1).lost == found.restore(2).lost == cause("first")
    assert found.save(3).settled
    assert found.restore(4).has_news


def test_orders_are_taken_once_and_in_order() -> None:
    found = new()
    assert not found.restore(1).has_news
    for message in (CANDIDATE, CANDIDATE, APPLY, APPLY):
        found.on_message(message)
    state = found.restore(1)
    assert state.inbox == [CANDIDATE, APPLY]
    state.inbox.clear()
    found.on_message(APPLY)
    assert not state.has_news
    found.on_message(messages.Apply(1, 2))
    assert state.has_news


def test_first_answer_of_a_restore_counts() -> None:
    found = new()
    found.on_message(FAILED)
    found.on_message(RESTORED)
    assert found.restore(1).answer == FAILED


def test_forgotten_calls_stay_forgotten() -> None:
    found = new()
    found.on_message(COMMITTED)
    found.forget(1)
    for message in (COMMITTED, WRITE, CANDIDATE, RESTORED):
        found.on_message(message)
    assert found._saves == {}
    assert found._restores == {}


def test_welcome_and_heartbeat() -> None:
    found = new()
    found.on_message(messages.Heartbeat())
    assert not found.welcomed
    found.on_message(messages.Welcome())
    assert found.welcomed


def test_refusal_ends_all_calls_with_its_cause() -> None:
    found = new()
    found.save(1)
    found.on_message(messages.Refused("invalid_input", "another release"))
    refused = messages.Failure("invalid_input", "another release")
    assert found.lost == found.save(1).lost == found.restore(2).lost == refused
    assert not found.welcomed
