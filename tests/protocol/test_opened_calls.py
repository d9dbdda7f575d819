"""Calls that the coordinator opens: rosters, the order of captures, and what roles agree on."""

from __future__ import annotations

import pytest
from tests.protocol._opened import Actors, opening
from tests.steps._kit import DEADLINES, component

from stepseal import errors
from stepseal.errors import InvalidInput
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._opening import BeginRestore, Opening, Relation, Scalar, stages

ALL = ("trainer/0", "trainer/1", "buffer/0")


def captured(**cuts: dict[str, object]) -> tuple[Actors, int]:
    """Return actors that have all captured, each role with its cut."""
    actors = Actors(*ALL)
    call = actors.open(opening(relations=["watermark <= position"]))
    for name in ALL:
        actors.capture(name, call, cut=cuts.get(name.partition("/")[0], {}))
    return actors, call


def test_a_save_commits_one_step_of_all_roles() -> None:
    actors, call = captured(trainer={"watermark": 3}, buffer={"position": 5})
    actors.stage(call)
    for name in ALL:
        actors.prepare(name, call)
    (publish,) = (a for a in actors.others if isinstance(a, actions.Publish))
    assert tuple(publish.captured) == ALL
    assert actors.outcome(call) is None
    actors.publish(call)
    assert isinstance(actors.outcome(call), messages.Committed)
    assert [to for to, m in actors.told if isinstance(m, messages.Committed)] == [*ALL]


def test_who_opened_a_save_does_not_wait_for_storage_that_hangs() -> None:
    """Nobody knows then whether the step is committed; what storage answers later is for others."""
    actors = Actors("trainer/0")
    call = actors.open(opening())
    actors.capture("trainer/0", call)
    actors.stage(call)
    actors.prepare("trainer/0", call)
    coordinator = actors.coordinator
    actors.take(coordinator.on_time(coordinator.next_deadline()))
    assert actors.outcome(call) is None, "the publication may end a little late"
    assert coordinator.next_deadline() == DEADLINES.save_s
    actors.take(coordinator.on_time(DEADLINES.save_s))
    found = actors.outcome(call)
    assert isinstance(found, messages.Unresolved)
    assert "did not answer in time; it may still be committed" in found.message
    assert coordinator.next_deadline() == float("inf")
    actors.publish(call)
    assert actors.outcome(call) is found
    assert [m for _, m in actors.told if isinstance(m, messages.Committed)]


def test_each_participant_is_told_the_members_of_its_role() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, call)
    found = {to: m.participants for to, m in actors.told if isinstance(m, messages.BeginSave)}
    assert found == {one: ["trainer/0", "trainer/1"] for one in ALL[:2]} | {ALL[2]: [ALL[2]]}


def test_a_producer_captures_only_after_all_consumers() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    assert actors.begun(call) == ["trainer/0", "trainer/1"]
    actors.capture("trainer/1", call)
    assert actors.begun(call) == ["trainer/0", "trainer/1"]
    actors.capture("trainer/0", call)
    assert actors.begun(call) == [*ALL]


def test_roles_that_the_order_does_not_name_come_last() -> None:
    roster = ("c/0", "a/0", "b/0", "d/0")
    assert stages(roster, ("b", "a")) == [("b/0",), ("a/0",), ("c/0", "d/0")]
    assert stages(roster, ()) == [roster]


def test_a_member_that_joins_in_the_middle_takes_part_in_the_next_call() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    actors.admit("reward/0")
    for name in ALL:
        actors.capture(name, call)
    actors.stage(call)
    assert [to for to, m in actors.told if isinstance(m, messages.Write)] == [*ALL]
    actors.coordinator.on_driver(actions.IoFailed(call, messages.Failure("x", "")), 1.0)
    assert "reward/0" in actors.begun(actors.open(Opening("save", 20)))


def test_a_released_member_takes_no_part() -> None:
    actors = Actors(*ALL)
    actors.take(actors.coordinator.release("buffer/0"))
    assert actors.told[-1] == ("buffer/0", messages.Dismiss())
    call = actors.open(opening())
    for name in ALL[:2]:
        actors.capture(name, call)
    actors.stage(call)
    assert actors.begun(call) == [*ALL[:2]]
    assert actors.outcome(call) is None


