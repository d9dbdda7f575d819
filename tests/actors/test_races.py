"""Races of actors that have names, and where each is tested.

| race | test |
|---|---|
| late capture, goodbye or loss of an old life | `protocol/test_lives.py`: `RACES` |
| late part of an old life | `protocol/test_lives.py`: `late_part_of_an_old_life` |
| a doorbell is repeated on a blank life | `test_participant.py`: `replayed_on_a_blank_life` |
| a new life says hello before the old line ends | `protocol/test_hub_lives.py`, `test_lives.py` |
| two processes with one id | `protocol/test_hub_lives.py`: `..._with_one_life_are_told_apart` |
| an async owner is captured in a mutation | here; on Ray: `integrations/test_ray.py` |
| a save begins before a member has heard the end of a restore | here |
| a consumer waits for a producer that was captured, both orders | here |
| an actor is busy past the deadline | `protocol/test_lives.py`: `busy_past_the_deadline` |
| death after Prepared; kill in the publication | here |
| a forked child holds the line of a dead actor | `protocol/test_socket_link.py` |
| SIGSTOP, then SIGCONT after the abort | here |
| SIGSTOP, then SIGCONT after a successor has joined | `test_processes.py` |
| `await save()` is cancelled; two saves at once | `test_in_process.py` |
| a save while an admission is pending | here |
| a member is missing at a restore | `test_in_process.py`: `test_a_role_that_is_gone_...` |
| a member is new at a restore | here |
| `close` with a dead, a busy and a never connected member | here |
| a fetched actor dies between capture and set | here |

All lives, losses, repeats and rosters at random: `protocol/test_lives_walk.py` and, with storage,
crashes and controllers that follow each other, `tests.campaigns.simulator.run --actors`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from tests.actors._owners import Buffer, Trainer, coordinator, live, participant
from tests.actors._process import Started, started

import stepseal as ss
from stepseal import errors
from stepseal.actors._doorbell import InProcess
from stepseal.protocol import Deadlines, Failure
from stepseal.protocol import Restored as RestoredMessage
from stepseal.protocol import _actions as actions
from stepseal.protocol._incarnation import Incarnation

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from pathlib import Path

    from stepseal.actors import Admission
    from stepseal.protocol import BeginRestore, BeginSave
    from stepseal.session import ShareOfRestore


# -- captures beside work --------------------------------------------------------------------------


class Pair:
    """Two numbers that its loop always changes together."""

    def __init__(self) -> None:
        self.first = self.second = 0
        self.half_read = threading.Event()
        self.changed = threading.Event()
        self.loop_thread = threading.get_ident()
        self.ss = participant("pair")
        self.ss.add("pair", (self.state_dict, lambda _: None), kind="tree")

    def state_dict(self) -> dict[str, int]:
        first = self.first
        self.half_read.set()
        if threading.get_ident() != self.loop_thread:
            assert self.changed.wait(60), "nobody worked beside a capture on another thread"
        return {"first": first, "second": self.second}

    async def work(self) -> None:
        while True:
            if self.half_read.is_set():
                self.first += 1
                self.second += 1
                self.changed.set()
            await asyncio.sleep(0)


async def captured_beside_work(root: Path) -> None:
    """The owner's methods run on the loop: a capture there has all of a change, or none."""
    pair = Pair()
    async with ss.Coordinator(root) as coord:
        await coord.admit(*ss.in_process(pair.ss))
        work = asyncio.ensure_future(pair.work())
        await coord.save(1)
        work.cancel()
    tree: Any = ss.open(root).step(1).value("pair")
    assert tree["first"] == tree["second"], "a torn view was saved"


def test_an_owner_on_a_loop_is_captured_between_its_changes(tmp_path: Path) -> None:
    live(captured_beside_work(tmp_path / "run"))


def test_a_naive_capture_on_another_thread_is_torn(tmp_path: Path) -> None:
    async def capture(self: InProcess, begin: BeginSave) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._participant.capture, begin)

    with mock.patch.object(InProcess, "capture", capture), pytest.raises(AssertionError):
        live(captured_beside_work(tmp_path / "run"))


