"""Opened publications: the roster is the roles that hold what is published."""

from __future__ import annotations

from typing import Any

import pytest
from tests.protocol._opened import Actors, opening
from tests.steps._kit import DEADLINES, THREE, attempt_id, captured, component, sent

from stepseal.errors import InvalidInput
from stepseal.layout import Area
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._save_round import SaveRound

ALL = ("trainer/0", "trainer/1", "buffer/0")
HELD = {"trainer": ["model", "optimizer"], "buffer": ["samples"]}


def job(*participants: str) -> Actors:
    """Return actors that have told what they hold."""
    found = Actors(*participants)
    for one in participants:
        found.hear(one, messages.Holds(HELD[one.partition("/")[0]]))
    return found


def publication(*names: str, version: int = 7, **changes: Any) -> Any:  # noqa: ANN401
    return opening(version, publish=names, **changes)


def publish(actors: Actors, call: int, *participants: str, step: int = 7) -> None:
    """Let participants capture and prepare, and the coordinator stage in between."""
    for one in participants:
        actors.capture(one, call, step, publish=True)
    actors.stage(call)
    for one in participants:
        actors.prepare(one, call)


def test_a_life_has_connected_once_it_has_told_what_it_holds() -> None:
    """Else a publication right after the admission found no holder."""
    actors = Actors("trainer/0")
    del actors.told[:]
    assert actors.others == []
    actors.hear("trainer/0", messages.Holds(["model"]))
    assert actors.told == [("trainer/0", messages.Welcome())]
    assert actors.others == [actions.Connected(actors.lives["trainer/0"])]


def test_only_holders_begin_and_all_of_their_role() -> None:
    actors = job(*ALL)
    call = actors.open(publication("model"))
    assert actors.begun(call) == ["trainer/0", "trainer/1"]
    begins = [m for _, m in actors.told if isinstance(m, messages.BeginSave)]
    assert {(tuple(b.participants), b.step, tuple(b.publish)) for b in begins} == {
        (("trainer/0", "trainer/1"), 7, ("model",))
    }
    publish(actors, call, "trainer/0", "trainer/1")
    (order,) = (a for a in actors.others if isinstance(a, actions.Publish))
    assert (order.area, order.step, list(order.parts)) == (
        Area.PUBLISHED, 7, ["trainer/0", "trainer/1"],
    )  # fmt: skip
    staging = next(a for a in actors.others if isinstance(a, actions.BeginStaging))
    assert staging.area is Area.PUBLISHED
    actors.publish(call)
    assert actors.outcome(call) == messages.Committed(call, order.attempt, 7, "a" * 64)


def test_holders_of_several_roles_begin_in_the_order() -> None:
    actors = job(*ALL)
    call = actors.open(publication("samples", "optimizer"))
    assert actors.begun(call) == ["trainer/0", "trainer/1"]
    for one in ("trainer/0", "trainer/1"):
        actors.capture(one, call, 7, publish=True)
    assert actors.begun(call) == list(ALL)


def test_others_may_die_and_holders_may_not() -> None:
    actors = job(*ALL)
    actors.lose("buffer/0")
    call = actors.open(publication("model"))
    publish(actors, call, "trainer/0", "trainer/1")
    actors.publish(call)
    assert isinstance(actors.outcome(call), messages.Committed)
    actors.lose("trainer/1")
    call = actors.open(publication("model", version=8))
    outcome = actors.outcome(call)
    assert isinstance(outcome, messages.Aborted)
    assert outcome.message.startswith("publication of version 8, phase capture: trainer/1")


@pytest.mark.parametrize("names", [("critic",), ("model", "critic")])
def test_what_nobody_holds_begins_nothing(names: tuple[str, ...]) -> None:
    actors = job(*ALL)
    call = actors.open(publication(*names))
    assert actors.begun(call) == []
    outcome = actors.outcome(call)
    assert outcome.kind == InvalidInput.kind
    assert outcome.message.startswith("publication of version 7: no participant that was admitted")
    assert not actors.coordinator.busy


def test_a_released_participant_holds_nothing() -> None:
    actors = job(*ALL)
    actors.take(actors.coordinator.release("buffer/0"))
    call = actors.open(publication("samples"))
    assert actors.outcome(call).kind == InvalidInput.kind


def test_a_new_life_may_hold_something_else() -> None:
    actors = job(*ALL)
    actors.admit("buffer/0")
    actors.hear("buffer/0", messages.Holds(["replay"]))
    assert actors.outcome(actors.open(publication("samples"))).kind == InvalidInput.kind
    assert actors.begun(actors.open(publication("replay"))) == ["buffer/0"]


def test_a_save_between_publications_is_for_all() -> None:
    actors = job(*ALL)
    call = actors.open(opening(10))
    for one in ALL:
        actors.capture(one, call)
    assert actors.begun(call) == list(ALL)
    actors.stage(call)
    for one in ALL:
        actors.prepare(one, call)
    (order,) = (a for a in actors.others if isinstance(a, actions.Publish))
    assert order.area is Area.STEPS


def test_a_rank_that_fails_first_says_what_it_was_asked_for() -> None:
    """In an SPMD job nobody opens the call: its first message says whether it is a publication."""
    save = SaveRound(1, THREE, attempt_id(1), DEADLINES, 0.0)
    cause = messages.Failure("participant_failed", "no state")
    failed = messages.Failed(1, 7, "capture", cause, publish=True)
    told = sent(save.on_failed(THREE[0], failed), messages.Aborted)
    assert [m.message.partition(":")[0] for _, m in told if isinstance(m, messages.Aborted)] == [
        "publication of version 7, phase capture"
    ] * 3


def test_ranks_that_save_and_publish_disagree() -> None:
    save = SaveRound(1, THREE, attempt_id(1), DEADLINES, 0.0)
    todo: list[actions.Action] = []
    for number, one in enumerate(THREE):
        report = captured(1, 7, components=[component()], publish=number == 1)
        todo += save.on_captured(one, report, 1.0)
    (told, *_) = sent(todo, messages.Aborted)
    assert isinstance(told[1], messages.Aborted)
    assert list(told[1].failures) == [THREE[1]]
    assert "called publish, but trainer/0, trainer/2: save" in told[1].failures[THREE[1]].message
