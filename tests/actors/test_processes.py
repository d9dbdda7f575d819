"""Members in processes of their own: one step, and what becomes of it when one of them dies."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.actors._owners import live
from tests.actors._process import Started, started
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.actors import Coordinator

pytestmark = pytest.mark.slow


def coordinator(root: Path) -> Coordinator:
    return ss.Coordinator(root, order=("learner", "buffer"), deadlines=PATIENT)


async def admit(coord: Coordinator, *learners: Started, buffer: Started | None = None) -> None:
    members = ss.processes("learner", [one.admissions for one in learners])
    if buffer is not None:
        members += ss.processes("buffer", [buffer.admissions])
    await coord.admit(*members)


def test_processes_save_die_in_the_save_and_come_back(tmp_path: Path) -> None:
    """Kill one in mid-save: a typed error that names it; restart, admit, restore, go on."""
    learners = [Started("learner", rank, 2) for rank in range(2)]
    with started(*learners, Started("buffer", dies_in="capture")) as held:
        doomed = held[2]

        async def life() -> None:
            async with coordinator(tmp_path / "run") as coord:
                await admit(coord, *learners)
                for one in learners:
                    one.work(7)
                await coord.save(7)
                await admit(coord, buffer=doomed)
                with pytest.raises(errors.ParticipantFailed, match="process ended") as found:
                    await coord.save(8)
                assert set(found.value.failures) == {"buffer/0"}
                assert "step-8" not in os.listdir(tmp_path / "run")
                with pytest.raises(errors.ParticipantFailed):
                    await coord.save(8)  # a lost life stays lost
                held.append(Started("buffer"))
                await admit(coord, buffer=held[-1])
                for one in learners:
                    one.work(1)
                resumed = await coord.restore(policies={"buffer-state": "fresh"})
                assert resumed is not None
                assert resumed.step == 7
                assert [one.work(0) for one in learners] == [7, 7]
                held[-1].work(3)
                await coord.save(9)
                assert ss.open(tmp_path / "run").step(9).manifest.cut == {"learner": 7, "buffer": 3}

        live(life())
    assert ss.open(tmp_path / "run").step(9).verify() == ()


def test_a_second_life_takes_over_while_the_first_stands_still(tmp_path: Path) -> None:
    """SIGSTOP, a new life under the same id, SIGCONT: the old life changes nothing."""
    with started(Started("buffer")) as held:
        (first,) = held
        first.work(5)

        async def life() -> None:
            async with coordinator(tmp_path / "run") as coord:
                await admit(coord, buffer=first)
                await coord.save(5)
                os.kill(first.process.pid or 0, signal.SIGSTOP)
                held.append(Started("buffer"))
                await admit(coord, buffer=held[-1])
                os.kill(first.process.pid or 0, signal.SIGCONT)
                assert await coord.restore() is not None
                assert held[-1].work(0) == 5
                await coord.save(6)

        live(life())


def test_a_new_controller_resumes_after_the_first_was_dropped(tmp_path: Path) -> None:
    with started(Started("buffer")) as held:
        (buffer,) = held

        async def first() -> None:
            coord = coordinator(tmp_path / "run")
            await admit(coord, buffer=buffer)
            buffer.work(4)
            await coord.save(4)
            await coord.close()

        async def second() -> None:
            async with coordinator(tmp_path / "run") as coord:
                await admit(coord, buffer=buffer)
                buffer.work(1)
                with pytest.raises(errors.NotRestored):
                    await coord.save(5)
                assert await coord.restore() is not None
                assert buffer.work(0) == 4
                await coord.save(5)

        live(first())
        live(second())


def test_admitting_a_dead_process_names_it(tmp_path: Path) -> None:
    with started(Started("buffer")) as held:
        held[0].kill()

        async def life() -> None:
            async with coordinator(tmp_path / "run") as coord:
                with pytest.raises(errors.ParticipantFailed, match=r"buffer/0: .*is gone"):
                    await admit(coord, buffer=held[0])

        live(life())
