"""A participant refuses calls that are not for its life, whatever a framework does with them.

Each race is also run against a naive participant, which must fail it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from tests.actors._owners import Buffer, Trainer, coordinator, live, participant

import stepseal as ss
from stepseal import errors
from stepseal.actors import Admission, Participant
from stepseal.protocol import BeginSave, Deadlines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.protocol import Begin

ADMISSION = Admission("buffer/0", "life", "/root", "h", 1, "secret", ss.__version__, Deadlines())


class Recorder:
    """A doorbell of a framework that may run a call again, in another life."""

    def __init__(self, buffer: Buffer) -> None:
        self.id = buffer.ss.id
        self.doorbell = self
        self.buffer = buffer
        self.rung: list[Begin] = []
        self.admissions: list[Admission] = []

    async def admit(self, admission: Admission, executor: Any) -> None:  # noqa: ANN401
        self.admissions.append(admission)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, self.buffer.ss.admit, admission)

    def leave(self, *, is_lost: bool) -> None: ...

    async def capture(self, begin: BeginSave) -> None:
        self.rung.append(begin)
        self.buffer.ss.capture(begin)

    async def restore(self, begin: Any) -> None:  # noqa: ANN401
        raise AssertionError("nothing is restored here")

    def is_death(self, error: BaseException) -> bool:
        return isinstance(error, BrokenPipeError)


async def replayed_on_a_blank_life(root: Path) -> None:
    """The actor was restarted, and the framework repeats the call on the blank object."""
    async with coordinator(root) as coord:
        bell = Recorder(Buffer())
        bell.buffer.samples = [1, 2, 3]
        await coord.admit(bell, *ss.in_process(Trainer().ss))
        await coord.save(1)
        bell.buffer = Buffer()
        with pytest.raises(errors.ParticipantFailed, match="was not admitted in this life"):
            await coord.save(2)


async def replayed_in_the_same_life(root: Path) -> None:
    """The framework delivers a call twice, after the state has changed."""
    async with coordinator(root) as coord:
        bell = Recorder(Buffer())
        await coord.admit(bell, *ss.in_process(Trainer().ss))
        await coord.save(1)
        before = bell.buffer.ss._share.flight.pending
        bell.buffer.ss.capture(bell.rung[0])  # type: ignore[arg-type]
        assert bell.buffer.ss._share.flight.pending is before, "it was captured again"
        await coord.save(2)


async def rung_for_an_earlier_life(root: Path) -> None:
    async with coordinator(root) as coord:
        bell = Recorder(Buffer())
        await coord.admit(bell, *ss.in_process(Trainer().ss))
        await coord.save(1)
        await coord.admit(bell)
        with pytest.raises(errors.InvalidInput, match="this call is for life"):
            bell.buffer.ss.capture(bell.rung[0])  # type: ignore[arg-type]


def _any_life() -> tuple[object, str, object]:
    def check(self: Participant, begin: Begin) -> tuple[object, object]:
        del begin
        return self._admission, self._wiring

    return Participant, "_check", check


def _admitting_itself() -> tuple[object, str, object]:
    """A blank life that takes the place of the one before, as a replayed constructor would."""
    known: list[tuple[Any, Any]] = []
    real = Participant._check

    def check(self: Participant, begin: Begin) -> tuple[Any, Any]:
        if self._admission is None and known and self.id == known[-1][0].participant:
            return known[-1]
        found = real(self, begin)
        if self.id == "buffer/0":
            known.append(found)
        return found

    return Participant, "_check", check


def _beginning_again() -> tuple[object, str, object]:
    from stepseal.protocol import ParticipantDriver

    return ParticipantDriver, "take_up", lambda _self, _begin: True


RACES = [
    (replayed_on_a_blank_life, _admitting_itself),
    (replayed_in_the_same_life, _beginning_again),
    (rung_for_an_earlier_life, _any_life),
]


@pytest.mark.parametrize("race", [race for race, _ in RACES])
def test_race(race: Callable[[Path], Any], tmp_path: Path) -> None:
    live(race(tmp_path / "run"))


@pytest.mark.parametrize(("race", "naive"), RACES)
def test_a_naive_participant_fails(
    race: Callable[[Path], Any],
    naive: Callable[[], tuple[object, str, object]],
    tmp_path: Path,
) -> None:
    owner, name, wrong = naive()
    with (
        mock.patch.object(owner, name, wrong),
        pytest.raises((AssertionError, pytest.fail.Exception)),
    ):
        live(race(tmp_path / "run"))


def test_a_death_that_only_the_framework_sees_ends_the_life(tmp_path: Path) -> None:
    class Dead(Recorder):
        async def capture(self, begin: BeginSave) -> None:
            raise BrokenPipeError(f"the actor of {begin.life} died")

    async def life() -> None:
        async with coordinator(tmp_path / "run") as coord:
            bell = Dead(Buffer())
            await coord.admit(bell, *ss.in_process(Trainer().ss))
            for step in (1, 2):
                with pytest.raises(errors.ParticipantFailed, match="died") as found:
                    await coord.save(step)
                assert set(found.value.failures) == {"buffer/0"}

    live(life())


def test_a_fetched_component_that_raises_or_is_unknown_fails_the_save(tmp_path: Path) -> None:
    async def broken() -> object:
        raise RuntimeError("endpoint gone")

    async def life() -> None:
        for get in (broken, lambda: {"a": object()}):
            async with coordinator(tmp_path / get.__name__.strip("<>"), relations=()) as coord:
                coord.add("dataset", ss.fetched(get, lambda _: None))
                await coord.admit(*ss.in_process(Trainer().ss))
                with pytest.raises(errors.ParticipantFailed) as found:
                    await coord.save(1)
                assert set(found.value.failures) == {"dataset/0"}

    live(life())


def test_an_admission_survives_bytes_and_hides_its_token() -> None:
    assert Admission.decode(ADMISSION.encode()) == ADMISSION
    assert "secret" not in repr(ADMISSION)
    with pytest.raises(errors.InvalidInput, match="bytes are not an admission"):
        Admission.decode(b"{}")


def test_an_admission_for_somebody_else_is_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="the admission of buffer/0"):
        participant("trainer").admit(ADMISSION)


def test_components_are_fixed_once_a_call_has_begun(tmp_path: Path) -> None:
    async def life() -> None:
        trainer = Trainer()
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            await coord.save(1)
            with pytest.raises(errors.InvalidInput, match="components are fixed"):
                trainer.ss.add("more", {"a": 1})

    live(life())


def test_an_engine_on_the_loop_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        trainer = Trainer()
        trainer.ss.add("engine", ss.External(save=lambda _: None, load=lambda _: None))
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            with pytest.raises(errors.ParticipantFailed, match="event loop"):
                await coord.save(1)

    live(life())


def test_only_what_is_fetched_is_added_to_the_coordinator(tmp_path: Path) -> None:
    async def life() -> None:
        async with coordinator(tmp_path / "run") as coord:
            with pytest.raises(errors.InvalidInput, match=r"expected ss\.fetched"):
                coord.add("a", {})  # type: ignore[arg-type]

    live(life())
