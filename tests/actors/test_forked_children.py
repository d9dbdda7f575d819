"""A child that an actor, a rank or a controller forks does not speak in its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests._forks import in_child
from tests.actors._gated_job import job, writes
from tests.actors._owners import Buffer, Trainer, coordinator, live

import stepseal as ss
from stepseal.process import Home

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    import pytest

BEGIN: Any = object()
"""A call; nobody looks at it."""
OF_PARTICIPANT: dict[str, Callable[[ss.Participant], object]] = {
    "add": lambda one: one.add("more", {"n": 1}),
    "capture": lambda one: one.capture(BEGIN),
    "restore": lambda one: one.restore(BEGIN),
    "save_async": lambda one: one.save_async("buffer", lambda _: None, 1),
    "save_sync": lambda one: one.save_sync(lambda _: None, 1),
    "wait_all": lambda one: one.wait_all(),
    "poll": lambda one: one.poll(),
}
OF_COORDINATOR: dict[str, Callable[[ss.Coordinator], Coroutine[Any, Any, object]]] = {
    "admit": lambda coord: coord.admit(),
    "release": lambda coord: coord.release("buffer/0"),
    "save": lambda coord: coord.save(9),
    "publish": lambda coord: coord.publish(9, components=["buffer"]),
    "restore": lambda coord: coord.restore(),
}


def test_every_call_of_a_child_is_refused_and_the_job_goes_on(tmp_path: Path) -> None:
    async def work() -> None:
        buffer, trainer = Buffer(), Trainer()
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(buffer.ss, trainer.ss))
            await coord.restore()
            for name, call in OF_PARTICIPANT.items():
                said = in_child(lambda call=call: call(buffer.ss))  # type: ignore[misc]
                assert said == "InvalidInput", name
            for name, begin in OF_COORDINATOR.items():
                said = in_child(lambda begin=begin: begin(coord).send(None))  # type: ignore[misc]
                assert said == "InvalidInput", name
            fetched = ss.fetched(dict, lambda _: None)
            assert in_child(lambda: coord.add("more", fetched)) == "InvalidInput"
            assert in_child(buffer.ss.close) == "None"
            assert in_child(lambda: ends(coord.close())) == "True"
            assert (await coord.save(10)).step == 10
        buffer.ss.close()
        trainer.ss.close()

    live(work())


def ends(work: Coroutine[Any, Any, None]) -> bool:
    """Return whether a coroutine ends without waiting."""
    try:
        work.send(None)
    except StopIteration:
        return True
    return False


def test_a_participant_without_the_check_answers_in_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        buffer = Buffer()
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(buffer.ss))
            monkeypatch.setattr(Home, "is_here", property(lambda _: True))
            assert in_child(buffer.ss.poll) == "0"
        buffer.ss.close()

    live(work())


def test_a_child_of_a_writer_ends_no_save(tmp_path: Path) -> None:
    async def work() -> None:
        async with job(tmp_path) as held:
            await held.save_actors(10)
            held.critic.save_async("critic", writes("c"), 10)
            assert in_child(held.critic.close) == "None"
            await held.wait_all()
            assert (await held.coord.save(10)).step == 10

    live(work())
