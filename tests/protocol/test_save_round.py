from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

from stepseal import errors
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._failures import MAX_FAILURES
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable

ATTEMPT = attempt_id(1)
STAGED = actions.Staged(1, "staging", "nonce")


def new() -> SaveRound:
    return SaveRound(1, TWO, ATTEMPT, DEADLINES, 0.0)


def in_staging() -> SaveRound:
    found = new()
    found.on_captured(TWO[0], captured(), 0.0)
    found.on_captured(TWO[1], captured(), 1.0)
    return found


def in_write() -> SaveRound:
    found = in_staging()
    found.on_staged(STAGED, 2.0)
    return found


def in_publish() -> SaveRound:
    found = in_write()
    for name in TWO:
        found.on_prepared(name, prepared(name), 3.0)
    return found


def prepared(name: str, attempt: str = ATTEMPT) -> messages.Prepared:
    return messages.Prepared(1, attempt, part_report(name))


def failed(phase: str = "write", step: int = 10) -> messages.Failed:
    return messages.Failed(1, step, phase, cause())


def aborted(todo: list[actions.Action]) -> messages.Aborted:
    told = sent(todo, messages.Aborted)
    assert [name for name, _ in told] == list(TWO)
    message = told[0][1]
    assert isinstance(message, messages.Aborted)
    return message


def test_all_captured_begins_staging_once() -> None:
    found = new()
    assert found.missing() == TWO
    assert found.on_captured(TWO[0], captured(), 0.0) == []
    assert found.on_captured(TWO[0], captured(), 0.0) == []
    assert found.missing() == TWO[1:]
    assert found.on_captured(TWO[1], captured(), 1.0) == [actions.BeginStaging(1, 10, ATTEMPT)]
    assert found.deadline == 1.0 + DEADLINES.commit_s
    assert found.missing() == ()
    assert found.on_captured(TWO[1], captured(), 1.0) == []


def test_disagreement_aborts_on_all_and_names_who() -> None:
    found = new()
    found.on_captured(TWO[0], captured(), 0.0)
    other = captured(components=[component(fingerprint="0" * 32)])
    message = aborted(found.on_captured(TWO[1], other, 0.0))
    assert list(message.failures) == [TWO[1]]
    assert message.failures[TWO[1]].component == "model"
    assert found.done


def test_who_disagrees_does_not_depend_on_who_came_first() -> None:
    for names in (TWO, TWO[::-1]):
        found = new()
        for name in names:
            todo = found.on_captured(name, captured(tags=[], cut={"who": name}), 0.0)
        assert list(aborted(todo).failures) == [TWO[1]]


def test_staged_orders_all_to_write_with_their_ordinal() -> None:
    found = in_staging()
    assert sent(found.on_staged(STAGED, 2.0)) == [
        (name, messages.Write(1, ATTEMPT, "staging", "nonce", ordinal))
        for ordinal, name in enumerate(TWO)
    ]
    assert found.deadline == 2.0 + DEADLINES.write_s
    assert found.on_staged(STAGED, 2.0) == []


def test_publish_only_after_all_prepared() -> None:
    found = in_write()
    assert found.on_prepared(TWO[1], prepared(TWO[1]), 3.0) == []
    assert found.missing() == TWO[:1]
    (publish,) = found.on_prepared(TWO[0], prepared(TWO[0]), 4.0)
    assert isinstance(publish, actions.Publish)
    assert set(publish.parts) == set(publish.captured) == set(TWO)
    assert publish.deadline == found.deadline == 4.0 + DEADLINES.commit_s


@pytest.mark.parametrize("phase", ["capture", "staging", "publish"])
def test_prepared_counts_only_while_writing(phase: str) -> None:
    found = {"capture": new, "staging": in_staging, "publish": in_publish}[phase]()
    assert found.on_prepared(TWO[0], prepared(TWO[0]), 3.0) == []
    assert found.phase == phase