@pytest.mark.parametrize("order", [("trainer", "buffer"), ("buffer", "trainer")])
def test_nobody_is_held_for_whom_another_works(order: tuple[str, ...], tmp_path: Path) -> None:
    """A consumer is captured only once a producer has served it: holding that one would hang."""

    async def life() -> None:
        trainer, buffer = Trainer(), Buffer()
        served = asyncio.Event()

        class Consumer(InProcess):
            async def capture(self, begin: BeginSave) -> None:
                await served.wait()  # its queue stands until the buffer has answered
                await super().capture(begin)

        async def producer() -> None:
            while not served.is_set():
                if order[0] == "trainer" or buffer.ss._share.flight.pending is not None:
                    served.set()
                await asyncio.sleep(0)

        async with coordinator(tmp_path / "run", order=order) as coord:
            await coord.admit(Consumer(trainer.ss), *ss.in_process(buffer.ss))
            work = asyncio.ensure_future(producer())
            await coord.save(1)
            await work

    live(life())


def heard_late(one: InProcess, begun: threading.Event) -> InProcess:
    """Return a member that hears how a restore ended only when its next save begins."""
    real_join, real_capture = one._participant.join, one.capture

    def join(begin: BeginRestore) -> ShareOfRestore | None:
        share = real_join(begin)
        assert share is not None
        real_wait = share.part.wait

        def wait() -> Any:  # noqa: ANN401 - an order or an answer
            found = real_wait()
            if isinstance(found, RestoredMessage):
                assert begun.wait(60)
            return found

        share.part.wait = wait  # type: ignore[method-assign]
        return share

    async def capture(begin: BeginSave) -> None:
        begun.set()
        await real_capture(begin)

    one._participant.join = join  # type: ignore[method-assign]
    one.capture = capture  # type: ignore[method-assign]
    return one


def test_a_save_waits_for_a_member_that_has_not_heard_the_end_of_a_restore(
    tmp_path: Path,
) -> None:
    """Else it would refuse the save, as if the restore before had left it half changed."""

    async def life() -> None:
        trainer, begun = Trainer(), threading.Event()
        begun.set()
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(heard_late(ss.in_process(trainer.ss)[0], begun))
            trainer.fill(3)
            await coord.save(1)
            trainer.ss._share.progress.tainted = True
            begun.clear()
            await coord.restore()
            await coord.save(2)

    live(life())


# -- deaths and stops ------------------------------------------------------------------------------


def killing(victim: Started, *, before: bool) -> Callable[..., object]:
    """Return what kills a process right before the publication, or between it and the word."""
    real = Incarnation.perform

    def perform(self: Incarnation, action: object) -> object:
        publishes = isinstance(action, actions.Publish)
        if publishes and before:
            victim.kill()
        found = real(self, action)  # type: ignore[arg-type]
        if publishes and not before:
            victim.kill()
        return found

    return perform


@pytest.mark.slow
@pytest.mark.parametrize("before", [True, False])
def test_a_member_that_dies_in_the_publication_is_in_the_step(before: bool, tmp_path: Path) -> None:
    """It has prepared, so its bytes are durable: the step is committed, and comes back equal."""
    with started(Started("buffer")) as held:

        async def life() -> None:
            async with ss.Coordinator(tmp_path / "run") as coord:
                await coord.admit(*ss.processes("buffer", [held[0].admissions]))
                held[0].work(5)
                with mock.patch.object(Incarnation, "perform", killing(held[0], before=before)):
                    await coord.save(5)
                held.append(Started("buffer"))
                await coord.admit(*ss.processes("buffer", [held[1].admissions]))
                assert await coord.restore() is not None
                assert held[1].work(0) == 5

        live(life())
    assert ss.open(tmp_path / "run").step(5).verify() == ()


@pytest.mark.slow
def test_a_member_that_wakes_up_after_the_abort_changes_nothing(tmp_path: Path) -> None:
    with started(Started("learner"), Started("buffer")) as held:
        learner, buffer = held

        async def life() -> None:
            async with ss.Coordinator(tmp_path / "run") as coord:
                await coord.admit(*ss.processes("learner", [learner.admissions]))
                await coord.admit(*ss.processes("buffer", [buffer.admissions]))
                _, its = coord._members._bells._members["buffer/0"]
                os.kill(buffer.process.pid or 0, signal.SIGSTOP)
                save = asyncio.ensure_future(coord.save(1))
                await asyncio.sleep(0)
                gone = Failure("participant_failed", "no sign of life")
                coord._driver.lost("buffer/0", its, gone)  # instead of waiting for `lost_s`
                with pytest.raises(errors.ParticipantFailed, match="no sign of life"):
                    await save
                os.kill(buffer.process.pid or 0, signal.SIGCONT)
                assert buffer.work(3) == 3  # it has begun the call, and goes on
                with pytest.raises(errors.ParticipantFailed, match="no sign of life"):
                    await coord.save(1)
                await coord.admit(*ss.processes("buffer", [buffer.admissions]))
                await coord.save(2)

        live(life())
    run = ss.open(tmp_path / "run")
    assert run.steps() == (2,)
    assert run.step(2).manifest.cut == {"learner": 0, "buffer": 3}


