"""Actors that stay frozen until all have captured: both orders, and every end of the hold."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.actors._owners import Buffer, Dataset, live
from tests.actors._process import Started, started
from tests.actors._queues import QueueActor
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.protocol import ParticipantDriver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepseal.actors import Coordinator

pytestmark = pytest.mark.slow
ORDER = ("learner", "buffer")


def coordinator(root: Path, *order: str, freeze: tuple[str, ...], **limits: float) -> Coordinator:
    deadlines = dataclasses.replace(PATIENT, **limits)
    return ss.Coordinator(root, order=order, freeze=freeze, deadlines=deadlines)


@contextlib.contextmanager
def actors() -> Iterator[tuple[QueueActor, QueueActor]]:
    """Run a learner, which consumes, and a buffer, which produces."""
    held = QueueActor("learner"), QueueActor("buffer")
    try:
        yield held
    finally:
        for one in held:
            one.end()


def test_nobody_moves_between_the_first_capture_and_the_last(tmp_path: Path) -> None:
    """The learner is told to work while the buffer is still busy: it does so after the buffer."""

    async def life() -> None:
        with actors() as (learner, buffer):
            async with coordinator(tmp_path / "run", *ORDER, freeze=ORDER) as coord:
                await coord.admit(learner, buffer)
                going_on, worked = threading.Event(), threading.Event()
                busy = buffer.call(going_on.wait, 60)
                seen: list[int] = []

                def work() -> None:
                    learner.add()
                    seen.append(buffer.value)
                    worked.set()

                def look() -> None:
                    assert learner.captured.wait(60)
                    later.append(learner.call(work))
                    buffer.add(5)
                    assert not worked.is_set(), "the learner moved although it is frozen"
                    going_on.set()

                later: list[object] = []
                watcher = threading.Thread(target=look)
                watcher.start()
                await coord.save(1)
                watcher.join(60)
                assert worked.wait(60)
                assert busy.result(60)
                assert seen == [5]
        assert ss.open(tmp_path / "run").step(1).manifest.cut == {"learner": 0, "buffer": 5}

    live(life())


async def the_consumer_waits_for_a_frozen_producer(root: Path) -> None:
    """In the wrong order: the learner calls the buffer, which is frozen, before it can capture."""
    with actors() as (learner, buffer):
        order = ("buffer", "learner")
        async with coordinator(root, *order, freeze=("buffer",), capture_s=8.0) as coord:
            await coord.admit(learner, buffer)

            def consume() -> int:
                assert buffer.captured.wait(60)
                taken: int = buffer.call(buffer.add).result(60)
                return taken

            working = learner.call(consume)
            with pytest.raises(errors.CommitTimeout) as found:
                await coord.save(1)
            assert "in which buffer/0 stayed frozen and learner/0 was awaited" in str(found.value)
            assert set(found.value.failures) == {"learner/0"}
            assert working.result(60) == 1, "the end of the call lets the producer go on"
            await coord.save(2)


async def the_producer_is_captured_after_its_frozen_consumer(root: Path) -> None:
    """In the right order the same work ends by itself: the frozen one is not needed."""
    with actors() as (learner, buffer):
        async with coordinator(root, *ORDER, freeze=("learner",)) as coord:
            await coord.admit(learner, buffer)
            working = learner.call(lambda: buffer.call(buffer.add).result(60))
            await coord.save(1)
            assert working.result(60) == 1
            assert ss.open(root).step(1).manifest.cut["buffer"] == 1


async def a_failure_of_another_role_lets_the_frozen_go_on(root: Path, limit_s: float = 60) -> None:
    with actors() as (learner, buffer):
        async with coordinator(root, *ORDER, freeze=("learner",)) as coord:
            await coord.admit(learner, buffer)

            def fail() -> dict[str, int]:
                raise RuntimeError("no state now")

            with (
                mock.patch.object(buffer.participant, "_cut", fail),
                pytest.raises(errors.ParticipantFailed, match="no state now"),
            ):
                await coord.save(1)
            assert learner.call(learner.add).result(limit_s) == 1
            await coord.save(2)


async def the_end_of_the_coordinator_lets_the_frozen_go_on(root: Path) -> None:
    with actors() as (learner, buffer):
        coord = coordinator(root, *ORDER, freeze=("learner",), capture_s=8.0, lost_s=1000)
        await coord.admit(learner, buffer)
        going_on = threading.Event()
        buffer.call(going_on.wait, 60)

        def cut_off() -> None:
            assert learner.captured.wait(60)
            coord._driver._hub.close()

        cutter = threading.Thread(target=cut_off)
        cutter.start()
        with pytest.raises(errors.ParticipantFailed):
            await coord.save(1)
        cutter.join(60)
        assert learner.call(learner.add).result(60) == 1, "it waited for its own deadline"
        going_on.set()
        await coord.close()


ENDS = [
    the_consumer_waits_for_a_frozen_producer,
    the_producer_is_captured_after_its_frozen_consumer,
    a_failure_of_another_role_lets_the_frozen_go_on,
]


@pytest.mark.parametrize("end", [*ENDS, the_end_of_the_coordinator_lets_the_frozen_go_on])
def test_the_hold_ends(end: object, tmp_path: Path) -> None:
    live(end(tmp_path / "run"))  # type: ignore[operator]


def test_a_naive_hold_that_only_a_thaw_ends_is_seen(tmp_path: Path) -> None:
    """It does not end with the call: the frozen actor never works again."""

    def wait_thaw(self: ParticipantDriver, call: int, step: int) -> None:
        del step
        state = self._save(call)
        self._wait(lambda: state.thawed or self._is_lost(), None)

    with (
        mock.patch.object(ParticipantDriver, "wait_thaw", wait_thaw),
        pytest.raises(FutureTimeout),
    ):
        live(a_failure_of_another_role_lets_the_frozen_go_on(tmp_path / "run", 0.5))


def test_what_lives_in_the_controller_is_not_frozen(tmp_path: Path) -> None:
    async def life() -> None:
        buffer, dataset = Buffer(), Dataset()
        order = ("buffer", "dataset")
        async with coordinator(tmp_path / "run", *order, freeze=order) as coord:
            coord.add("dataset", ss.fetched(dataset.state_dict, dataset.load_state_dict))
            await coord.admit(*ss.in_process(buffer.ss))
            with pytest.raises(errors.ParticipantFailed, match="cannot be frozen") as found:
                await coord.save(1)
            assert set(found.value.failures) == {"buffer/0"}
        async with coordinator(tmp_path / "run", *order, freeze=("dataset",)) as coord:
            coord.add("dataset", ss.fetched(dataset.state_dict, dataset.load_state_dict))
            await coord.admit(*ss.in_process(buffer.ss))
            with pytest.raises(errors.ParticipantFailed, match=r"dataset/0: .*cannot be frozen"):
                await coord.save(1)

    live(life())


def test_a_role_without_a_place_in_the_order_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidInput, match="order= names, found judge"):
        coordinator(tmp_path / "run", *ORDER, freeze=("judge",))
    with pytest.raises(errors.InvalidInput, match="lists of str"):
        ss.Coordinator(tmp_path / "run", order=ORDER, freeze="learner")


def test_a_death_lets_processes_go_on_that_are_frozen(tmp_path: Path) -> None:
    learners = [Started("learner", rank, 2) for rank in range(2)]
    with started(*learners, Started("buffer", dies_in="capture")) as held:

        async def life() -> None:
            async with coordinator(tmp_path / "run", *ORDER, freeze=ORDER) as coord:
                await coord.admit(*ss.processes("learner", [one.admissions for one in learners]))
                await coord.save(1)
                await coord.admit(*ss.processes("buffer", [held[2].admissions]))
                with pytest.raises(errors.ParticipantFailed, match="process ended") as found:
                    await coord.save(2)
                assert set(found.value.failures) == {"buffer/0"}
                assert [one.work(3) for one in learners] == [3, 3]

        live(life())
