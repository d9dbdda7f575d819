"""The phase between the order to write and the inventory, in a save with external components."""

from __future__ import annotations

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
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._save_round import SaveRound

ATTEMPT = attempt_id(1)
STAGED = actions.Staged(1, "staging", "nonce")
EXTERNAL = [component("engine", kind="external", sharing="sharded", fingerprint="")]
RETURNED = messages.EnginesReturned(1, ATTEMPT)


def in_engines() -> SaveRound:
    found = SaveRound(1, TWO, ATTEMPT, DEADLINES, 0.0)
    for name in TWO:
        found.on_captured(name, captured(components=EXTERNAL), 0.0)
    assert [type(m) for _, m in sent(found.on_staged(STAGED, 2.0))] == [messages.Write] * 2
    assert (found.phase, found.missing()) == ("engines", TWO)
    return found


def prepared(name: str) -> messages.Prepared:
    return messages.Prepared(1, ATTEMPT, part_report(name))


def test_the_inventory_is_ordered_when_all_engines_have_returned() -> None:
    found = in_engines()
    assert found.on_returned(TWO[1], RETURNED, 3.0) == []
    assert found.on_returned(TWO[1], RETURNED, 3.0) == []
    assert found.missing() == TWO[:1]
    todo = found.on_returned(TWO[0], RETURNED, 4.0)
    assert sent(todo) == [(name, messages.TakeInventory(1, ATTEMPT)) for name in TWO]
    assert (found.phase, found.missing()) == ("write", TWO)
    assert found.on_returned(TWO[0], RETURNED, 4.0) == []
    assert found.on_prepared(TWO[0], prepared(TWO[0]), 5.0) == []
    (publish,) = found.on_prepared(TWO[1], prepared(TWO[1]), 5.0)
    assert isinstance(publish, actions.Publish)


def test_a_part_from_before_the_inventory_does_not_count() -> None:
    found = in_engines()
    for name in TWO:
        assert found.on_prepared(name, prepared(name), 3.0) == []
    for name in TWO:
        found.on_returned(name, RETURNED, 3.0)
    assert (found.phase, found.missing()) == ("write", TWO)


def test_engines_of_another_attempt_do_not_count() -> None:
    found = in_engines()
    stale = messages.EnginesReturned(1, attempt_id(2))
    assert [found.on_returned(name, stale, 3.0) for name in TWO] == [[], []]
    assert found.missing() == TWO


def test_a_save_without_external_components_has_no_such_phase() -> None:
    found = SaveRound(1, TWO, ATTEMPT, DEADLINES, 0.0)
    for name in TWO:
        found.on_captured(name, captured(), 0.0)
    found.on_staged(STAGED, 2.0)
    assert found.phase == "write"
    assert [found.on_returned(name, RETURNED, 3.0) for name in TWO] == [[], []]


def test_an_engine_that_fails_aborts_the_save_on_all() -> None:
    found = in_engines()
    found.on_returned(TWO[0], RETURNED, 3.0)
    failed = messages.Failed(1, 10, "engines", cause("component engine raised ValueError: no"))
    todo = found.on_failed(TWO[1], failed)
    told = sent(todo, messages.Aborted)
    assert [name for name, _ in told] == list(TWO)
    assert "phase engines: trainer/1: component engine raised ValueError" in str(told[0][1])
    assert todo[-1] == actions.Discard("staging")
    assert found.on_returned(TWO[1], RETURNED, 3.0) == []


@pytest.mark.parametrize("late", [False, True])
def test_engines_that_do_not_return_are_named_at_the_deadline(late: bool) -> None:
    found = in_engines()
    found.on_returned(TWO[0], RETURNED, 3.0)
    now = 2.0 + DEADLINES.write_s + 0.1
    todo = found.on_returned(TWO[1], RETURNED, now) if late else found.on_deadline()
    told = sent(todo, messages.Aborted)[0][1]
    assert isinstance(told, messages.Aborted)
    assert (told.kind, list(told.failures)) == (errors.CommitTimeout.kind, [TWO[1]])
    assert "in phase engines" in told.message


def test_engines_and_parts_share_one_limit() -> None:
    found = in_engines()
    for name in TWO:
        found.on_returned(name, RETURNED, 3.0)
    assert found.deadline == 2.0 + DEADLINES.write_s


@pytest.mark.parametrize("when", ["before it returned", "after it returned"])
def test_a_participant_that_is_lost_ends_the_save(when: str) -> None:
    found = Coordinator(TWO, DEADLINES, lambda: ATTEMPT)
    for name in TWO:
        found.on_message(name, messages.Hello(name, "", ""), 0.0)
        found.on_message(name, captured(components=EXTERNAL), 0.0)
    found.on_driver(STAGED, 1.0)
    if when == "after it returned":
        found.on_message(TWO[1], RETURNED, 2.0)
    todo = found.on_lost(TWO[1], cause("silent"))
    todo += found.on_message(TWO[0], RETURNED, 3.0)
    assert len(sent(todo, messages.Aborted)) == 2
    assert not found.busy