def test_prepared_of_another_attempt_or_repeated_does_not_count() -> None:
    found = in_write()
    assert found.on_prepared(TWO[0], prepared(TWO[0], attempt_id(2)), 3.0) == []
    assert found.missing() == TWO
    found.on_prepared(TWO[0], prepared(TWO[0]), 3.0)
    assert found.on_prepared(TWO[0], prepared(TWO[0]), 3.0) == []
    assert found.missing() == TWO[1:]


def test_prepared_after_the_deadline_aborts_and_names_the_late_one() -> None:
    found = in_write()
    found.on_prepared(TWO[0], prepared(TWO[0]), 3.0)
    message = aborted(found.on_prepared(TWO[1], prepared(TWO[1]), 2.1 + DEADLINES.write_s))
    assert message.kind == errors.CommitTimeout.kind
    assert list(message.failures) == [TWO[1]]


@pytest.mark.parametrize("make", [new, in_staging, in_write])
def test_failure_before_publication_aborts(make: object) -> None:
    assert callable(make)
    found: SaveRound = make()
    todo = found.on_failed(TWO[1], failed(step=12))
    message = aborted(todo)
    assert message.failures == {TWO[1]: cause()}
    assert message.step == 12
    assert message.kind == errors.ParticipantFailed.kind
    discards = [a for a in todo if isinstance(a, actions.Discard)]
    assert discards == ([actions.Discard("staging")] if make is in_write else [])
    assert todo[-1:] == discards or not discards


def test_failure_after_all_prepared_changes_nothing() -> None:
    found = in_publish()
    assert found.on_failed(TWO[0], failed()) == []
    assert found.phase == "publish"
    found.on_published(actions.Published(1, "a" * 64), 5.0)
    assert found.on_failed(TWO[0], failed()) == []


def test_loss_of_who_owes_a_report_aborts() -> None:
    found = in_write()
    found.on_prepared(TWO[0], prepared(TWO[0]), 3.0)
    message = aborted(found.on_lost({TWO[1]: cause("gone")}))
    assert "gone" in message.message
    assert TWO[1] in message.message


@pytest.mark.parametrize(
    ("make", "phase", "limit_s"),
    [(new, "capture", DEADLINES.capture_s), (in_write, "write", DEADLINES.write_s)],
)
def test_deadline_names_everyone_missing(make: object, phase: str, limit_s: float) -> None:
    assert callable(make)
    found: SaveRound = make()
    message = aborted(found.on_deadline())
    assert set(message.failures) == set(TWO)
    assert message.kind == errors.CommitTimeout.kind
    assert f"{limit_s:g} s in phase {phase}" in message.message


def test_deadline_of_staging_aborts_without_blaming_participants() -> None:
    found = in_staging()
    message = aborted(found.on_deadline())
    assert message.kind == errors.StorageUnavailable.kind
    assert message.failures == {}


def test_deadline_of_publication_does_not_abort() -> None:
    found = in_publish()
    assert found.on_deadline() == []
    assert found.deadline == float("inf")
    assert not found.done
    assert found.on_published(actions.Published(1, "a" * 64), 5.0) != []


def test_published_is_told_to_all() -> None:
    found = in_publish()
    committed = messages.Committed(1, ATTEMPT, 10, "a" * 64)
    assert sent(found.on_published(actions.Published(1, "a" * 64), 5.0)) == [
        (n, committed) for n in TWO
    ]
    assert found.done
    assert found.deadline == float("inf")


def test_publication_that_nobody_asked_for_tells_nothing() -> None:
    found = in_write()
    assert found.on_published(actions.Published(1, "a" * 64), 5.0) == []
    assert found.on_unknown(actions.PublishUnknown(1, cause())) == []


def test_unknown_deletes_nothing() -> None:
    found = in_publish()
    todo = found.on_unknown(actions.PublishUnknown(1, cause()))
    assert len(sent(todo, messages.Unresolved)) == len(todo) == len(TWO)


def test_failed_storage_aborts_with_its_kind_and_discards() -> None:
    found = in_publish()
    todo = found.on_io_failed(actions.IoFailed(1, cause("in the way", "step_exists")))
    assert aborted(todo).kind == "step_exists"
    assert todo[-1] == actions.Discard("staging")


