"""Saves that writers make at different times: who is answered what, and what fails a step."""

from __future__ import annotations

from typing import Any

import pytest
from tests.protocol._writers import ALL, Writers, opened

from stepseal import errors
from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._gates import Gate, as_gates
from stepseal.protocol._opening import Opening


def test_a_writer_may_write_before_any_other_has_asked() -> None:
    """Else a controller that lets one role save after the other waits for ever."""
    writers, call = opened()
    assert {to for to, m in writers.told if writers.is_write(m, call)} == {*ALL}
    assert writers.ask("actor/1").call == call, "there is one call for a step"
    granted = writers.ask("critic/0")
    assert (granted.names, granted.participants) == (["critic"], ["critic/0"])
    assert writers.ask("actor/0").participants == ["actor/0", "actor/1"]


def test_the_controller_may_want_it_first_last_or_again() -> None:
    for when in range(4):
        writers = Writers()
        call = writers.want() if when == 0 else writers.ask("critic/0").call
        writers.stage(call)
        for number, one in enumerate(ALL, 1):
            if when == number:
                assert writers.want() == call
            writers.write(one, call)
        for one in ALL:
            writers.prepare(one, call)
        writers.publish(call)
        assert isinstance(writers.outcome(call), messages.Committed)


def test_the_manifest_has_what_the_controller_said() -> None:
    writers, call = opened()
    writers.want(cut={"version": 3}, metrics={"r": 0.5}, tags=("a",))
    writers.finish_all(call)
    (publish,) = (a for a in writers.others if isinstance(a, actions.Publish))
    assert publish.opening is not None
    assert (publish.opening.cut, publish.opening.metrics) == ({"version": 3}, {"r": 0.5})
    held = {p: [c.name for c in found.components] for p, found in publish.captured.items()}
    assert held == {"actor/0": ["actor"], "actor/1": ["actor"], "critic/0": ["critic"]}


def test_a_cut_that_does_not_hold_fails_the_step() -> None:
    writers, call = opened()
    writers.want(relations=["a <= b"], cut={"a": 2, "b": 1})
    assert "relation a <= b does not hold" in writers.outcome(call).message


def test_a_writer_that_dies_fails_the_step_at_once_and_blocks_nobody() -> None:
    """S3: with its name, whatever it had done; the others are told, and the next step goes on."""
    for num_done in range(3):
        writers, call = opened()
        writers.want()
        for work in (writers.write, writers.prepare)[:num_done]:
            for one in ("actor/0", "actor/1"):
                work(one, call)
        writers.lose("actor/1")
        if num_done == 2:
            writers.finish("critic/0", call)  # its bytes were durable
            assert writers.published() == [10]
            continue
        assert set(writers.outcome(call).failures) == {"actor/1"}
        assert [a.staging for a in writers.others if isinstance(a, actions.Discard)] == ["staging"]
        writers.admit("actor/1")
        again = writers.ask("actor/1", 20).call
        writers.stage(again)
        writers.want(20)
        writers.finish_all(again)
        assert writers.published() == [20]


def test_a_writer_that_never_comes_is_named_at_the_deadline() -> None:
    writers, call = opened()
    writers.want()
    for one in ("actor/0", "actor/1"):
        writers.finish(one, call) if one == "actor/0" else writers.write(one, call)
    writers.prepare("actor/0", call)
    writers.prepare("actor/1", call)
    writers.take(writers.coordinator.on_time(writers.coordinator.next_deadline()))
    found = writers.outcome(call)
    assert found.kind == errors.CommitTimeout.kind
    assert set(found.failures) == {"critic/0"}


def test_a_failure_is_told_to_the_controller_that_asks_later_once() -> None:
    writers, call = opened()
    writers.lose("critic/0")
    assert [a.text for a in writers.others if isinstance(a, actions.Warn)] == [
        writers.aborted(call).message
    ]
    assert writers.want() == call
    assert set(writers.outcome(call).failures) == {"critic/0"}
    writers.admit("critic/0")
    assert writers.want() > call, "the next one is a new attempt"


def test_the_same_step_can_be_tried_again_by_those_who_were_in_it() -> None:
    writers, call = opened()
    writers.hear("actor/0", messages.Failed(call, 10, "engines", messages.Failure("corrupt", "x")))
    assert isinstance(writers.ask("actor/1"), messages.SaveRefused)
    again = writers.ask("actor/0").call
    assert again > call
    assert writers.ask("actor/1").call == again
    writers.stage(again)
    writers.want()
    writers.finish_all(again)
    assert writers.published() == [10]


def test_a_save_for_an_older_step_is_late() -> None:
    writers, call = opened(20)
    writers.want(20)
    writers.finish_all(call)
    writers.publish(call)
    for step in (10, 20):
        answer = writers.ask("critic/0", step)
        assert (answer.is_late, answer.kind) == (True, errors.StepExists.kind)
    assert writers.ask("critic/0", 21).call > call


def test_a_restore_ends_what_is_open_and_decides_what_is_old() -> None:
    writers, call = opened(20)
    restore = writers.open(Opening("restore"))
    assert "a restore began" in writers.aborted(call).message
    for one in ALL:
        writers.hear(one, messages.RestoreCalled(restore, None, False, {}))
    writers.take(writers.coordinator.on_driver(actions.Selected(restore, None, "", False), 1.0))
    writers.take(writers.coordinator.on_driver(actions.Claimed(restore, 2), 1.0))
    assert isinstance(writers.outcome(restore), messages.Fresh)
    assert isinstance(writers.ask("critic/0", 5), messages.SaveGranted)


@pytest.mark.parametrize(
    ("participant", "name", "expected"),
    [("actor/0", "model", "expected one of actor"), ("buffer/0", "buffer", "nothing of this role")],
)
def test_what_nobody_declared_is_refused(participant: str, name: str, expected: str) -> None:
    writers = Writers(*ALL, "buffer/0")
    answer = writers.ask(participant, 10, name)
    assert not answer.is_late
    assert expected in answer.message


def test_a_gate_that_nobody_can_write_fails_each_step() -> None:
    writers = Writers("actor/0")
    answer = writers.ask("actor/0")
    assert "nobody was admitted to write critic" in answer.message
    assert "nobody was admitted to write critic" in writers.outcome(writers.want()).message


def test_a_life_that_was_admitted_meanwhile_is_late() -> None:
    writers, call = opened()
    for one in ("actor/0", "actor/1"):
        writers.write(one, call)
    for one in ("actor/0", "actor/1"):
        writers.prepare(one, call)
    writers.admit("actor/0")
    assert "before this participant was admitted" in writers.ask("actor/0").message
    writers.want()
    writers.finish("critic/0", call)
    assert writers.published() == [10]


def test_a_failed_writer_after_all_have_prepared_does_no_harm() -> None:
    writers, call = opened()
    writers.finish_all(call)
    writers.hear("actor/0", messages.Failed(call, 10, "write", messages.Failure("corrupt", "x")))
    writers.want()
    assert writers.published() == [10]


def test_gates_are_parsed() -> None:
    assert as_gates(("actor", "actor/model", "a/b/c")) == (
        Gate("actor", "actor"),
        Gate("actor", "model"),
        Gate("a/b", "c"),
    )
    assert list(map(str, as_gates(("actor", "actor/model")))) == ["actor", "actor/model"]


@pytest.mark.parametrize("wrong", ["actor", ("a/model", "b/model"), (3,), ("a b",), ("",)])
def test_wrong_gates_are_refused(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(errors.InvalidInput):
        as_gates(wrong)
