from __future__ import annotations

import random
from typing import Any

import pytest
from tests.steps._kit import DEADLINES, THREE, TWO, attempt_id, cause, sent

from stepseal import errors
from stepseal.layout import StepRef
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._restore_round import RestoreRound

STEP_20 = StepRef(20, "a" * 64, 1)
STEP_10 = StepRef(10, "b" * 64, 1)
CORRUPT = errors.Corrupt.kind
MISMATCH = errors.StateMismatch.kind


def called(**changes: object) -> messages.RestoreCalled:
    values: dict[str, object] = {"step": None, "fresh": False, "policies": {"model": "require"}}
    values |= changes
    return messages.RestoreCalled(1, **values)  # type: ignore[arg-type]


def selected(lineage: StepRef | None, has_commits: bool = True) -> actions.Selected:
    return actions.Selected(1, lineage, attempt_id(1), has_commits, {})


def joined(names: tuple[str, ...] = TWO, **changes: Any) -> RestoreRound:  # noqa: ANN401
    found = RestoreRound(1, names, DEADLINES, 0.0)
    for name in names:
        found.on_called(name, called(**changes), 0.0)
    return found


def in_check(**changes: Any) -> RestoreRound:  # noqa: ANN401
    found = joined(**changes)
    found.on_selected(selected(STEP_20), 1.0)
    return found


def in_apply(**changes: Any) -> RestoreRound:  # noqa: ANN401
    found = in_check(**changes)
    for name in TWO:
        found.on_vote(name, messages.Checked(1, 1), 2.0)
    return found


def in_claim() -> RestoreRound:
    found = in_apply()
    for name in TWO:
        found.on_vote(name, messages.Applied(1, 1), 3.0)
    return found


def rejected(kind: str = CORRUPT, round_: int = 1, touched: bool = False) -> messages.Rejected:
    return messages.Rejected(1, round_, touched, cause("digest", kind))


def failure(todo: list[actions.Action]) -> messages.RestoreFailed:
    told = sent(todo, messages.RestoreFailed)
    assert [name for name, _ in told] == list(TWO)
    message = told[0][1]
    assert isinstance(message, messages.RestoreFailed)
    return message


def test_what_each_leaves_to_another_is_no_problem() -> None:
    found = in_check()
    assert (
        found.on_vote(TWO[0], messages.Checked(1, 1, {"model": "c", "optimizer": "1"}), 2.0) == []
    )
    todo = found.on_vote(TWO[1], messages.Checked(1, 1, {"model": "3", "optimizer": "0"}), 2.0)
    assert sent(todo, messages.Apply)


@pytest.mark.parametrize("check_only", [False, True])
def test_what_nobody_takes_fails_the_restore_on_all_and_changes_nothing(check_only: bool) -> None:
    found = in_check(check_only=check_only)
    found.on_vote(TWO[0], messages.Checked(1, 1, {"model": "6", "optimizer": "1"}), 2.0)
    left = {"model": "3", "optimizer": "0"}
    message = failure(found.on_vote(TWO[1], messages.Checked(1, 1, left), 2.0))
    assert (message.kind, message.left, message.tainted) == (MISMATCH, {"model": "2"}, False)
    assert (
        "no participant takes some saved entries of model. Nothing was changed" in message.message
    )
    assert found.done


def test_damage_on_one_hides_what_is_left_and_the_next_candidate_counts_anew() -> None:
    found = in_check()
    found.on_vote(TWO[0], messages.Checked(1, 1, {"model": "1"}), 2.0)
    found.on_rejected(TWO[1], rejected(), 2.0)
    found.on_selected(selected(STEP_10), 3.0)
    found.on_vote(TWO[0], messages.Checked(1, 2, {"model": "1"}), 4.0)
    todo = found.on_vote(TWO[1], messages.Checked(1, 2, {"model": "0"}), 4.0)
    assert sent(todo, messages.Apply)


def test_all_called_selects_once() -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    assert found.missing() == TWO
    assert found.on_called(TWO[0], called(), 0.0) == []
    assert found.on_called(TWO[0], called(), 0.0) == []
    assert found.missing() == TWO[1:]
    assert found.on_called(TWO[1], called(), 1.0) == [actions.Select(1, None, ())]
    assert found.on_called(TWO[1], called(), 1.0) == []
    assert found.deadline == 1.0 + DEADLINES.check_s


