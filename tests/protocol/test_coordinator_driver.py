from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from tests.protocol._conversations import QUICK, Job, together
from tests.steps._kit import (
    THREE,
    TWO,
    captured,
    damage,
    part_report,
    write_part,
)

from stepseal import errors
from stepseal.protocol import Deadlines, Opening, _coordinator_driver
from stepseal.protocol import _messages as messages
from stepseal.steps._catalog import list_steps, read_step
from stepseal.steps._roots import STAGING, TRASH
from stepseal.testing import FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage


def failures_of(results: Mapping[str, object], kind: type[errors.CheckpointError]) -> list[str]:
    assert all(type(result) is kind for result in results.values()), results
    return [str(result) for result in results.values()]


def test_saves_commit_for_all_and_leave_nothing_behind() -> None:
    with Job(participants=THREE) as job:
        for step in (10, 20):
            results = together(THREE, lambda name, step=step: job.save(name, step))  # type: ignore[misc]
            assert len({getattr(r, "manifest_sha256", r) for r in results.values()}) == 1
    assert [entry.state for entry in list_steps(job.storage)] == ["committed", "committed"]
    assert job.storage.list_dir(STAGING) == job.storage.list_dir(TRASH) == ()


@pytest.mark.parametrize("phase", ["capture", "write"])
def test_failure_of_one_reaches_all_and_the_next_save_commits(phase: str) -> None:
    def fail(name: str) -> messages.Committed:
        if name != THREE[1]:
            return job.save(name, 10)
        driver = job.drivers[name]
        call = driver.new_call()
        if phase == "write":
            driver.send_captured(captured(call, 10))
            assert driver.wait_write(call) is not None
        driver.send_failed(call, 10, phase, OSError(28, "No space left"))
        return job.outcome(name, call, 10)

    with Job(participants=THREE) as job:
        for text in failures_of(together(THREE, fail), errors.ParticipantFailed):
            assert "replay/0" not in text
            assert "trainer/1: [Errno 28] No space left" in text
        together(THREE, lambda name: job.save(name, 10))
    assert [entry.step for entry in list_steps(job.storage)] == [10]
    assert job.storage.list_dir(STAGING) == ()


def test_disagreement_reaches_all() -> None:
    with Job() as job:
        steps = dict(zip(TWO, (10, 11), strict=True))
        results = together(TWO, lambda name: job.save(name, steps[name]))
        failures_of(results, errors.ParticipantFailed)


def test_absent_participant_is_named_at_the_deadline() -> None:
    with Job(deadlines=Deadlines(capture_s=0.05)) as job:
        results = together(TWO[:1], lambda name: job.save(name, 10))
        (text,) = failures_of(results, errors.CommitTimeout)
        assert "trainer/1: did not answer within 0.05 s in phase capture" in text


def test_a_call_that_nobody_waits_for_any_more_ends_no_later_one() -> None:
    with Job(participants=(), deadlines=Deadlines(capture_s=0.05)) as job:
        job.coordinator.admit("trainer/0", "a life")
        first = job.coordinator.open(Opening("save", 10))
        assert first.cancel()  # as the end of an event loop does
        for step in (11, 12):
            told = job.coordinator.open(Opening("save", step)).result(timeout=30)
            assert isinstance(told.outcome, messages.Aborted)
        job.coordinator.release("trainer/0")


def test_slow_writer_is_named_at_the_deadline() -> None:
    deadlines = Deadlines(write_s=0.05)

    def work(name: str) -> messages.Committed:
        if name == TWO[0]:
            return job.save(name, 10)
        driver = job.drivers[name]
        call = driver.new_call()
        driver.send_captured(captured(call, 10))
        write = driver.wait_write(call)
        assert write is not None
        state = driver.wait_outcome(call, None)  # prepares only after everybody gave up
        assert state is not None
        assert driver.ended(call)
        assert not driver.send_prepared(call, write.attempt, part_report(name))
        return job.outcome(name, call, 10)

    with Job(deadlines=deadlines) as job:
        for text in failures_of(together(TWO, work), errors.CommitTimeout):
            assert "trainer/1: did not answer within 0.05 s in phase write" in text
    assert list_steps(job.storage) == ()


