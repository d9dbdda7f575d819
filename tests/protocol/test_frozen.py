"""Roles that stay frozen until all have captured: who is thawed when, and by what."""

from __future__ import annotations

from unittest import mock

import pytest
from tests.protocol._opened import Actors, opening
from tests.steps._kit import DEADLINES

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol._opening import check_frozen
from stepseal.protocol._participant import Participant
from stepseal.protocol._save_round import SaveRound

ALL = ("trainer/0", "trainer/1", "buffer/0")
ENDS = (messages.Thaw, messages.Aborted)


def thawed(actors: Actors) -> list[str]:
    """Return who may go on, by a thaw or by the end of the call."""
    return sorted({to for to, message in actors.told if isinstance(message, ENDS)})


def frozen_save(*freeze: str) -> tuple[Actors, int]:
    """Open a save in which these roles are frozen, trainers before the buffer."""
    actors = Actors(*ALL)
    return actors, actors.open(opening(freeze=freeze))


def test_only_frozen_roles_are_told_so() -> None:
    actors, call = frozen_save("trainer")
    for name in ALL:
        actors.capture(name, call)
    begins = {to: m.freeze for to, m in actors.told if isinstance(m, messages.BeginSave)}
    assert begins == {"trainer/0": True, "trainer/1": True, "buffer/0": False}


def test_the_frozen_go_on_when_all_have_captured_and_not_before() -> None:
    actors, call = frozen_save("trainer")
    actors.capture("trainer/0", call)
    actors.capture("trainer/1", call)
    assert thawed(actors) == []
    actors.capture("buffer/0", call)
    assert thawed(actors) == ["trainer/0", "trainer/1"]
    assert [m for _, m in actors.told if isinstance(m, messages.Thaw)] == [messages.Thaw(call)] * 2


def test_nobody_is_thawed_who_is_not_frozen() -> None:
    actors, call = frozen_save()
    for name in ALL:
        actors.capture(name, call)
    assert thawed(actors) == []


@pytest.mark.parametrize("how", ["failed", "lost", "released", "admitted again", "deadline"])
def test_the_hold_ends_with_the_call(how: str) -> None:
    actors, call = frozen_save("trainer", "buffer")
    actors.capture("trainer/0", call)
    actors.capture("trainer/1", call)
    if how == "failed":
        why = messages.Failure("participant_failed", "no state")
        actors.hear("buffer/0", messages.Failed(call, 10, "capture", why))
    elif how == "lost":
        actors.lose("buffer/0")
    elif how == "released":
        actors.take(actors.coordinator.release("buffer/0"))
    elif how == "admitted again":
        actors.admit("buffer/0")
    else:
        actors.take(actors.coordinator.on_time(DEADLINES.capture_s))
    assert {"trainer/0", "trainer/1"} <= set(thawed(actors))
    assert set(actors.outcome(call).failures) == {"buffer/0"}


def test_the_deadline_names_who_is_held_and_who_is_awaited() -> None:
    actors, call = frozen_save("trainer")
    actors.capture("trainer/0", call)
    actors.take(actors.coordinator.on_time(DEADLINES.capture_s))
    found = actors.outcome(call)
    assert found.kind == errors.CommitTimeout.kind
    assert "in which trainer/0 stayed frozen and trainer/1 was awaited" in found.message
    assert set(found.failures) == {"trainer/1"}, "the buffer was not asked to capture yet"


def test_a_role_without_a_place_in_the_order_is_not_frozen() -> None:
    assert check_frozen(("a",), ("b", "a")) == ("a",)
    with pytest.raises(errors.InvalidInput, match="order= names, found c"):
        check_frozen(("a", "c"), ("b", "a"))


@pytest.mark.parametrize("how", ["thaw", "aborted", "lost"])
def test_a_participant_goes_on_after(how: str) -> None:
    own = Participant(DEADLINES)
    state = own.save(3)
    assert (state.thawed, state.settled) == (False, False)
    if how == "thaw":
        own.on_message(messages.Thaw(3))
    elif how == "aborted":
        own.on_message(messages.Aborted(3, 10, "participant_failed", "text", {}))
    else:
        own.on_lost(messages.Failure("coordinator_lost", "gone"))
    assert state.thawed or state.settled


def test_a_naive_round_that_only_thaws_is_seen() -> None:
    """Without an outcome for the frozen, a failure of another role holds them for ever."""
    real = SaveRound._finish

    def finish(self: SaveRound, message: messages.Decided) -> list[object]:
        told = real(self, message)
        held = (
            set(self._stages.frozen(self._captured))
            if isinstance(message, messages.Aborted)
            else set()
        )
        return [action for action in told if getattr(action, "to", "") not in held]

    with mock.patch.object(SaveRound, "_finish", finish), pytest.raises(AssertionError):
        test_the_hold_ends_with_the_call("failed")
    with mock.patch.object(SaveRound, "_thaw", list), pytest.raises(AssertionError):
        test_the_frozen_go_on_when_all_have_captured_and_not_before()
