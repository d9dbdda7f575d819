"""Participants on threads that talk to a real coordinator through its drivers, without tensors."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, TypeVar

from tests.steps._kit import TWO, FakeIndexer, captured, write_part

from stepseal import errors
from stepseal.protocol import _messages as messages
from stepseal.protocol import resolve_save
from stepseal.protocol._coordinator_driver import CoordinatorDriver
from stepseal.protocol._deadlines import Deadlines
from stepseal.protocol._draft import JobInfo
from stepseal.protocol._failures import failure_of
from stepseal.protocol._participant_driver import ParticipantDriver
from stepseal.protocol._transport import InProcessHub
from stepseal.steps import OwnedSteps, PosixSteps
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from stepseal.protocol._transport import Hub, Link
    from stepseal.storage import Storage

__all__ = ["PATIENT", "QUICK", "Inbox", "Job", "together"]

T = TypeVar("T")

PATIENT = Deadlines(
    connect_s=120, capture_s=30, write_s=30, commit_s=30, check_s=30, apply_s=30, close_s=30
)
"""For tests in which nothing may expire, on a busy machine either."""
QUICK = Deadlines(
    connect_s=30,
    capture_s=0.05,
    write_s=0.05,
    commit_s=0.05,
    check_s=0.05,
    apply_s=0.05,
    close_s=0.05,
    heartbeat_s=0.02,
    lost_s=0.06,
)
"""For tests in which something must expire."""


class Inbox:
    """Takes what a link or hub delivers; tests wait for it instead of sleeping."""

    def __init__(self) -> None:
        self.taken: queue.SimpleQueue[object] = queue.SimpleQueue()

    def __call__(self, *delivered: object) -> None:
        """Take what is delivered; the life of a sender is left out where it is the empty one."""
        delivered = delivered[:-1] if delivered[-1:] == ("",) else delivered
        self.taken.put(delivered[0] if len(delivered) == 1 else delivered)

    def next(self) -> object:
        return self.taken.get(timeout=30)


class Job:
    """A coordinator and its participants in one process."""

    def __init__(
        self,
        storage: Storage | None = None,
        participants: tuple[str, ...] = TWO,
        deadlines: Deadlines = PATIENT,
        hub: Hub | None = None,
        link: Callable[[str], Link] | None = None,
        housekeep: Callable[[str, int, bool], None] | None = None,
    ) -> None:
        self.storage = MemoryStorage() if storage is None else storage
        self.participants = participants
        self.deadlines = deadlines
        self.indexer = FakeIndexer()
        own = InProcessHub()
        self.coordinator = CoordinatorDriver(
            OwnedSteps(self.storage, self.indexer),
            participants,
            hub=own if hub is None else hub,
            deadlines=deadlines,
            job=JobInfo(),
            housekeep=housekeep,
        )
        lines = own.link if link is None else link
        self.drivers = {p: ParticipantDriver(p, lines(p), deadlines) for p in participants}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for driver in self.drivers.values():
            driver.close()
        self.coordinator.close()

    def save(self, participant: str, step: int, *, forget: bool = True) -> messages.Committed:
        """Save as one participant does, from capture to outcome."""
        driver = self.drivers[participant]
        call = driver.new_call()
        driver.send_captured(captured(call, step))
        write = driver.wait_write(call)
        if write is not None:
            try:
                part = write_part(self.storage, write.staging, participant)
                driver.send_prepared(call, write.attempt, part)
            except errors.StorageUnavailable as error:  # staging of a save that was aborted
                driver.send_failed(call, step, "write", error)
        return self.outcome(participant, call, step, forget=forget)

    def outcome(
        self, participant: str, call: int, step: int, *, forget: bool = True
    ) -> messages.Committed:
        state = self.drivers[participant].wait_outcome(call, None)
        assert state is not None
        try:
            return resolve_save(state, step, PosixSteps(self.storage))
        finally:
            if forget:
                self.drivers[participant].forget(call)

    def restore(
        self,
        participant: str,
        step: int | None = None,
        fresh: bool = False,
        vote: Callable[[messages.Candidate | messages.Apply], errors.CheckpointError | None] = (
            lambda order: None
        ),
    ) -> messages.Restored | messages.Fresh | messages.RestoreFailed:
        """Restore as one participant does; `vote` returns an error to reject an order."""
        driver = self.drivers[participant]
        call = driver.new_call()
        driver.call_restore(messages.RestoreCalled(call, step, fresh, {}))
        while True:
            order = driver.wait_order(call, 60)
            if not isinstance(order, (messages.Candidate, messages.Apply)):
                driver.forget(call)
                return order
            error = vote(order)
            touched = isinstance(order, messages.Apply)
            if error is not None:
                why = failure_of(error)
                driver.vote(messages.Rejected(call, order.round, touched, why))
            elif touched:
                driver.vote(messages.Applied(call, order.round))
            else:
                driver.vote(messages.Checked(call, order.round))


def together(names: tuple[str, ...], work: Callable[[str], T]) -> dict[str, T | Exception]:
    """Run `work(name)` on a thread for each; return what each returned or raised."""
    results: dict[str, T | Exception] = {}

    def run(name: str) -> None:
        try:
            results[name] = work(name)
        except Exception as error:  # handed to the test, which looks at it
            results[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results
