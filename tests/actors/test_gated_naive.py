"""What hangs on the writers of a gated save; naive ones must break it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.actors._gated_job import Held, job, raises, writes
from tests.actors._owners import live

from stepseal import errors
from stepseal.protocol import Deadlines
from stepseal.session import GatedPart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def a_failed_writer_is_named(root: Path) -> None:
    """T1 of the reference: a thread that dies without a word."""

    async def life() -> None:
        async with job(root, Deadlines(write_s=8.0, close_s=30), gates=("critic",)) as held:
            await held.coord.release("actor/0", "actor/1")
            held.critic.save_async("critic", raises, 10)
            with pytest.raises(errors.ParticipantFailed) as told:
                await held.coord.save(10)
            assert "disk full" in str(told.value)
            with pytest.raises(errors.ParticipantFailed):
                held.critic.wait_all()

    live(life())


def every_name_is_waited_for(root: Path) -> None:
    """T2 of the reference: a full save lets a step go whose weights are still being written."""

    async def life() -> None:
        async with job(root, gates=("critic/full", "critic/weights")) as held:
            await held.coord.release("actor/0", "actor/1")
            slow = Held()
            saving = asyncio.ensure_future(held.coord.save(10))
            held.critic.save_async("weights", slow, 10)
            assert slow.begun.wait(30)
            await held.run(lambda: held.critic.save_sync(writes("full"), 10, name="full"))
            done, _ = await asyncio.wait([saving], timeout=0)
            early = bool(done) or held.critic._slots._held()[0]._thread is not None
            slow.go_on.set()
            with contextlib.suppress(errors.CheckpointError):
                await saving
            assert not early, "the step went on without the weights"

    live(life())


def _silent() -> tuple[object, str, object]:
    def failed(self: GatedPart, _name: str, error: BaseException) -> None:
        self.stopped()

    return GatedPart, "failed", failed


def _counting() -> tuple[object, str, object]:
    real = GatedPart.returned

    def returned(self: GatedPart, name: str) -> None:
        self._left = {name}
        real(self, name)

    return GatedPart, "returned", returned


NAIVE = [(a_failed_writer_is_named, _silent), (every_name_is_waited_for, _counting)]


@pytest.mark.parametrize("promise", [promise for promise, _ in NAIVE])
def test_writers_keep_a_promise(promise: Callable[[Path], None], tmp_path: Path) -> None:
    promise(tmp_path)


@pytest.mark.parametrize(("promise", "naive"), NAIVE)
def test_naive_writers_break_it(
    promise: Callable[[Path], None],
    naive: Callable[[], tuple[object, str, object]],
    tmp_path: Path,
) -> None:
    owner, name, wrong = naive()
    with mock.patch.object(owner, name, wrong), pytest.raises(AssertionError):
        promise(tmp_path)