OTHERS: list[dict[str, object]] = [
    {"step": 3},
    {"fresh": True},
    {"unverified": True},
    {"policies": {"rng": "require"}},
    {"policies": {"model": "skip"}},
    {"policies": {}},
    {"by_world": ["model"]},
    {"only": True},
    {"check_only": True},
]


@pytest.mark.parametrize("other", OTHERS)
def test_calls_that_differ_fail_on_all(other: dict[str, object]) -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(), 0.0)
    message = failure(found.on_called(TWO[1], called(**other), 0.0))
    assert message.kind == MISMATCH
    assert list(message.failures) == [TWO[1]]
    name = next(iter(other)) if "policies" not in other and "by_world" not in other else "model"
    assert name in message.failures[TWO[1]].message


def test_sets_that_differ_are_shown_once_for_all_components_that_have_them() -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(sets={"a": "set=0: 0 1", "b": "set=0: 0 1"}, fresh=True), 0.0)
    text = failure(found.on_called(TWO[1], called(sets={"a": "set=0: 0", "b": ""}), 0.0)).message
    assert "fresh=False, the sets [set=0: 0] of a, the sets [] of b, but" in text
    assert "with fresh=True, the sets [set=0: 0 1] of a and b: pass the same same_on=" in text


def test_a_restore_that_only_checks_applies_and_claims_nothing() -> None:
    found = in_check(check_only=True)
    found.on_vote(TWO[0], messages.Checked(1, 1), 2.0)
    todo = found.on_vote(TWO[1], messages.Checked(1, 1), 2.0)
    assert sent(todo) == [(name, messages.Restored(1, 20, None, {})) for name in TWO]
    assert len(todo) == len(TWO)
    assert found.done


@pytest.mark.parametrize("fresh", [True, False])
def test_a_check_finds_nothing_to_restore_and_claims_nothing(fresh: bool) -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(fresh=fresh, check_only=True), 0.0)
    todo = found.on_called(TWO[1], called(fresh=fresh, check_only=True), 0.0)
    if not fresh:
        todo = found.on_selected(selected(None, has_commits=False), 1.0)
    assert sent(todo) == [(name, messages.Fresh(1, None)) for name in TWO]
    assert len(todo) == len(TWO)


def test_a_wrong_call_is_told_as_such() -> None:
    found = in_check()
    kind = errors.InvalidInput.kind
    for name in TWO:
        todo = found.on_rejected(name, rejected(kind), 2.0)
    assert failure(todo).kind == kind


def test_fresh_claims_without_parent() -> None:
    found = RestoreRound(1, TWO, DEADLINES, 0.0)
    found.on_called(TWO[0], called(fresh=True), 0.0)
    assert found.on_called(TWO[1], called(fresh=True), 0.0) == [actions.Claim(1, None)]
    told = sent(found.on_claimed(actions.Claimed(1, 4), 9.0))
    assert told == [(name, messages.Fresh(1, 4)) for name in TWO]


def test_empty_root_starts_fresh() -> None:
    assert joined().on_selected(selected(None, has_commits=False), 1.0) == [actions.Claim(1, None)]


@pytest.mark.parametrize("reasons", [{}, {"step-5": "damaged"}])
def test_commits_without_a_candidate_are_an_error(reasons: dict[str, str]) -> None:
    event = actions.Selected(1, None, "", True, reasons)
    message = failure(joined().on_selected(event, 1.0))
    assert message.kind == errors.NoResumableStep.kind
    assert message.reasons == reasons
    assert not message.tainted


def test_nobody_applies_before_all_checked() -> None:
    found = in_check()
    assert found.missing() == TWO
    assert found.on_vote(TWO[0], messages.Checked(1, 1), 2.0) == []
    assert found.on_vote(TWO[0], messages.Checked(1, 1), 2.0) == []
    assert found.missing() == TWO[1:]
    told = sent(found.on_vote(TWO[1], messages.Checked(1, 1), 2.0))
    assert told == [(name, messages.Apply(1, 1)) for name in TWO]


