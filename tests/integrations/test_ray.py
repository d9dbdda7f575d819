"""Ray actors in one step, on a real local cluster: save, kill in mid-save, restart, restore."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
from tests.integrations._ray_actors import AsyncBuffer, Bare, Buffer, Trainer
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.actors import Coordinator

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def actor(cls: type, *arguments: object, **options: Any) -> Any:  # noqa: ANN401 - a handle
    return ray.remote(cls).options(num_cpus=0, **options).remote(*arguments)


def coordinator(root: Path) -> Coordinator:
    return Coordinator(
        root,
        order=("trainer", "buffer"),
        relations=("watermark <= position",),
        deadlines=PATIENT,
        control_host=ss.ray.address(),
    )


def test_a_kill_in_mid_save_names_the_actor_and_its_restart_comes_back(tmp_path: Path) -> None:
    trainer = actor(Trainer, max_restarts=1)
    buffer = actor(Buffer)

    async def life() -> None:
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.ray.members("trainer", trainer))
            await coord.admit(*ss.ray.members("buffer", [buffer]))
            await buffer.put.remote(1, 2, 3)
            await trainer.work.remote(2)
            await coord.save(1)
            await trainer.die_in_the_next_capture.remote()
            with pytest.raises(errors.ParticipantFailed) as found:
                await coord.save(2)
            assert set(found.value.failures) == {"trainer/0"}
            with pytest.raises(errors.ParticipantFailed):
                await coord.save(2)
            await buffer.put.remote(4)
            await coord.admit(*ss.ray.members("trainer", trainer))
            resumed = await coord.restore()
            assert resumed is not None
            assert await trainer.work.remote(0) == 2
            assert await buffer.put.remote() == 3
            await coord.save(3)

    asyncio.run(life())
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-1", "step-3"]
    assert ss.open(tmp_path / "run").step(3).verify() == ()


def test_an_actor_of_trees_never_loads_torch(tmp_path: Path) -> None:
    """Ray and the doorbell load no torch either: it is admitted, captured and restored without."""
    buffer, host = actor(Buffer), ss.ray.address()

    async def life() -> None:
        root = tmp_path / "run"
        async with Coordinator(root, deadlines=PATIENT, control_host=host) as coord:
            await coord.admit(*ss.ray.members("buffer", buffer))
            await buffer.put.remote(1, 2, 3)
            await coord.save(1)
            await buffer.put.remote(4)
            assert await coord.restore() is not None
            await coord.save(2)
            assert await buffer.put.remote() == 3
            assert not await buffer.loaded.remote()

    asyncio.run(life())


def test_ray_kill_is_a_loss_that_names_the_actor(tmp_path: Path) -> None:
    trainer, buffer = actor(Trainer), actor(Buffer)

    async def life() -> None:
        async with coordinator(tmp_path / "run") as coord:
            members = [*ss.ray.members("trainer", trainer), *ss.ray.members("buffer", buffer)]
            await coord.admit(*members)
            ray.kill(buffer)
            with pytest.raises(errors.ParticipantFailed) as found:
                await coord.save(1)
            assert set(found.value.failures) == {"buffer/0"}

    asyncio.run(life())


def test_an_async_actor_is_captured_between_its_methods(tmp_path: Path) -> None:
    buffer = actor(AsyncBuffer)

    async def life() -> None:
        async with Coordinator(tmp_path / "run", deadlines=PATIENT) as coord:
            await coord.admit(*ss.ray.members("buffer", buffer))
            for step in range(1, 6):
                puts = [buffer.put.remote(number) for number in range(20)]
                await coord.save(step)
                await asyncio.gather(*puts)
            assert await coord.restore(5) is not None

    asyncio.run(life())
    for step in range(1, 6):
        tree = ss.open(tmp_path / "run").step(step).value("both")
        assert tree["first"] == tree["second"]


def test_actors_without_a_quiet_point_are_refused(tmp_path: Path) -> None:
    async def life() -> None:
        async with Coordinator(tmp_path / "run", deadlines=PATIENT) as coord:
            threaded = actor(Trainer, max_concurrency=4)
            with pytest.raises(errors.ParticipantFailed, match="is a threaded actor"):
                await coord.admit(*ss.ray.members("trainer", threaded))
            with pytest.raises(errors.ParticipantFailed, match=r"inherit ss\.ray\.AsyncActor"):
                await coord.admit(*ss.ray.members("buffer", actor(Bare)))
            with pytest.raises(errors.ParticipantFailed, match=r"has no ss\.Participant in 'x'"):
                await coord.admit(*ss.ray.members("buffer", actor(Buffer), attribute="x"))

    asyncio.run(life())