# -- joining, leaving, closing ---------------------------------------------------------------------


class Gated(InProcess):
    """A member whose admission stands until somebody opens the gate."""

    def __init__(self, one: ss.Participant) -> None:
        super().__init__(one)
        self.asked = asyncio.Event()
        self.gate = asyncio.Event()

    async def admit(self, admission: Admission, executor: Executor) -> None:
        self.asked.set()
        await self.gate.wait()
        await super().admit(admission, executor)


def test_a_save_waits_for_a_pending_admission_and_holds_the_new_member(tmp_path: Path) -> None:
    async def life() -> None:
        trainer, buffer = Trainer(), Buffer()
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            late = Gated(buffer.ss)
            admission = asyncio.ensure_future(coord.admit(late))
            await late.asked.wait()
            save = asyncio.ensure_future(coord.save(1))
            await asyncio.sleep(0)
            assert not save.done()
            late.gate.set()
            await asyncio.gather(admission, save)

    live(life())
    manifest = ss.open(tmp_path / "run").step(1).manifest
    assert set(manifest.participants) == {"trainer/0", "buffer/0"}


@pytest.mark.parametrize("policy", ["require", "if-present"])
def test_a_role_that_is_new_at_a_restore(policy: str, tmp_path: Path) -> None:
    async def before() -> None:
        trainer = Trainer()
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            trainer.fill(3)
            await coord.save(1)

    async def after() -> None:
        trainer, judge = Trainer(), participant("judge")
        judge.add("scores", {"a": 1}, on_restore=policy)  # type: ignore[arg-type]
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss, judge))
            if policy == "require":
                with pytest.raises(errors.StateMismatch, match="scores"):
                    await coord.restore()
                assert trainer.own["drawn"] == 0, "live state was changed"
            else:
                resumed = await coord.restore()
                assert resumed is not None
                assert trainer.holds() == 3

    live(before())
    live(after())


@pytest.mark.slow
def test_closing_waits_for_nobody_who_is_dead_busy_or_never_came(tmp_path: Path) -> None:
    """None of them says goodbye: waiting for that would take hours here."""
    patient = Deadlines(close_s=1e5)
    dead, busy = Started("dead"), Started("busy")
    with started(dead, busy):

        async def life() -> None:
            coord = ss.Coordinator(tmp_path / "run", deadlines=patient)
            await coord.admit(*ss.processes("dead", [dead.admissions]))
            await coord.admit(*ss.processes("busy", [busy.admissions]))
            with pytest.raises(errors.ParticipantFailed, match="never"):
                await coord.admit(Never())
            dead.kill()
            os.kill(busy.process.pid or 0, signal.SIGSTOP)
            await coord.close()
            os.kill(busy.process.pid or 0, signal.SIGCONT)
            assert busy.work(1) == 1

        live(life())


class Never:
    """A member that cannot be reached."""

    id = "never/0"
    doorbell = None

    def leave(self, *, is_lost: bool) -> None:
        pass

    async def admit(self, admission: Admission, executor: Executor) -> None:
        del admission, executor
        raise errors.CoordinatorLost("never/0 has no host")


def test_a_fetched_actor_that_dies_before_its_state_is_put_back_taints_the_job(
    tmp_path: Path,
) -> None:
    async def life() -> None:
        trainer, found = Trainer(), {"index": 0}
        is_dead = False

        def put(state: dict[str, int]) -> None:
            if is_dead:
                raise ConnectionError("the actor died")
            found.update(state)

        async with coordinator(tmp_path / "run", relations=()) as coord:
            coord.add("dataset", ss.fetched(lambda: dict(found), put))
            await coord.admit(*ss.in_process(trainer.ss))
            trainer.fill(3)
            found["index"] = 3
            await coord.save(1)
            is_dead = True
            with pytest.raises(errors.CheckpointError, match="the actor died") as error:
                await coord.restore()
            assert error.value.tainted
            with pytest.raises(errors.Tainted):
                await coord.save(2)
            is_dead, found["index"] = False, 9
            assert await coord.restore() is not None
            assert (trainer.holds(), found["index"]) == (3, 3)
            await coord.save(2)

    live(life())