def test_releasing_a_member_that_a_call_waits_for_fails_the_call() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    actors.take(actors.coordinator.release("trainer/1"))
    found = actors.outcome(call)
    assert isinstance(found, messages.Aborted)
    assert "trainer/1: was released" in found.message


def test_agreement_is_within_a_role() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    actors.capture("trainer/0", call)
    actors.capture("trainer/1", call, components=[component("model", fingerprint="0" * 32)])
    actors.capture("buffer/0", call)
    found = actors.outcome(call)
    assert isinstance(found, messages.Aborted)
    assert set(found.failures) == {"trainer/1"}


def test_a_component_belongs_to_one_role() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    for name in ALL:
        actors.capture(name, call, components=[component("model")])
    found = actors.outcome(call)
    assert found.failures["buffer/0"].kind == errors.StateMismatch.kind
    assert "component model: also a component of role trainer (trainer/0)" in found.message
    assert not any(isinstance(a, actions.BeginStaging) for a in actors.others)


def test_roles_must_not_contradict_each_other_in_a_field_of_the_cut() -> None:
    actors, call = captured(trainer={"version": 7}, buffer={"version": 8})
    text = "field version of the cut is 8 here, but 7 according to trainer/0"
    assert text in actors.outcome(call).failures["buffer/0"].message


def test_a_field_of_the_controller_counts_as_well() -> None:
    actors = Actors("trainer/0")
    call = actors.open(opening(cut={"version": 1}))
    actors.capture("trainer/0", call, cut={"version": True})
    text = "field version of the cut is True here, but 1 according to the controller"
    assert text in actors.outcome(call).message


@pytest.mark.parametrize(
    ("trainer", "buffer", "text"),
    [
        ({"watermark": 5}, {"position": 5}, None),
        ({"watermark": 6}, {"position": 5}, "watermark is 6 on trainer/0, position is 5 on buffer"),
        ({"watermark": "6"}, {"position": 5}, "watermark is '6' on trainer/0"),
        ({"watermark": 6}, {}, "relation watermark <= position: nobody reports position"),
        ({}, {}, "relation watermark <= position: nobody reports watermark and position"),
    ],
)
def test_relations_are_checked_before_anything_is_written(
    trainer: dict[str, object], buffer: dict[str, object], text: str | None
) -> None:
    actors, call = captured(trainer=trainer, buffer=buffer)
    begun = any(isinstance(a, actions.BeginStaging) for a in actors.others)
    found = actors.outcome(call)
    assert (begun, found is None) == (text is None, text is None)
    if text is not None:
        assert text in found.message


@pytest.mark.parametrize(
    ("text", "left", "right", "holds"),
    [
        ("a == b", 3, 3, True),
        ("a == b", "v1", "v2", False),
        ("a <= b", 3, 3, True),
        ("a <= b", 4, 3, False),
        ("a <= b", "2026-01", "2026-02", True),
        ("a <= b", 1, "2", False),
        ("a <= b", True, 2, False),
        ("a <= b", None, 2, False),
    ],
)
def test_a_relation_compares_numbers_or_texts(
    text: str, left: Scalar, right: Scalar, holds: bool
) -> None:
    assert Relation.parse(text).holds(left, right) is holds


@pytest.mark.parametrize("text", ["a < b", "a<=", "a <= b <= c", "", 3, "a == 5"])
def test_what_is_no_relation_is_refused(text: object) -> None:
    with pytest.raises(InvalidInput, match="expected 'FIELD <= FIELD' or 'FIELD == FIELD'"):
        Relation.parse(text)


def test_an_engine_of_one_role_lets_the_others_write_meanwhile() -> None:
    actors = Actors(*ALL)
    call = actors.open(opening())
    engine = component("engine", kind="external", sharing="sharded", fingerprint="")
    for name in ALL[:2]:
        actors.capture(name, call, components=[engine])
    actors.capture("buffer/0", call)
    actors.stage(call)
    actors.prepare("buffer/0", call)
    (write, *_) = (m for _, m in actors.told if isinstance(m, messages.Write))
    for name in ALL[:2]:
        assert not [m for _, m in actors.told if isinstance(m, messages.TakeInventory)]
        actors.hear(name, messages.EnginesReturned(call, write.attempt))
    told = [to for to, m in actors.told if isinstance(m, messages.TakeInventory)]
    assert told == [*ALL[:2]]
    for name in ALL[:2]:
        actors.prepare(name, call)
    assert any(isinstance(a, actions.Publish) for a in actors.others)