def test_votes_of_another_phase_or_round_do_not_count() -> None:
    found = in_check()
    assert found.on_vote(TWO[0], messages.Applied(1, 1), 2.0) == []
    assert found.on_vote(TWO[0], messages.Checked(1, 2), 2.0) == []
    assert found.on_rejected(TWO[0], rejected(round_=2), 2.0) == []
    assert found.missing() == TWO
    assert joined().on_rejected(TWO[0], rejected(round_=0), 2.0) == []


def test_all_applied_claims_then_tells() -> None:
    found = in_apply()
    assert found.on_vote(TWO[0], messages.Applied(1, 1), 3.0) == []
    assert found.on_vote(TWO[1], messages.Applied(1, 1), 3.0) == [actions.Claim(1, STEP_20)]
    told = sent(found.on_claimed(actions.Claimed(1, 4), 9.0))
    assert told == [(name, messages.Restored(1, 20, 4, {})) for name in TWO]
    assert found.done


@pytest.mark.parametrize("apply", [False, True])
def test_what_storage_refused_is_tried_once_more(apply: bool) -> None:
    refused = errors.StorageUnavailable.kind
    found = in_apply() if apply else in_check()
    vote = messages.Applied(1, 1) if apply else messages.Checked(1, 1)
    found.on_rejected(TWO[1], rejected(refused, touched=apply), 3.0)
    assert found.on_vote(TWO[0], vote, 3.0) == [actions.Select(1, None, ())]
    told = sent(found.on_selected(selected(STEP_20), 4.0))
    assert told[0][1] == messages.Candidate(1, 2, 20, attempt_id(1), "a" * 64)
    found.on_rejected(TWO[1], rejected(refused, round_=2), 5.0)
    assert found.on_vote(TWO[0], messages.Checked(1, 2), 5.0) == [actions.Select(1, None, (20,))]


@pytest.mark.parametrize("apply", [False, True])
def test_damage_sends_all_to_an_older_step(apply: bool) -> None:
    found = in_apply() if apply else in_check()
    vote = messages.Applied(1, 1) if apply else messages.Checked(1, 1)
    assert found.on_rejected(TWO[1], rejected(touched=apply), 3.0) == []
    assert found.on_vote(TWO[0], vote, 3.0) == [actions.Select(1, None, (20,))]
    told = sent(found.on_selected(selected(STEP_10), 4.0))
    assert told[0][1] == messages.Candidate(1, 2, 10, attempt_id(1), "b" * 64)
    for name in TWO:
        found.on_vote(name, messages.Checked(1, 2), 5.0)
    for name in TWO:
        found.on_vote(name, messages.Applied(1, 2), 6.0)
    (_, answer), _ = sent(found.on_claimed(actions.Claimed(1, 2), 9.0))
    assert answer == messages.Restored(1, 10, 2, {"step-20": "trainer/1: digest"})


def test_damage_of_the_last_step_is_an_error_that_tells_whether_state_was_touched() -> None:
    for make, touched in ((in_check, False), (in_apply, True)):
        found = make()
        for name in TWO:
            found.on_rejected(name, rejected(touched=touched), 3.0)
        message = failure(found.on_selected(selected(None), 4.0))
        assert message.kind == errors.NoResumableStep.kind
        assert message.tainted is touched
        assert "step-20" in message.reasons


def test_damage_never_leads_to_a_fresh_start() -> None:
    found = in_check()
    for name in TWO:
        found.on_rejected(name, rejected(), 3.0)
    message = failure(found.on_selected(selected(None, has_commits=False), 4.0))
    assert message.kind == errors.NoResumableStep.kind


def test_step_that_was_asked_for_is_never_replaced() -> None:
    found = in_check(step=20)
    for name in TWO:
        todo = found.on_rejected(name, rejected(), 3.0)
    assert failure(todo).kind == CORRUPT


def test_mismatch_does_not_fall_back() -> None:
    found = in_check()
    found.on_rejected(TWO[0], rejected(MISMATCH), 3.0)
    message = failure(found.on_vote(TWO[1], messages.Checked(1, 1), 3.0))
    assert message.kind == MISMATCH
    assert not message.tainted


