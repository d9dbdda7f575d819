"""Requests for safe points: whom they ask, how they end, and that none is waited for in vain."""

from __future__ import annotations

import pytest
from tests.protocol._opened import Actors, opening
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._opening import Opening
from stepseal.protocol._participant import Participant
from stepseal.protocol._safe_points import OwnPoints

RANKS = ("trainer/0", "trainer/1")


def with_ranks() -> Actors:
    """Return a job of two ranks that step, and a buffer that is called."""
    held = Actors("buffer/0")
    for name in RANKS:
        life = held.lives[name] = f"life of {name}"
        held.take(held.coordinator.admit(name, life, steps=True))
        held.hear(name, messages.Hello(name, "", "", life))
    return held


def heard(held: Actors, name: str, kind: type) -> list[object]:
    return [message for to, message in held.told if to == name and isinstance(message, kind)]


def test_ranks_begin_with_the_target_and_others_at_once() -> None:
    held = with_ranks()
    call = held.open(Opening("save", 10))
    assert held.begun(call) == ["buffer/0"]
    held.hear("trainer/0", messages.SafePoint(1, 41))
    assert held.begun(call) == ["buffer/0"]
    held.hear("trainer/1", messages.SafePoint(1, 40))
    assert held.begun(call) == ["buffer/0", *RANKS]
    assert [heard(held, name, messages.Target) for name in RANKS] == [[messages.Target(1, 42)]] * 2
    for name in RANKS:
        held.hear(name, messages.SafePoint(1, 42))
    for name in ("buffer/0", *RANKS):
        held.capture(name, call)
    held.stage(call)
    assert heard(held, "trainer/0", messages.Write)


def test_ranks_are_asked_only_when_their_stage_begins() -> None:
    held = with_ranks()
    call = held.open(Opening("save", 10, ("buffer", "trainer")))
    assert heard(held, "trainer/0", messages.AskSafePoint) == []
    held.capture("buffer/0", call)
    assert heard(held, "trainer/0", messages.AskSafePoint) == [messages.AskSafePoint(1)]


def test_a_restore_begins_at_a_safe_point_as_well() -> None:
    held = with_ranks()
    call = held.open(Opening("restore"))
    assert held.begun(call) == ["buffer/0"]
    for name in RANKS:
        held.hear(name, messages.SafePoint(1, 0))
    assert held.begun(call) == ["buffer/0", *RANKS]


@pytest.mark.parametrize("how", ["goodbye", "lost", "released", "admitted again", "failed"])
@pytest.mark.parametrize("when", ["asked", "told"])
def test_a_request_lapses_with_its_call_and_may_be_made_again(how: str, when: str) -> None:
    held = with_ranks()
    call = held.open(opening())
    if when == "told":
        for name in RANKS:
            held.hear(name, messages.SafePoint(1, 5))
    if how == "goodbye":
        held.hear("trainer/1", messages.Goodbye())
    elif how == "lost":
        held.lose("trainer/1")
    elif how == "released":
        held.take(held.coordinator.release("trainer/1"))
    elif how == "admitted again":
        held.take(held.coordinator.admit("trainer/1", "another", steps=True))
        held.lives["trainer/1"] = "another"
        held.hear("trainer/1", messages.Hello("trainer/1", "", "", "another"))
    else:
        why = messages.Failure("participant_failed", "no state")
        held.hear("trainer/1", messages.Failed(call, 10, "capture", why))
    assert heard(held, "trainer/0", messages.Lapsed) == [messages.Lapsed(1)]
    assert set(held.outcome(call).failures) == {"trainer/1"}
    again = held.open(opening(20))
    if how in ("goodbye", "lost"):  # the same failure, at once, and again nobody waits
        assert held.outcome(again) is not None
        assert len(heard(held, "trainer/0", messages.AskSafePoint)) == 1
    else:
        assert heard(held, "trainer/0", messages.AskSafePoint)[-1] == messages.AskSafePoint(2)


def test_the_deadline_names_the_rank_that_does_not_come_and_where_it_is() -> None:
    held = with_ranks()
    call = held.open(opening())
    held.hear("trainer/0", messages.SafePoint(1, 5))
    held.hear("trainer/1", messages.SafePoint(1, 4))
    held.hear("trainer/0", messages.SafePoint(1, 6))
    held.capture("trainer/0", call)
    held.take(held.coordinator.on_time(DEADLINES.capture_s))
    found = held.outcome(call)
    assert found.kind == errors.CommitTimeout.kind
    assert set(found.failures) == {"trainer/1"}
    text = "it was asked after safe point 4, and did not come to number 6"
    assert text in found.failures["trainer/1"].message
    assert heard(held, "trainer/1", messages.Lapsed) == [messages.Lapsed(1)]


def test_a_process_that_does_not_answer_is_named() -> None:
    held = with_ranks()
    call = held.open(opening())
    held.hear("trainer/0", messages.SafePoint(1, 5))
    held.take(held.coordinator.on_time(DEADLINES.capture_s))
    found = held.outcome(call)
    assert set(found.failures) == {"trainer/1"}, "the other one waits for the target"
    assert "does not say" in found.failures["trainer/1"].message


def test_answers_to_an_older_request_count_for_nothing() -> None:
    held = with_ranks()
    held.open(opening())
    held.take(held.coordinator.on_time(DEADLINES.capture_s))
    call = held.open(opening(20))
    for name in RANKS:
        held.hear(name, messages.SafePoint(1, 5))
    held.hear("buffer/0", messages.SafePoint(2, 5))
    assert held.begun(call) == []


def test_a_rank_drops_what_was_to_begin_at_a_target_that_lapsed() -> None:
    own = Participant(DEADLINES)
    own.on_message(messages.AskSafePoint(1))
    own.on_message(messages.Target(1, 2))
    own.on_message(messages.BeginSave(1, "life", ["trainer/0"], 10))
    own.on_message(messages.Lapsed(1))
    assert own.points.try_pass()
    assert own.points.arrived() is None
    assert own.next_begin() is None


def test_points_count_on_over_lives_and_without_a_coordinator() -> None:
    points = OwnPoints()
    first = Participant(DEADLINES, points)
    assert points.try_pass()
    assert first.on_message(messages.AskSafePoint(1)) == messages.SafePoint(1, 1)
    assert not points.try_pass(), "held"
    points.leave()
    second = Participant(DEADLINES, points)
    assert points.try_pass(), "the request of an earlier life holds nobody"
    assert second.on_message(messages.AskSafePoint(1)) == messages.SafePoint(1, 3)


def spmd(*participants: str) -> Coordinator:
    return Coordinator(participants, DEADLINES, lambda: "a" * 32)