def test_answers_stay_small_however_many_fail() -> None:
    many = tuple(f"trainer/{n}" for n in range(1000))
    found = SaveRound(1, many, ATTEMPT, DEADLINES, 0.0)
    (_, message), *_ = sent(found.on_deadline(), messages.Aborted)
    assert isinstance(message, messages.Aborted)
    assert len(message.failures) == MAX_FAILURES
    assert "and 996 more: did not answer" in message.message


def replica(**changes: Any) -> messages.Captured:  # noqa: ANN401 - of a report
    facts = {"validate": "tensor", "replicas": {"": 2}} | changes
    return captured(components=[component(**facts)])


def with_replicas(**changes: Any) -> SaveRound:  # noqa: ANN401 - of a report
    """Return a round in which all have captured replicas."""
    found = new()
    for name in TWO:
        found.on_captured(name, replica(**changes), 0.0)
    return found


def told(name: str, digest: str) -> messages.Prepared:
    return messages.Prepared(1, ATTEMPT, part_report(name), {"model": {"": digest}})


def in_compare() -> SaveRound:
    """Return a round that asks where replicas differ, after the write."""
    found = with_replicas()
    found.on_staged(STAGED, 2.0)
    assert found.on_prepared(TWO[0], told(TWO[0], "a"), 3.0) == []
    ask = messages.Compare(1, {"model": [""]})
    assert sent(found.on_prepared(TWO[1], told(TWO[1], "b"), 3.0)) == [(n, ask) for n in TWO]
    assert found.missing() == TWO
    return found


def answer(**digests: str) -> messages.Compared:
    return messages.Compared(1, {"model": {"": digests}})


def test_equal_replicas_are_published_and_a_missing_digest_is_none() -> None:
    found = with_replicas()
    found.on_staged(STAGED, 2.0)
    found.on_prepared(TWO[0], told(TWO[0], "a"), 3.0)
    (publish,) = found.on_prepared(TWO[1], told(TWO[1], "a"), 3.0)
    assert isinstance(publish, actions.Publish)
    lacking = with_replicas(validate="quick")
    lacking.on_staged(STAGED, 2.0)
    lacking.on_prepared(TWO[0], told(TWO[0], "a"), 3.0)
    message = aborted(lacking.on_prepared(TWO[1], prepared(TWO[1]), 3.0))
    assert list(message.failures) == [TWO[1]]


def test_replicas_that_differ_abort_on_all_with_the_paths_and_are_discarded() -> None:
    found = in_compare()
    assert found.on_compared(TWO[0], answer(w="1", v="2"), 4.0) == []
    todo = found.on_compared(TWO[1], answer(w="1", v="3"), 4.0)
    message = aborted(todo)
    assert (message.kind, list(message.failures)) == ("participant_failed", [TWO[1]])
    assert message.failures[TWO[1]].path == "v"
    assert "replicas differ" in message.message
    assert todo[-1] == actions.Discard("staging")
    assert found.on_compared(TWO[1], answer(), 4.0) == []


@pytest.mark.parametrize("how", ["lost", "failed", "deadline"])
def test_who_does_not_say_where_replicas_differ_saves_nothing(how: str) -> None:
    found = in_compare()
    found.on_compared(TWO[0], answer(w="1"), 4.0)
    todo = {
        "lost": lambda: found.on_lost({TWO[1]: cause("gone")}),
        "failed": lambda: found.on_failed(TWO[1], failed()),
        "deadline": lambda: found.on_deadline(),
    }[how]()
    message = aborted(todo)
    assert list(message.failures) == [TWO[1]]
    assert message.failures[TWO[1]].path is None
    assert "it differs: trainer/0 against trainer/1" in message.message