def test_part_that_lies_is_not_committed() -> None:
    def lie(name: str) -> messages.Committed:
        driver = job.drivers[name]
        call = driver.new_call()
        driver.send_captured(captured(call, 10))
        write = driver.wait_write(call)
        assert write is not None
        part = write_part(job.storage, write.staging, name)
        if name == TWO[1]:
            job.storage.remove_file(f"{write.staging}/{part.path}")
        driver.send_prepared(call, write.attempt, part)
        return job.outcome(name, call, 10)

    with Job() as job:
        for text in failures_of(together(TWO, lie), errors.Corrupt):
            assert "parts/trainer/1.json" in text
    assert list_steps(job.storage) == ()
    assert job.storage.list_dir(STAGING) == ()


def test_restore_of_an_empty_root_is_fresh_and_then_of_the_newest_step() -> None:
    storage = MemoryStorage()
    with Job(storage) as job:
        assert set(together(TWO, job.restore).values()) == {messages.Fresh(1, 1)}
        together(TWO, lambda name: job.save(name, 10))
    with Job(storage) as job:
        answers = together(TWO, job.restore)
        assert list(answers.values()) == [messages.Restored(1, 10, 2, {})] * 2
        together(TWO, lambda name: job.save(name, 20))
    manifest = read_step(storage, 20, None).manifest
    assert manifest is not None
    assert manifest.parent == read_step(storage, 10, None).ref()


def with_steps(*steps: int) -> MemoryStorage:
    storage = MemoryStorage()
    with Job(storage) as job:
        for step in steps:
            together(TWO, lambda name, step=step: job.save(name, step))  # type: ignore[misc]
    return storage


@pytest.mark.parametrize("order", [messages.Candidate, messages.Apply])
def test_damage_found_by_one_sends_all_to_the_older_step(order: type[object]) -> None:
    with Job(with_steps(10, 20)) as job:
        seen: dict[str, list[int]] = {name: [] for name in TWO}

        def restore(name: str) -> object:
            step = [0]

            def vote(
                asked: messages.Candidate | messages.Apply,
            ) -> errors.CheckpointError | None:
                if isinstance(asked, messages.Candidate):
                    step[0] = asked.step
                    seen[name].append(asked.step)
                bad = step[0] == 20 and name == TWO[1] and isinstance(asked, order)
                return errors.Corrupt("digest differs") if bad else None

            return job.restore(name, vote=vote)

        answers = together(TWO, restore)
        expected = messages.Restored(1, 10, 2, {"step-20": "trainer/1: digest differs"})
        assert list(answers.values()) == [expected] * 2
        assert seen == {name: [20, 10] for name in TWO}


def test_damage_seen_by_the_coordinator_is_passed_over() -> None:
    storage = with_steps(10, 20)
    damage(storage, 20)
    with Job(storage) as job:
        for answer in together(TWO, job.restore).values():
            assert isinstance(answer, messages.Restored)
            assert answer.step == 10
            assert "damaged" in answer.skipped["step-20"]


def test_mismatch_fails_the_restore_on_all() -> None:
    with Job(with_steps(10)) as job:
        bad = errors.StateMismatch("other keys")
        answers = together(TWO, lambda name: job.restore(name, vote=lambda _: bad))
        for answer in answers.values():
            assert isinstance(answer, messages.RestoreFailed)
            assert answer.kind == errors.StateMismatch.kind
            assert not answer.tainted


def test_absent_participant_fails_the_restore() -> None:
    with Job() as job:
        job.coordinator._protocol._deadlines = Deadlines(connect_s=0.05)
        (answer,) = together(TWO[:1], job.restore).values()
        assert isinstance(answer, messages.RestoreFailed)
        assert "trainer/1" in answer.message


def test_save_without_restore_is_refused_on_all() -> None:
    with Job(with_steps(10)) as job:
        failures_of(together(TWO, lambda name: job.save(name, 20)), errors.NotRestored)


class Gate(FaultyStorage):
    """Holds the coordinator's storage work at one rename until the test lets it go on."""

    def __init__(self, inner: Storage, at: str = "step-") -> None:
        super().__init__(inner)
        self.at = at
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def rename(self, source: str, target: str, *, replace: bool = False) -> None:
        if target.startswith(self.at):
            self.reached.set()
            assert self.go_on.wait(30)
        super().rename(source, target, replace=replace)


