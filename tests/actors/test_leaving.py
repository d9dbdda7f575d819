"""A member learns that it takes no part any more, and whether its life was lost."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest
from tests.actors._owners import Buffer, Trainer, coordinator, live
from tests.actors._process import Started, started
from tests.protocol._conversations import PATIENT

from stepseal import errors
from stepseal.actors import InProcess
from stepseal.actors._doorbell import Process

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from stepseal.actors import Admission


class Noted(InProcess):
    """A member that writes down what it is told."""

    def __init__(self, owner: Buffer | Trainer) -> None:
        super().__init__(owner.ss)
        self.told: list[str] = []

    async def admit(self, admission: Admission, executor: Any) -> None:  # noqa: ANN401
        self.told.append("admitted")
        await super().admit(admission, executor)

    def leave(self, *, is_lost: bool) -> None:
        self.told.append("lost" if is_lost else "left")


class NotedProcess(Process):
    """The same in another process."""

    told: str | None = None

    def leave(self, *, is_lost: bool) -> None:
        self.told = "lost" if is_lost else "left"


def test_a_member_leaves_when_it_is_released_and_at_the_end(tmp_path: Path) -> None:
    buffer, trainer = Noted(Buffer()), Noted(Trainer())

    async def work() -> None:
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(buffer, trainer)
            await coord.release("buffer/0")
            assert buffer.told == ["admitted", "left"]
            assert trainer.told == ["admitted"]

    live(work())
    assert buffer.told == ["admitted", "left"]
    assert trainer.told == ["admitted", "left"]


def test_a_member_leaves_before_it_is_admitted_again(tmp_path: Path) -> None:
    old, new = Noted(Buffer()), Noted(Buffer())

    async def work() -> None:
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(old)
            await coord.admit(old)
            assert old.told == ["admitted", "left", "admitted"]
            await coord.admit(new)
            assert old.told == ["admitted", "left", "admitted", "left"]

    live(work())
    assert new.told == ["admitted", "left"]


def test_a_member_that_cannot_be_admitted_leaves(tmp_path: Path) -> None:
    buffer = Noted(Buffer())
    buffer.id = "trainer/0"

    async def work() -> None:
        async with coordinator(tmp_path / "run") as coord:
            with pytest.raises(errors.ParticipantFailed, match="admission of trainer/0"):
                await coord.admit(buffer)
            assert buffer.told == ["admitted", "left"]

    live(work())


class Absent(Noted):
    """A member whose process never gets to its admission."""

    async def admit(self, admission: Admission, executor: Any) -> None:  # noqa: ANN401
        await asyncio.get_running_loop().create_future()


def test_a_member_that_does_not_connect_in_time_is_named_with_the_limit(tmp_path: Path) -> None:
    limits = dataclasses.replace(PATIENT, connect_s=0.01)

    async def work() -> None:
        async with coordinator(tmp_path / "run", deadlines=limits) as coord:
            with pytest.raises(errors.ParticipantFailed, match=r"buffer/0: did not .* 0\.01 s"):
                await coord.admit(absent)

    absent = Absent(Buffer())
    live(work())
    assert absent.told == ["left"]


@pytest.mark.slow
def test_a_member_is_told_of_the_loss_of_its_life_alone(tmp_path: Path) -> None:
    with started(Started("buffer"), Started("trainer"), Started("buffer")) as (first, other, again):
        died = NotedProcess("buffer/0", first.admissions)
        lives = NotedProcess("trainer/0", other.admissions)
        came = NotedProcess("buffer/0", again.admissions)

        async def work() -> None:
            async with coordinator(tmp_path / "run", order=(), relations=()) as coord:
                await coord.admit(died, lives)
                first.kill()
                with pytest.raises(errors.ParticipantFailed) as found:
                    await coord.save(1)
                assert set(found.value.failures) == {"buffer/0"}
                await coord.admit(came)
                assert died.told == "lost"
                await coord.save(2)

        live(work())
        assert (lives.told, came.told) == ("left", "left")