def joined(**policies: str) -> tuple[Actors, int]:
    """Return actors that have joined a restore."""
    actors = Actors(*ALL)
    call = actors.open(Opening("restore", policies=policies))
    for name, own in zip(ALL, ("model", "model", "samples"), strict=True):
        actors.hear(name, messages.RestoreCalled(call, None, False, {own: "require"}))
    return actors, call


def test_all_roles_restore_one_step() -> None:
    actors, call = joined()
    actors.select(call, model="trainer", samples="buffer")
    assert [to for to, m in actors.told if isinstance(m, messages.Candidate)] == [*ALL]
    for name in ALL:
        actors.hear(name, messages.Checked(call, 1))
    for name in ALL:
        actors.hear(name, messages.Applied(call, 1))
    actors.take(actors.coordinator.on_driver(actions.Claimed(call, 2), 1.0))
    assert actors.outcome(call) == messages.Restored(call, 10, 2, {})


def test_members_of_a_role_restore_alike() -> None:
    actors = Actors(*ALL)
    call = actors.open(Opening("restore"))
    for name, own in zip(ALL, ("model", "weights", "samples"), strict=True):
        actors.hear(name, messages.RestoreCalled(call, None, False, {own: "require"}))
    assert set(actors.outcome(call).failures) == {"trainer/1"}


def test_a_role_that_is_missing_at_a_restore_is_named() -> None:
    actors, call = joined()
    actors.select(call, model="trainer", samples="buffer", judge="reward")
    found = actors.outcome(call)
    assert (found.kind, found.tainted) == (errors.StateMismatch.kind, False)
    assert "nobody holds judge of role reward" in found.message
    assert "policies={'judge': 'skip'}" in found.message


def test_a_role_that_is_missing_on_purpose_is_skipped() -> None:
    actors, call = joined(judge="skip")
    actors.select(call, model="trainer", samples="buffer", judge="reward")
    assert actors.outcome(call) is None


def test_a_name_that_nobody_has_is_refused_before_a_step_is_chosen() -> None:
    actors, call = joined(models="fresh")
    found = actors.outcome(call)
    assert found.kind == errors.InvalidInput.kind
    assert "policies: no component 'models'" in found.message
    assert "added: model, samples" in found.message


@pytest.mark.parametrize(
    ("only", "goes_on"), [(("model",), True), (("model", "judge"), False), (("modle",), False)]
)
def test_only_some_components_leave_the_roles_of_others_out(
    only: tuple[str, ...], goes_on: bool
) -> None:
    actors = Actors(*ALL)
    call = actors.open(Opening("restore", only=only))
    begun = [m for _, m in actors.told if isinstance(m, BeginRestore)]
    assert {tuple(m.only or ()) for m in begun} == {only}
    for name, own in zip(ALL, ("model", "model", "samples"), strict=True):
        policy = "require" if own in only else "skip"
        actors.hear(name, messages.RestoreCalled(call, None, False, {own: policy}, only=True))
    if actors.outcome(call) is None:
        actors.select(call, model="trainer", samples="buffer", reward="reward")
    assert (actors.outcome(call) is None) is goes_on


def test_a_participant_that_cannot_be_brought_to_begin_fails_the_call() -> None:
    actors = Actors(*ALL)
    call = actors.open(Opening("restore"))
    why = messages.Failure("invalid_input", "no such method")
    actors.take(actors.coordinator.on_unreached(call, "trainer/1", why))
    assert set(actors.outcome(call).failures) == {"trainer/1"}
    call = actors.open(opening(20))
    actors.capture("trainer/1", call)
    actors.take(actors.coordinator.on_unreached(call, "trainer/1", why))
    assert actors.outcome(call) is None, "it has captured, so it was reached"
