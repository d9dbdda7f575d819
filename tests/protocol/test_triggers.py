"""What comes due besides step numbers reaches all ranks at one safe point."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol._conversations import Job
from tests.steps._kit import DEADLINES, TWO, attempt_id, captured, sent

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._safe_points import OwnPoints
from stepseal.protocol._triggers import Due, Fired, Timing, Triggers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIGTERM = Fired("SIGTERM", stop=True, grace_s=30.0)
ASK = [(name, messages.AskSafePoint(1)) for name in TWO]
GONE = messages.Failure("participant_failed", "gone")


def new(timing: Timing | None = None) -> Coordinator:
    found = Coordinator(TWO, DEADLINES, lambda: attempt_id(1), timing=timing)
    for name in TWO:
        found.on_message(name, messages.Hello(name, "", ""), 0.0)
    return found


def points(todo: Sequence[actions.Action]) -> list[tuple[str, messages.FromCoordinator]]:
    """Return what asks for safe points."""
    kinds = (messages.AskSafePoint, messages.Target, messages.Lapsed)
    sends = [action for action in todo if isinstance(action, actions.Send)]
    return [(one.to, one.message) for one in sends if isinstance(one.message, kinds)]


def answer(coordinator: Coordinator, name: str, point: int, request: int = 1) -> list[object]:
    todo = coordinator.on_message(name, messages.SafePoint(request, point), 1.0)
    return list(points(todo))


def asked(coordinator: Coordinator, due: Due, request: int = 1) -> None:
    """Let both answer, and check that both are told the same."""
    assert answer(coordinator, TWO[0], 3, request) == []
    told = answer(coordinator, TWO[1], 4, request)
    assert told == [(name, messages.Target(request, 5, due)) for name in TWO]


def meet(coordinator: Coordinator, request: int = 1) -> list[object]:
    answer(coordinator, TWO[0], 5, request)
    return answer(coordinator, TWO[1], 5, request)


def test_a_signal_at_one_rank_stops_all_at_one_safe_point() -> None:
    coordinator = new()
    todo = coordinator.on_message(TWO[1], SIGTERM, 1.0)
    assert points(todo) == ASK
    asked(coordinator, Due("SIGTERM at trainer/1", "SIGTERM at trainer/1"))
    assert meet(coordinator) == [], "it is done with"


def test_triggers_that_fire_before_the_target_are_told_together() -> None:
    coordinator = new()
    coordinator.on_message(TWO[1], Fired("SIGUSR1", stop=False), 1.0)
    todo = coordinator.on_message(TWO[0], SIGTERM, 1.0)
    assert points(todo) == [(TWO[0], messages.Lapsed(0))], "one request at a time; it was asked"
    asked(coordinator, Due("SIGUSR1 at trainer/1", "SIGTERM at trainer/0"))
    assert meet(coordinator) == []


def test_a_signal_that_all_ranks_get_saves_once() -> None:
    coordinator = new()
    coordinator.on_message(TWO[1], SIGTERM, 1.0)
    asked(coordinator, Due("SIGTERM at trainer/1", "SIGTERM at trainer/1"))
    todo = coordinator.on_message(TWO[0], SIGTERM, 1.0)
    assert points(todo) == [(TWO[0], messages.Lapsed(0))], "it goes on to the target"
    assert meet(coordinator) == []


def test_a_trigger_that_fires_at_the_target_is_asked_for_next() -> None:
    coordinator = new()
    coordinator.on_message(TWO[1], SIGTERM, 1.0)
    asked(coordinator, Due("SIGTERM at trainer/1", "SIGTERM at trainer/1"))
    answer(coordinator, TWO[0], 5)
    assert points(coordinator.on_message(TWO[0], SIGTERM, 1.0)) == []
    todo = answer(coordinator, TWO[1], 5)
    assert todo == [(name, messages.AskSafePoint(2)) for name in TWO]


def test_a_trigger_that_asks_for_more_than_the_target_is_asked_for_next() -> None:
    coordinator = new()
    coordinator.on_message(TWO[1], Fired("SIGUSR1", stop=False), 1.0)
    asked(coordinator, Due("SIGUSR1 at trainer/1"))
    assert points(coordinator.on_message(TWO[0], SIGTERM, 1.0)) == []
    assert meet(coordinator) == [(name, messages.AskSafePoint(2)) for name in TWO]
    asked(coordinator, Due("SIGTERM at trainer/0", "SIGTERM at trainer/0"), request=2)


def test_ranks_are_asked_before_they_hear_of_a_failure() -> None:
    """Whoever knows of the failure waits at its next safe point, so nobody raises it earlier."""
    coordinator = new()
    coordinator.on_message(TWO[0], captured(1), 0.0)
    failed = messages.Failed(1, 10, "capture", messages.Failure("x", "no memory"))
    todo = [action.message for action in coordinator.on_message(TWO[1], failed, 0.0)
            if isinstance(action, actions.Send) and action.to == TWO[0]]  # fmt: skip
    assert [type(message).__name__ for message in todo] == ["AskSafePoint", "Aborted"]
    asked(coordinator, Due(failed=[1]))


def test_a_commit_asks_for_nothing() -> None:
    coordinator = new()
    with mock.patch.object(Triggers, "take", side_effect=AssertionError):
        coordinator._triggers.on_saving(1, 0.0, is_step=True)
        coordinator._triggers.on_ended(1, 1.0, committed=True)
        assert points(coordinator.on_time(2.0)) == []


@pytest.mark.parametrize("when", ["before the target", "after the target", "unasked"])
def test_a_lost_rank_is_not_waited_for(when: str) -> None:
    coordinator = new()
    due = Due("SIGTERM at trainer/0", "SIGTERM at trainer/0")
    if when == "unasked":
        coordinator.on_lost(TWO[1], GONE)
        todo = coordinator.on_message(TWO[0], SIGTERM, 1.0)
        assert points(todo) == ASK[:1]
        assert answer(coordinator, TWO[0], 3) == [(TWO[0], messages.Target(1, 4, due))]
        return
    coordinator.on_message(TWO[0], SIGTERM, 1.0)
    if when == "before the target":
        answer(coordinator, TWO[0], 3)
        todo = coordinator.on_lost(TWO[1], GONE)
        assert points(todo) == [(TWO[0], messages.Target(1, 4, due))]
        answer(coordinator, TWO[0], 4)
    else:
        asked(coordinator, due)
        assert points(coordinator.on_lost(TWO[1], GONE)) == [], "the target stands for the other"
        answer(coordinator, TWO[0], 5)
    todo = coordinator.on_message(TWO[0], Fired("SIGUSR1", stop=False), 1.0)
    assert points(todo) == [(TWO[0], messages.AskSafePoint(2))]


def test_a_rank_that_closes_lets_the_others_go_on() -> None:
    """They make the same calls, so they close next; nobody may wait for a target that never is."""
    coordinator = new()
    coordinator.on_message(TWO[0], SIGTERM, 1.0)
    answer(coordinator, TWO[0], 3)
    todo = coordinator.on_message(TWO[1], messages.Goodbye(), 1.0)
    assert (TWO[0], messages.Lapsed(1)) in points(todo)
    assert answer(coordinator, TWO[0], 3) == [], "it is due no more"


def test_a_trigger_that_fires_while_another_rank_has_closed_holds_nobody() -> None:
    coordinator = new()
    coordinator.on_message(TWO[1], messages.Goodbye(), 1.0)
    assert points(coordinator.on_message(TWO[0], SIGTERM, 1.0)) == [(TWO[0], messages.Lapsed(0))]


def test_nobody_is_asked_before_all_have_connected() -> None:
    """One that died before holds nobody: only a save that awaits it notices."""
    coordinator = Coordinator(TWO, DEADLINES, lambda: attempt_id(1))
    coordinator.on_message(TWO[0], messages.Hello(TWO[0], "", ""), 0.0)
    todo = coordinator.on_message(TWO[0], SIGTERM, 1.0)
    assert points(todo) == [(TWO[0], messages.Lapsed(0))]
    todo = coordinator.on_message(TWO[1], messages.Hello(TWO[1], "", ""), 2.0)
    assert points(todo) == ASK


def test_minutes_ask_by_themselves() -> None:
    coordinator = new(Timing(every_s=600.0))
    assert coordinator.on_time(100.0) == []
    assert coordinator.next_deadline() == 700.0
    assert points(coordinator.on_time(700.0)) == ASK
    asked(coordinator, Due("10 minutes without a save"))
    assert meet(coordinator) == [], "not due again before a save has begun"


@pytest.mark.parametrize("is_step", [True, False])
def test_minutes_count_from_the_last_save_that_began(*, is_step: bool) -> None:
    found = Triggers(Timing(every_s=600.0))
    found.on_time(100.0)
    found.on_saving(1, 500.0, is_step=is_step)
    found.on_time(700.0)
    assert found.is_due is not is_step, "a publication is no save"
    found.on_time(1100.0)
    assert found.is_due


def test_before_leaves_time_for_two_of_the_longest_save() -> None:
    timing = Timing(stop_at=1000.0, margin_s=100.0)
    found = Triggers(timing)
    assert found.deadline(0.0) == 900.0
    found.on_saving(1, 0.0, is_step=True)
    found.on_ended(1, 200.0, committed=True)
    assert found.deadline(200.0) == 600.0
    found.on_time(599.0)
    assert not found.is_due
    found.on_time(600.0)
    due = found.take()
    assert due.save == due.stop == "the time limit of the job, 400 s from now"
    found.on_time(601.0)
    assert not found.is_due, "once"


@pytest.mark.parametrize("what", ["grace", "time limit"])
def test_a_save_that_is_not_ready_in_time_is_given_up(what: str) -> None:
    coordinator = new(None if what == "grace" else Timing(stop_at=11.0, margin_s=1.0))
    coordinator.on_message(TWO[0], captured(1), 1.0)
    if what == "grace":
        coordinator.on_message(TWO[1], Fired("SIGTERM", stop=True, grace_s=10.0), 2.0)
    assert coordinator.next_deadline() in (11.0, 10.0), "90 % of 10 s after the signal"
    coordinator.on_time(10.9)
    assert coordinator.busy
    todo = coordinator.on_time(11.0)
    (message, *_) = [told for _, told in sent(todo) if isinstance(told, messages.Aborted)]
    assert "trainer/1" in message.failures
    assert what in str(message.failures)
    coordinator.on_message(TWO[0], captured(2), 12.0)
    coordinator.on_time(13.0)
    assert coordinator.busy, "whoever saves afterwards was not ended"


def test_a_grace_that_ended_nobody_does_not_outlast_a_later_one() -> None:
    found = Triggers(Timing())
    found.on_fired(TWO[0], Fired("SIGUSR1", stop=False, grace_s=10.0), 0.0)
    found.on_saving(1, 100.0, is_step=True)
    assert found.over(1, 101.0) is None
    found.on_fired(TWO[0], Fired("SIGTERM", stop=True, grace_s=10.0), 102.0)
    assert found.over(1, 110.9) is None
    over = found.over(1, 111.0)
    assert over is not None
    assert "SIGTERM" in over.message


def test_a_rank_where_a_trigger_fired_passes_no_safe_point_before_all_are_asked() -> None:
    own = OwnPoints()
    own.held = True
    assert not own.try_pass()
    own.on_message(messages.AskSafePoint(1))
    assert not own.try_pass()
    own.on_message(messages.Target(1, 1, Due("SIGTERM", "SIGTERM")))
    assert own.try_pass()
    assert own.arrived() == messages.SafePoint(1, 1)
    assert own.take_due() == Due("SIGTERM", "SIGTERM")
    assert own.try_pass(), "the request is met"


def test_a_rank_goes_on_where_nobody_will_ask() -> None:
    own = OwnPoints()
    own.held = True
    own.on_message(messages.Lapsed(0))
    assert own.try_pass()


def _steps(step: Callable[[], Due | None], until: threading.Event, stops: list[object]) -> None:
    number = 0
    while not until.is_set():
        number += 1
        if (due := step()) is not None:
            stops.append((number, due.save, due.stop, due.failed))


@pytest.mark.slow
def test_threads_of_a_job_hear_the_same_at_the_same_safe_point() -> None:
    """Ranks that step as fast as they can, each on its own thread, are asked 50 times."""
    with Job() as job:
        until = threading.Event()
        stops: dict[str, list[object]] = {name: [] for name in TWO}
        threads = [
            threading.Thread(target=_steps, args=(job.drivers[name].take_due, until, stops[name]))
            for name in TWO
        ]
        for thread in threads:
            thread.start()
        try:
            for number in range(50):
                job.drivers[TWO[number % 2]].fire(Fired(f"reason {number}", stop=False))
                for _ in range(6000):
                    if all(len(found) > number for found in stops.values()):
                        break
                    until.wait(0.01)
        finally:
            until.set()
            for thread in threads:
                thread.join(60)
    (first, second) = stops.values()
    assert first == second
    assert len(first) == 50
