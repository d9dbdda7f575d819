"""Promises of gated saves; each is also asked of a naive coordinator, which must break it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol._writers import ALL, opened

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._gated_round import GatedRound
from stepseal.protocol._gates import Gates
from stepseal.protocol._save_round import SaveRound

if TYPE_CHECKING:
    from collections.abc import Callable


def each_writer_counts_by_name() -> None:
    """C11: one writer that reports twice is not two writers."""
    writers, call = opened()
    writers.want()
    for one in ("actor/0", "actor/1"):
        writers.write(one, call)
    for one in ("actor/0", "actor/1", "actor/0"):
        writers.prepare(one, call)
    assert writers.published() == []
    writers.finish("critic/0", call)
    assert writers.published() == [10]


def the_first_writer_commits_nothing() -> None:
    writers, call = opened()
    writers.want()
    for one in ("actor/0", "actor/1"):
        writers.write(one, call)
    writers.prepare("actor/0", call)
    assert writers.published() == []


def data_comes_before_the_commit() -> None:
    """All functions have returned, but nothing is synced yet."""
    writers, call = opened()
    writers.want()
    for one in ALL:
        writers.write(one, call)
    assert writers.published() == []


def a_step_that_nobody_wants_is_not_committed() -> None:
    """C10: the training step raised after its writers were done."""
    writers, call = opened()
    writers.finish_all(call)
    assert writers.published() == []
    writers.take(writers.coordinator.on_time(writers.coordinator.next_deadline()))
    assert "nobody called save(10)" in writers.aborted(call).message


def one_role_waits_for_no_other() -> None:
    """The actors are durable although the critic has not even asked."""
    writers, call = opened()
    for one in ("actor/0", "actor/1"):
        writers.write(one, call)
    assert writers.inventories() == ["actor/0", "actor/1"]


def nobody_lists_files_while_another_of_the_role_writes() -> None:
    writers, call = opened()
    writers.write("actor/0", call)
    writers.write("critic/0", call)
    assert writers.inventories() == ["critic/0"]


def a_late_writer_opens_no_new_attempt() -> None:
    """The step has failed without the critic: its save is not the begin of another try."""
    writers, call = opened()
    cause = messages.Failure("participant_failed", "actor: its save function raised OSError")
    writers.hear("actor/0", messages.Failed(call, 10, "engines", cause))
    answer = writers.ask("critic/0")
    assert isinstance(answer, messages.SaveRefused)
    assert answer.is_late
    assert "its save function raised OSError" in answer.message


def steps_are_committed_in_order() -> None:
    """S5: a newer step that is complete overtakes an older one, which is not committed later."""
    writers, first = opened(10)
    second: int = writers.ask("actor/0", 20).call
    writers.stage(second)
    writers.want(10)
    writers.want(20)
    writers.finish_all(second)
    writers.publish(second)
    writers.finish_all(first)
    assert writers.published() == [20]


def an_older_step_that_is_only_digested_goes_first() -> None:
    writers, first = opened(10)
    second: int = writers.ask("actor/0", 20).call
    writers.stage(second)
    writers.want(10)
    writers.want(20)
    for one in ALL:
        writers.write(one, first)
    writers.finish_all(second)
    assert writers.published() == []
    for one in ALL:
        writers.prepare(one, first)
    assert writers.published() == [10, 20]


def _anonymous() -> tuple[object, str, object]:
    real = SaveRound.on_prepared

    def on_prepared(
        self: SaveRound, _who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        self.phase = "write"
        missing = [p for p in self.participants if p not in self._prepared]
        return real(self, missing[0], message, now)

    return SaveRound, "on_prepared", on_prepared


def _first_commits() -> tuple[object, str, object]:
    def on_prepared(
        self: GatedRound, who: str, message: messages.Prepared, now: float
    ) -> list[actions.Action]:
        self._prepared = dict.fromkeys(self.participants, message.part)
        return self._compare(now, required=True)

    return SaveRound, "on_prepared", on_prepared


def _pointer_before_data() -> tuple[object, str, object]:
    real = SaveRound.on_returned

    def on_returned(
        self: GatedRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        todo = real(self, who, message, now)
        return todo + (SaveRound._publish(self, now) if self.phase == "write" else [])

    return SaveRound, "on_returned", on_returned


def _unwanted() -> tuple[object, str, object]:
    return GatedRound, "is_ready", property(lambda self: self.phase == "ready")


def _one_barrier() -> tuple[object, str, object]:
    def on_returned(
        self: SaveRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        self._returned.add(who)
        if not self._returned.issuperset(self.participants):
            return []
        order = messages.TakeInventory(self.call, self.attempt)
        return [actions.Send(one, order) for one in self.participants]

    return SaveRound, "on_returned", on_returned


def _no_barrier() -> tuple[object, str, object]:
    def on_returned(
        self: SaveRound, who: str, message: messages.EnginesReturned, now: float
    ) -> list[actions.Action]:
        return [actions.Send(who, messages.TakeInventory(self.call, self.attempt))]

    return SaveRound, "on_returned", on_returned


def _any_ask_opens() -> tuple[object, str, object]:
    return Gates, "refusal", lambda *_: None


def _as_they_come() -> tuple[object, str, object]:
    def publish(self: Gates, now: float) -> list[actions.Action]:
        return [todo for one in self.open.values() if one.is_ready for todo in one.publish(now)]

    return Gates, "publish", publish


PROMISES = [
    (each_writer_counts_by_name, _anonymous),
    (the_first_writer_commits_nothing, _first_commits),
    (data_comes_before_the_commit, _pointer_before_data),
    (a_step_that_nobody_wants_is_not_committed, _unwanted),
    (one_role_waits_for_no_other, _one_barrier),
    (nobody_lists_files_while_another_of_the_role_writes, _no_barrier),
    (a_late_writer_opens_no_new_attempt, _any_ask_opens),
    (steps_are_committed_in_order, _as_they_come),
    (an_older_step_that_is_only_digested_goes_first, _as_they_come),
]


@pytest.mark.parametrize("promise", [promise for promise, _ in PROMISES])
def test_promise(promise: Callable[[], None]) -> None:
    promise()


@pytest.mark.parametrize(("promise", "naive"), PROMISES)
def test_a_naive_coordinator_breaks_it(
    promise: Callable[[], None], naive: Callable[[], tuple[object, str, object]]
) -> None:
    owner, name, wrong = naive()
    with mock.patch.object(owner, name, wrong), pytest.raises(AssertionError):
        promise()
