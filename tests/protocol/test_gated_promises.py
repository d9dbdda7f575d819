"""Promises of gated saves; each is also asked of a naive coordinator, which must break it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol import _gated_naive as naive
from tests.protocol._writers import ALL, opened

from stepseal.protocol import _messages as messages

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


PROMISES = [
    (each_writer_counts_by_name, naive.anonymous),
    (the_first_writer_commits_nothing, naive.first_commits),
    (data_comes_before_the_commit, naive.pointer_before_data),
    (a_step_that_nobody_wants_is_not_committed, naive.unwanted),
    (one_role_waits_for_no_other, naive.one_barrier),
    (nobody_lists_files_while_another_of_the_role_writes, naive.no_barrier),
    (a_late_writer_opens_no_new_attempt, naive.any_ask_opens),
    (steps_are_committed_in_order, naive.as_they_come),
    (an_older_step_that_is_only_digested_goes_first, naive.as_they_come),
]


@pytest.mark.parametrize("promise", [promise for promise, _ in PROMISES])
def test_promise(promise: Callable[[], None]) -> None:
    promise()


@pytest.mark.parametrize(("promise", "variant"), PROMISES)
def test_a_naive_coordinator_breaks_it(
    promise: Callable[[], None], variant: Callable[[], tuple[object, str, object]]
) -> None:
    owner, name, wrong = variant()
    with mock.patch.object(owner, name, wrong), pytest.raises(AssertionError):
        promise()