def test_participants_do_not_wait_for_a_storage_that_hangs() -> None:
    gate = Gate(MemoryStorage())

    def save(name: str) -> messages.Committed:
        if name == "clock":  # lets the deadline of all pass, once the storage hangs
            assert gate.reached.wait(30)
            for driver in job.drivers.values():
                driver._protocol.save(1).deadline = 0.0
        return job.save(name, 10)

    with Job(gate) as job:
        results = together((*TWO, "clock"), save)
        assert type(results.pop("clock")) is KeyError
        failures_of(results, errors.OutcomeUnknown)
        gate.go_on.set()


@pytest.mark.parametrize("quick", [False, True])
def test_a_save_waits_a_little_for_the_room_that_an_aborted_one_took(
    monkeypatch: pytest.MonkeyPatch, quick: bool
) -> None:
    monkeypatch.setattr(_coordinator_driver, "_ROOM_S", 30.0 if quick else 0.01)
    gate = Gate(MemoryStorage(), f"{TRASH}/")

    def fail(name: str) -> messages.Committed:
        driver = job.drivers[name]
        call = driver.new_call()
        driver.send_captured(captured(call, 10))
        assert driver.wait_write(call) is not None
        driver.send_failed(call, 10, "write", OSError(28, "No space left"))
        return job.outcome(name, call, 10)

    with Job(gate) as job:
        failures_of(together(TWO, fail), errors.ParticipantFailed)
        assert gate.reached.wait(30)
        if quick:
            gate.go_on.set()
        committed = together(TWO, lambda name: job.save(name, 20))
        if quick:
            assert gate.list_dir(TRASH) == ()
        gate.go_on.set()
    assert [type(answer) for answer in committed.values()] == [messages.Committed] * 2
    assert gate.list_dir(STAGING) == gate.list_dir(TRASH) == ()


def test_close_waits_for_the_last_goodbye() -> None:
    job = Job()
    closing = threading.Thread(target=job.coordinator.close)
    job.drivers[TWO[0]].close()
    closing.start()
    committed_alone = together(TWO[1:], lambda name: job.save(name, 10))
    failures_of(committed_alone, errors.ParticipantFailed)
    assert closing.is_alive()
    job.drivers[TWO[1]].close()
    closing.join(30)
    assert not closing.is_alive()
    job.coordinator.close()


def test_close_waits_for_housekeeping() -> None:
    gate = Gate(MemoryStorage(), "latest")
    job = Job(gate)
    together(TWO, lambda name: job.save(name, 10))
    for driver in job.drivers.values():
        driver.close()
    assert not job.coordinator._left.wait(0.05)
    gate.go_on.set()
    job.coordinator.close()
    assert job.storage.stat("latest").kind == "file"


def test_commits_during_housekeeping_are_kept_house_for_at_once() -> None:
    runs: list[int] = []
    busy, go_on = threading.Event(), threading.Event()

    def housekeep(_run_id: str, incarnation: int, _committed: bool) -> None:
        runs.append(incarnation)
        busy.set()
        assert go_on.wait(10)

    with Job(housekeep=housekeep) as job:
        together(TWO, lambda name: job.save(name, 10))
        assert busy.wait(10)
        for step in (20, 30):
            together(TWO, lambda name, step=step: job.save(name, step))  # type: ignore[misc]
        while job.coordinator._chores.qsize() < 2:
            threading.Event().wait(0.001)
        go_on.set()
    assert runs == [1, 1]


def test_close_lingers_no_longer_than_its_limit() -> None:
    job = Job(deadlines=QUICK)
    job.coordinator.close()  # nobody said goodbye
    results = together(TWO, lambda name: job.save(name, 10))
    failures_of(results, errors.CoordinatorLost)
    for driver in job.drivers.values():
        driver.close()


def test_close_without_lingering_waits_for_nobody() -> None:
    endless = Deadlines(close_s=1e6)
    job = Job(deadlines=endless)
    job.coordinator.close(linger=False)
    for driver in job.drivers.values():
        driver.close()


def test_defect_of_the_coordinator_releases_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Job() as job:

        def fail(*_: object) -> Sequence[Manifest]:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(job.coordinator._protocol, "on_time", fail)
        failures_of(together(TWO, lambda name: job.save(name, 10)), errors.CoordinatorLost)
    assert "defect" in caplog.text