def test_different_causes_become_one_kind() -> None:
    found = in_check()
    found.on_rejected(TWO[0], rejected(MISMATCH), 3.0)
    message = failure(found.on_rejected(TWO[1], rejected("RuntimeError"), 3.0))
    assert message.kind == errors.ParticipantFailed.kind


@pytest.mark.parametrize(("make", "tainted"), [(in_check, False), (in_apply, True)])
def test_loss_fails_on_all(make: object, tainted: bool) -> None:
    assert callable(make)
    message = failure(make().on_lost({TWO[0]: cause("gone", "participant_failed")}))
    assert message.tainted is tainted
    assert "gone" in message.message


@pytest.mark.parametrize(
    ("make", "phase", "limit_s", "tainted"),
    [
        (lambda: RestoreRound(1, TWO, DEADLINES, 0.0), "join", DEADLINES.connect_s, False),
        (in_check, "check", DEADLINES.check_s, False),
        (in_apply, "apply", DEADLINES.apply_s, True),
    ],
)
def test_deadline_names_everyone_missing(
    make: object, phase: str, limit_s: float, tainted: bool
) -> None:
    assert callable(make)
    message = failure(make().on_deadline())
    assert message.kind == errors.CommitTimeout.kind
    assert set(message.failures) == set(TWO)
    assert f"{limit_s:g} s in phase {phase}" in message.message
    assert message.tainted is tainted


@pytest.mark.parametrize(("make", "tainted"), [(joined, False), (in_claim, True)])
def test_deadline_of_storage_fails_on_all(make: object, tainted: bool) -> None:
    assert callable(make)
    found: RestoreRound = make()
    assert found.missing() == ()
    message = failure(found.on_deadline())
    assert message.kind == errors.StorageUnavailable.kind
    assert message.failures == {}
    assert message.tainted is tainted


def test_failed_claim_says_that_live_state_was_changed() -> None:
    message = failure(in_claim().on_io_failed(actions.IoFailed(1, cause())))
    assert message.tainted
    assert message.kind == "storage_unavailable"


def test_answers_that_nobody_waits_for_change_nothing() -> None:
    found = in_check()
    assert found.on_selected(selected(STEP_10), 2.0) == []
    assert found.on_claimed(actions.Claimed(1, 2), 9.0) == []
    assert found.phase == "check"


@pytest.mark.parametrize("seed", range(50))
def test_any_order_of_votes_keeps_the_phases_apart(seed: int) -> None:
    """Votes come in any order and twice; applying begins only after the last check of a round."""
    chosen = random.Random(seed)
    found = joined(THREE)
    todo: list[actions.Action] = found.on_selected(selected(STEP_20), 1.0)
    checked: set[str] = set()
    pending: list[tuple[str, messages.Checked | messages.Applied | messages.Rejected]] = []
    while not found.done:
        for action in todo:
            if isinstance(action, actions.Send) and isinstance(action.message, messages.Candidate):
                checked.clear()
                round_ = action.message.round
                bad = chosen.random() < 0.2
                vote = rejected(round_=round_) if bad else messages.Checked(1, round_)
                pending += [(action.to, vote)] * chosen.choice([1, 2])
            elif isinstance(action, actions.Send) and isinstance(action.message, messages.Apply):
                assert checked == set(THREE)
                vote2 = messages.Applied(1, action.message.round)
                pending += [(action.to, vote2)] * chosen.choice([1, 2])
        if todo and isinstance(todo[0], actions.Select):
            older = StepRef(20 - len(todo[0].exclude), "c" * 64, 1)
            todo = found.on_selected(selected(older), 1.0)
            continue
        if todo and isinstance(todo[0], actions.Claim):
            assert pending == [] or not found.missing()
            todo = found.on_claimed(actions.Claimed(1, 2), 9.0)
            continue
        name, vote3 = pending.pop(chosen.randrange(len(pending)))
        if isinstance(vote3, messages.Rejected):
            todo = found.on_rejected(name, vote3, 2.0)
        else:
            if isinstance(vote3, messages.Checked):
                checked.add(name)
            todo = found.on_vote(name, vote3, 2.0)
    assert len(sent(todo, messages.Restored)) == len(THREE)