@pytest.mark.parametrize("how", ["lost", "failed", "deadline", "equal"])
def test_in_full_a_step_is_published_only_after_all_compared_the_files(how: str) -> None:
    found = with_replicas(validate="full")
    found.on_staged(STAGED, 2.0)
    found.on_prepared(TWO[0], told(TWO[0], "a"), 3.0)
    asks = sent(found.on_prepared(TWO[1], told(TWO[1], "a"), 3.0), messages.Compare)
    assert [name for name, _ in asks] == list(TWO)
    assert found.on_compared(TWO[0], messages.Compared(1, {}), 4.0) == []
    ways: dict[str, Callable[[], list[actions.Action]]] = {
        "lost": lambda: found.on_lost({TWO[1]: cause("gone")}),
        "failed": lambda: found.on_failed(TWO[1], failed()),
        "deadline": lambda: found.on_deadline(),
        "equal": lambda: found.on_compared(TWO[1], messages.Compared(1, {}), 4.0),
    }
    todo = ways[how]()
    if how == "equal":
        assert [type(one) for one in todo] == [actions.Publish]
        return
    message = aborted(todo)
    assert list(message.failures) == [TWO[1]]
    if how == "deadline":
        assert f"within {DEADLINES.write_s:g} s in phase compare" in message.message


def left_out(found: SaveRound) -> dict[str, str]:
    """Return what an order to write leaves out."""
    (_, write), _ = sent(found.on_staged(STAGED, 2.0), messages.Write)
    assert isinstance(write, messages.Write)
    return write.left_out


def test_an_optional_component_that_differs_is_left_out_before_the_write() -> None:
    found = new()
    found.on_captured(TWO[0], replica(required=False, digests={"": "a"}), 0.0)
    asks = found.on_captured(TWO[1], replica(required=False, digests={"": "b"}), 1.0)
    assert len(sent(asks, messages.Compare)) == 2
    found.on_compared(TWO[0], answer(w="1"), 1.0)
    begin = found.on_compared(TWO[1], answer(w="2"), 1.0)
    assert begin == [actions.BeginStaging(1, 10, ATTEMPT)]
    assert "w differs: trainer/0 against trainer/1" in left_out(found)["model"]
    for name in TWO:
        todo = found.on_prepared(name, prepared(name), 3.0)
    (publish,) = todo
    assert isinstance(publish, actions.Publish)
    assert list(publish.left_out) == ["model"]


@pytest.mark.parametrize("how", ["lost", "failed", "deadline"])
def test_who_is_gone_before_the_write_ends_the_save_as_in_capture(how: str) -> None:
    found = new()
    found.on_captured(TWO[0], replica(required=False, digests={"": "a"}), 0.0)
    found.on_captured(TWO[1], replica(required=False, digests={"": "b"}), 1.0)
    found.on_compared(TWO[0], answer(w="1"), 1.0)
    todo = {
        "lost": lambda: found.on_lost({TWO[1]: cause("gone")}),
        "failed": lambda: found.on_failed(TWO[1], failed()),
        "deadline": lambda: found.on_deadline(),
    }[how]()
    assert list(aborted(todo).failures) == [TWO[1]]


def test_an_optional_component_that_one_could_not_capture_is_left_out() -> None:
    found = new()
    found.on_captured(TWO[0], replica(required=False, digests={"": "a"}), 0.0)
    found.on_captured(TWO[1], captured(components=[component(required=False, failed="no")]), 1.0)
    assert left_out(found) == {"model": "trainer/1: no"}


def test_a_participant_waits_for_as_long_as_the_coordinator_may_take() -> None:
    """Each phase ends in its last instant; the participant captured before all others."""
    now, found = 0.0, new()
    found.on_captured(TWO[0], captured(), now)
    now += DEADLINES.capture_s
    found.on_captured(TWO[1], captured(), now)
    now += DEADLINES.commit_s
    found.on_staged(STAGED, now)
    now += DEADLINES.write_s
    found.on_prepared(TWO[0], prepared(TWO[0]), now)
    (publish,) = found.on_prepared(TWO[1], prepared(TWO[1]), now)
    assert isinstance(publish, actions.Publish)
    assert publish.deadline == DEADLINES.save_s
