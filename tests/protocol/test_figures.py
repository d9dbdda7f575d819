"""What people are told of a call: bytes, times and who is late, on a fake clock."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.steps._kit import DEADLINES, attempt_id, captured, part_report

from stepseal.protocol import _actions as actions
from stepseal.protocol import _messages as messages
from stepseal.protocol import _stragglers
from stepseal.protocol._coordinator import Coordinator
from stepseal.protocol._figures import Figures, seconds_text
from stepseal.protocol._stragglers import LATE, Stragglers
from stepseal.protocol._summing_up import views_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO = ("trainer/0", "trainer/1")
GIB = 1 << 30


def told(size_bytes: int, called_s: float, blocked_s: float | None = None) -> messages.Progressed:
    return messages.Progressed(1, size_bytes, 3 * GIB, called_s, blocked_s)


class Job:
    """Two ranks that save step 10, and what the coordinator says of it."""

    def __init__(self) -> None:
        attempts = (attempt_id(number) for number in range(1, 9))
        self.coordinator = Coordinator(TWO, DEADLINES, lambda: next(attempts))
        for one in TWO:
            self.say(one, messages.Hello(one, "", ""), 0.0)
        self.stragglers = Stragglers()

    def say(self, who: str, message: messages.FromParticipant, now: float) -> list[actions.Action]:
        return self.coordinator.on_message(who, message, now)

    def captured(self, now: float) -> None:
        for one in TWO:
            self.say(one, captured(step=10), now)

    def staged(self, now: float) -> None:
        self.coordinator.on_driver(actions.Staged(1, "staging", "nonce"), now)

    def prepared(self, who: str, now: float) -> list[actions.Action]:
        return self.say(who, messages.Prepared(1, attempt_id(1), part_report(who)), now)

    def late(self, now: float) -> list[str]:
        calls, waiting = self.coordinator.seen()
        found = self.stragglers.look(calls, waiting, now)
        return [one.text for one in found if isinstance(one, actions.Warn)]


def committed(job: Job, now: float) -> tuple[messages.Committed, str]:
    todo = job.coordinator.on_driver(actions.Published(1, "a" * 64), now)
    sent = {a.to: a.message for a in todo if isinstance(a, actions.Send)}
    assert sent.keys() == set(TWO)
    (message,) = {id(m): m for m in sent.values()}.values()
    assert isinstance(message, messages.Committed)
    (text,) = [a.text for a in todo if isinstance(a, actions.Inform)]
    return message, text


def test_a_commit_tells_bytes_the_longest_block_and_the_time_since_the_first_call() -> None:
    job = Job()
    job.captured(100.0)
    job.say(TWO[0], told(0, 0.5), 100.0)  # it was called at 99.5
    job.say(TWO[1], told(0, 0.1), 100.0)
    job.staged(100.0)
    job.say(TWO[0], told(3 * GIB, 1.5, 0.11), 101.0)
    job.say(TWO[1], told(2 * GIB, 1.1, 0.12), 101.0)
    for one in TWO:
        job.prepared(one, 101.0)
    message, text = committed(job, 101.4)
    assert (message.size_bytes, message.blocked_s) == (5 * GIB, 0.12)
    assert message.committed_s == pytest.approx(1.9)
    assert text == "step 10: 5.0 GiB from 2 ranks, blocked 0.12 s, committed after 1.9 s"


def test_who_is_still_blocked_at_the_commit_was_blocked_by_all_of_it() -> None:
    job = Job()
    job.captured(0.0)
    job.staged(0.0)
    job.say(TWO[0], told(GIB, 1.0, None), 1.0)
    for one in TWO:
        job.prepared(one, 1.0)
    message, text = committed(job, 75.0)
    assert (message.blocked_s, message.committed_s) == (75.0, 75.0)
    assert text == "step 10: 1.0 GiB from 2 ranks, blocked 75 s, committed after 75 s"


def test_a_job_that_tells_nothing_commits_all_the_same() -> None:
    job = Job()
    job.captured(0.0)
    job.staged(0.0)
    for one in TWO:
        job.prepared(one, 1.0)
    message, text = committed(job, 2.0)
    assert (message.size_bytes, message.blocked_s, message.committed_s) == (None, None, None)
    assert text == "step 10: from 2 ranks, committed after 2.0 s"


def test_what_is_told_of_a_call_that_is_over_or_unknown_changes_nothing() -> None:
    job = Job()
    assert job.say(TWO[0], told(GIB, 1.0), 0.0) == []
    job.captured(0.0)
    job.say(TWO[0], messages.Failed(1, 10, "write", messages.Failure("corrupt", "x")), 0.0)
    assert job.say(TWO[1], told(GIB, 1.0), 0.0) == []
    assert job.coordinator.seen()[0] == []


def test_an_overtaken_message_changes_nothing() -> None:
    figures = Figures(0.0)
    figures.progressed("trainer/0", told(2 * GIB, 2.0), 2.0)
    figures.progressed("trainer/0", told(GIB, 1.0), 2.0)
    figures.progressed("trainer/1", told(GIB, 1.0), 2.0)
    assert (figures.size_bytes, figures.of_bytes) == (3 * GIB, 6 * GIB)


def test_views_tell_how_far_all_are() -> None:
    job = Job()
    job.captured(1.0)
    job.staged(1.0)
    job.say(TWO[0], told(GIB, 0.5), 1.5)
    (view,) = views_of(job.coordinator.seen()[0])
    assert (view.what, view.phase, view.who) == ("save of step 10", "write", "2 ranks")
    assert (view.size_bytes, view.of_bytes, view.called_at_s) == (GIB, 3 * GIB, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.004, "0.00 s"), (0.123, "0.12 s"), (1.94, "1.9 s"), (75.4, "75 s")]
)
def test_durations_have_the_digits_that_mean_something(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_a_rank_that_does_not_capture_is_named_once_after_a_part_of_the_limit() -> None:
    job = Job()
    job.say(TWO[0], captured(step=10), 0.0)
    late_s = LATE * DEADLINES.capture_s
    assert job.late(0.0) == []
    assert job.stragglers.next_s == late_s
    assert job.late(late_s - 0.01) == []
    left = f"{DEADLINES.capture_s - late_s:.0f} s"
    assert job.late(late_s) == [
        f"save of step 10, phase capture: waiting for trainer/1 for {late_s:.1f} s; deadline in "
        f"{left}"
    ]
    assert job.late(late_s + 1) == []
    assert job.stragglers.next_s == float("inf")


def test_each_phase_has_a_warning_of_its_own() -> None:
    job = Job()
    assert job.late(0.0) == []
    job.say(TWO[0], captured(step=10), 0.0)
    job.late(0.0)
    assert len(job.late(10.0)) == 1
    job.say(TWO[1], captured(step=10), 10.0)
    assert job.late(10.0) == []
    (own,) = job.late(10.0 + LATE * DEADLINES.commit_s)
    assert "phase staging: waiting for the coordinator's storage for" in own
    job.staged(20.0)
    assert job.late(20.0) == []
    job.prepared(TWO[1], 21.0)
    (text,) = job.late(20.0 + LATE * DEADLINES.write_s)
    assert "phase write: waiting for trainer/0 for 25 s; deadline in 75 s" in text
    job.prepared(TWO[0], 50.0)
    assert job.late(50.0) == []
    job.coordinator.on_driver(actions.Published(1, "a" * 64), 51.0)
    assert job.late(1000.0) == []
    assert job.stragglers.next_s == float("inf")


def test_a_restore_names_who_is_late() -> None:
    job = Job()
    job.say(TWO[1], messages.RestoreCalled(1, None, False, {}), 0.0)
    job.late(0.0)
    (text,) = job.late(LATE * DEADLINES.connect_s)
    assert text.startswith("restore, phase join: waiting for trainer/0 for")


def test_time_in_which_the_coordinator_slept_counts_for_nobody() -> None:
    job = Job()
    job.say(TWO[0], captured(step=10), 0.0)
    assert job.late(0.0) == []
    for found in job.coordinator.seen()[0]:
        found.postpone(3600.0)
    assert job.late(3600.0) == []
    (text,) = job.late(3600.0 + LATE * DEADLINES.capture_s)
    assert "for 5.0 s; deadline in 15 s" in text


def _at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stragglers, "LATE", 1.0)


def _everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    from stepseal.protocol._save_round import SaveRound

    monkeypatch.setattr(SaveRound, "awaited", lambda self: self.participants)


def _again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Stragglers.look

    def look(self: Stragglers, *arguments: object) -> list[actions.Action]:
        self._said.clear()
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Stragglers, "look", look)


@pytest.mark.parametrize("naive", [_at_the_deadline, _everybody, _again_and_again])
def test_naive_rules_are_caught(naive: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(naive)
    naive(monkeypatch)
    with pytest.raises(AssertionError):
        test_a_rank_that_does_not_capture_is_named_once_after_a_part_of_the_limit()


@pytest.fixture(autouse=True)
def _no_time() -> Iterator[None]:
    """Nothing here may look at a real clock."""
    with mock.patch("time.monotonic", side_effect=AssertionError("a real clock")):
        yield
