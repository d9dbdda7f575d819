"""A participant is admitted again as a new life; its old life changes nothing any more.

Each race is also run against a naive coordinator, which must fail it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import msgspec
import pytest
from tests.protocol._opened import Actors, opening
from tests.steps._kit import component, part_report

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._lives import Lives
from stepseal.protocol._participant import Participant
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepseal.protocol._failures import Failure

ALL = ("trainer/0", "trainer/1", "buffer/0")


def loss_of_an_old_life_after_its_successor_has_joined() -> None:
    actors = Actors(*ALL)
    old = actors.lives["buffer/0"]
    actors.admit("buffer/0")
    actors.lose("buffer/0", old)
    call = actors.open(opening())
    for name in ALL:
        actors.capture(name, call)
    assert actors.outcome(call) is None


def new_hello_before_the_death_of_the_old_line() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    actors.admit("trainer/1")
    found = actors.outcome(call)
    assert isinstance(found, messages.Aborted), "the old life would be waited for in vain"
    assert "trainer/1: was admitted again" in found.message


def late_capture_of_an_old_life_in_the_call_of_its_successor() -> None:
    actors = Actors(*ALL)
    old = actors.lives["trainer/0"]
    actors.admit("trainer/0")
    call = actors.open(opening())
    late = messages.Captured(call, 10, [component("model")], {}, {}, [])
    actors.hear("trainer/0", late, old)
    actors.capture("trainer/1", call)
    assert "buffer/0" not in actors.begun(call), "the old life has captured for the new one"


def late_part_of_an_old_life() -> None:
    actors = Actors(*ALL)
    old = actors.lives["buffer/0"]
    actors.admit("buffer/0")
    call = actors.open(opening())
    for name in ALL:
        actors.capture(name, call)
    actors.stage(call)
    for name in ALL[:2]:
        actors.prepare(name, call)
    (write,) = (m for to, m in actors.told if to == "buffer/0" and actors.is_write(m, call))
    assert isinstance(write, messages.Write)
    late = messages.Prepared(call, write.attempt, part_report("buffer/0"))
    actors.hear("buffer/0", late, old)
    assert not any(isinstance(a, actions.Publish) for a in actors.others)


def busy_past_the_deadline() -> None:
    """An actor that is busy is named; what it says later belongs to no call any more."""
    actors = Actors(*ALL)
    call = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, call)
    actors.take(actors.coordinator.on_time(actors.coordinator.next_deadline()))
    assert set(actors.outcome(call).failures) == {"buffer/0"}
    actors.others.clear()
    again = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, again)
    actors.capture("buffer/0", call)
    assert not actors.others, "the capture for the call before counts for this one"
    actors.capture("buffer/0", again)
    assert any(isinstance(a, actions.BeginStaging) for a in actors.others)


def goodbye_of_an_old_life() -> None:
    actors = Actors(*ALL)
    old = actors.lives["trainer/0"]
    actors.admit("trainer/0")
    actors.hear("trainer/0", messages.Goodbye(), old)
    call = actors.open(opening())
    assert actors.outcome(call) is None


def prepared_life_dies_and_its_successor_joins_before_the_commit() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    for name in ALL:
        actors.capture(name, call)
    actors.stage(call)
    for name in ALL:
        actors.prepare(name, call)
    actors.lose("buffer/0")
    actors.admit("buffer/0", connects=False)
    before = len(actors.told)
    actors.publish(call)
    assert isinstance(actors.outcome(call), messages.Committed), "its bytes are durable"
    told = [to for to, _ in actors.told[before:]]
    assert told == ["trainer/0", "trainer/1"], "the new life does not know this call"


def part_that_is_counted_and_not_named() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    for name in ALL:
        actors.capture(name, call)
    actors.stage(call)
    for _ in ALL:  # three reports of one
        actors.prepare("trainer/0", call)
    assert not any(isinstance(a, actions.Publish) for a in actors.others)


def _lives_unheeded() -> tuple[object, str, object]:
    return Lives, "is_current", lambda self, one, _life: one in self._lives


def _losses_unheeded() -> tuple[object, str, object]:
    real = Lives.lose

    def lose(self: Lives, participant: str, _life: str, cause: Failure) -> None:
        real(self, participant, self._lives[participant], cause)

    return Lives, "lose", lose


def _successor_waited_for() -> tuple[object, str, object]:
    real = Lives.absent

    def absent(self: Lives, roster: Mapping[str, str]) -> dict[str, Failure]:
        return real(self, {one: self._lives[one] for one in roster})

    return Lives, "absent", absent


def _counted() -> tuple[object, str, object]:
    real = SaveRound.on_prepared

    def on_prepared(
        self: SaveRound, _who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        missing = [p for p in self.participants if p not in self._prepared]
        return real(self, missing[0], message, now)

    return SaveRound, "on_prepared", on_prepared


def _any_call() -> tuple[object, str, object]:
    """A report counts for the save that runs, whichever it was made for."""
    real = Coordinator.on_message

    def on_message(self: Coordinator, who: str, message: Any, *rest: Any) -> list[Any]:  # noqa: ANN401
        if isinstance(message, messages.Captured) and self._rounds:
            message = msgspec.structs.replace(message, call=max(self._rounds))
        return real(self, who, message, *rest)

    return Coordinator, "on_message", on_message


RACES = [
    (loss_of_an_old_life_after_its_successor_has_joined, _losses_unheeded),
    (new_hello_before_the_death_of_the_old_line, _successor_waited_for),
    (late_capture_of_an_old_life_in_the_call_of_its_successor, _lives_unheeded),
    (late_part_of_an_old_life, _lives_unheeded),
    (busy_past_the_deadline, _any_call),
    (goodbye_of_an_old_life, _lives_unheeded),
    (prepared_life_dies_and_its_successor_joins_before_the_commit, _lives_unheeded),
    (part_that_is_counted_and_not_named, _counted),
]


@pytest.mark.parametrize("race", [race for race, _ in RACES])
def test_race(race: Callable[[], None]) -> None:
    race()


@pytest.mark.parametrize(("race", "naive"), RACES)
def test_a_naive_coordinator_fails(
    race: Callable[[], None], naive: Callable[[], tuple[object, str, object]]
) -> None:
    owner, name, wrong = naive()
    with mock.patch.object(owner, name, wrong), pytest.raises(AssertionError):
        race()


def test_a_lost_life_fails_every_call_until_it_is_admitted_again() -> None:
    actors = Actors(*ALL)
    actors.lose("trainer/0")
    call = actors.open(opening())
    assert "trainer/0: connection closed" in actors.outcome(call).message
    actors.admit("trainer/0")
    call = actors.open(opening(20))
    assert actors.outcome(call) is None


def test_an_admitted_life_that_never_connects_is_named_at_the_deadline() -> None:
    actors = Actors(*ALL[:2])
    actors.admit("buffer/0", connects=False)
    call = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, call)
    actors.take(actors.coordinator.on_time(actors.coordinator.next_deadline()))
    assert set(actors.outcome(call).failures) == {"buffer/0"}


def test_a_life_that_connects_late_is_told_to_begin() -> None:
    actors = Actors(*ALL[:2])
    life = actors.admit("buffer/0", connects=False)
    call = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, call)
    actors.told.clear()
    actors.hear("buffer/0", messages.Hello("buffer/0", "", "", life))
    assert actors.begun(call) == ["buffer/0"]


def test_a_call_that_nobody_opened_has_no_round() -> None:
    actors = Actors(*ALL)
    actors.capture("trainer/0", 1)
    actors.hear("trainer/0", messages.RestoreCalled(2, None, False, {}))
    assert not actors.coordinator.busy


def test_ordinals_follow_roles_and_ranks() -> None:
    lives = Lives(())
    for one in ("trainer/10", "buffer/0", "trainer/2", "trainer/1"):
        lives.admit(one, one)
    assert [*lives.roster()] == ["trainer/1", "trainer/2", "trainer/10", "buffer/0"]


def test_nobody_is_waited_for_when_the_coordinator_opened_all_calls() -> None:
    assert Coordinator((), mock.Mock(), lambda: "").everybody_left


def test_a_participant_begins_each_call_once() -> None:
    machine = Participant(mock.Mock())
    begin = messages.BeginSave(3, "life", ["trainer/0"], 10)
    machine.on_message(begin)
    assert machine.next_begin() == begin
    assert machine.next_begin() is None
    assert [machine.take_up(begin), machine.take_up(begin)] == [True, False]


def test_a_dismissed_participant_ends_its_calls() -> None:
    machine = Participant(mock.Mock())
    state = machine.save(1)
    machine.on_message(messages.Dismiss())
    assert machine.dismissed
    assert state.settled
