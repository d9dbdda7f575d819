"""Monarch actors in one step, in real processes: save, kill in mid-save, restart, restore."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.integrations import _monarch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

monarch = pytest.importorskip("monarch.actor", reason="Monarch is not installed")
from tests.integrations._monarch_actors import AsyncBuffer, Bare, Trainer  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.serial,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[None]:
    yield
    monarch.unhandled_fault_hook = lambda failure: None  # of deaths that are told late
    monarch.shutdown_context().get(timeout=60)


@pytest.fixture(autouse=True)
def users_hook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Set a hook as a user would; return the meshes whose faults came to it."""
    seen: list[str] = []

    def hook(failure: Any) -> None:  # noqa: ANN401 - of Monarch
        seen.append(failure.mesh_name)

    _monarch._faults_of.cache_clear()  # losses of other tests
    monkeypatch.setattr(monarch, "unhandled_fault_hook", hook)
    return seen


def procs(number: int) -> Any:  # noqa: ANN401 - a mesh of processes
    return monarch.this_host().spawn_procs(per_host={"procs": number})


def trainer(rank: int = 0, size: int = 1) -> Any:  # noqa: ANN401 - a mesh of one actor
    return procs(1).spawn("trainer", Trainer, rank, size)


def live(root: Path, work: Callable[[ss.Coordinator], Awaitable[None]], **options: Any) -> None:  # noqa: ANN401
    async def life() -> None:
        async with ss.Coordinator(root, deadlines=PATIENT, **options) as coord:
            await work(coord)

    asyncio.run(life())


class Reported(logging.Handler):
    """Waits for faults that were decided here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.arrived = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "<root>." in (text := record.getMessage()) and "reports a fault" in text:
            self.arrived.set()


def test_a_kill_in_mid_save_names_the_actor_and_a_new_one_takes_its_place(
    tmp_path: Path, users_hook: list[str]
) -> None:
    """4 processes, both kinds of endpoints; the late fault of the death ends nobody."""
    trainers = [trainer(rank, 3) for rank in range(3)]
    buffer = procs(1).spawn("buffer", AsyncBuffer)
    reported = Reported()
    logging.getLogger("stepseal").addHandler(reported)

    async def work(coord: ss.Coordinator) -> None:
        await coord.admit(*ss.monarch.members("trainer", *trainers))
        await coord.admit(*ss.monarch.members("buffer", buffer))
        await buffer.put.call_one(1, 2, 3)
        await asyncio.gather(*(one.work.call_one(2) for one in trainers))
        await coord.save(1)
        await trainers[1].die_in_the_next_capture.call_one()
        for _ in range(2):  # a lost life stays lost
            with pytest.raises(errors.ParticipantFailed) as found:
                await coord.save(2)
            assert set(found.value.failures) == {"trainer/1"}
        await buffer.put.call_one(4)
        await trainers[0].work.call_one(40)
        trainers[1] = trainer(1, 3)
        await coord.admit(ss.monarch.members("trainer", *trainers)[1])
        resumed = await coord.restore()
        assert resumed is not None
        assert [await one.work.call_one(0) for one in trainers] == [2, 2, 2]
        assert await buffer.put.call_one() == 3
        await coord.save(3)
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, reported.arrived.wait, 120)

    live(
        tmp_path / "run",
        work,
        order=("trainer", "buffer"),
        relations=("watermark <= position",),
    )
    logging.getLogger("stepseal").removeHandler(reported)
    assert users_hook == []
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == ["step-1", "step-3"]
    assert ss.open(tmp_path / "run").step(3).verify() == ()


def test_the_faults_of_others_come_to_the_earlier_hook(
    tmp_path: Path, users_hook: list[str]
) -> None:
    """And it is back once the coordinator is closed, as no member died."""
    earlier = monarch.unhandled_fault_hook
    arrived = threading.Event()

    def hook(failure: Any) -> None:  # noqa: ANN401 - of Monarch
        earlier(failure)
        arrived.set()

    monarch.unhandled_fault_hook = hook

    async def work(coord: ss.Coordinator) -> None:
        await coord.admit(*ss.monarch.members("trainer", trainer()))
        assert monarch.unhandled_fault_hook is not hook
        procs(1).spawn("bare", Bare).fail.broadcast()
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, arrived.wait, 120)

    live(tmp_path / "run", work)
    assert [name.partition("-")[0] for name in users_hook] == ["bare"]
    assert monarch.unhandled_fault_hook is hook


def test_an_async_actor_is_captured_between_its_endpoints(tmp_path: Path) -> None:
    buffer = procs(1).spawn("buffer", AsyncBuffer)

    async def work(coord: ss.Coordinator) -> None:
        await coord.admit(*ss.monarch.members("buffer", buffer))
        for step in range(1, 6):
            puts = [buffer.put.call_one(*range(20)) for _ in range(5)]
            await coord.save(step)
            await asyncio.gather(*puts)
        assert await coord.restore(5) is not None

    live(tmp_path / "run", work)
    for step in range(1, 6):
        tree = ss.open(tmp_path / "run").step(step).value("both")
        assert tree["first"] == tree["second"]


def test_actors_that_calls_cannot_reach_are_refused(tmp_path: Path) -> None:
    bare = procs(1).spawn("bare", Bare)
    with pytest.raises(errors.InvalidInput, match=r"class inherits ss\.monarch\.Actor"):
        ss.monarch.members("trainer", bare)

    async def work(coord: ss.Coordinator) -> None:
        (member,) = ss.monarch.members("trainer", trainer(), attribute="x")
        with pytest.raises(errors.ParticipantFailed, match=r"has no ss\.Participant in 'x'"):
            await coord.admit(member)
        (member,) = ss.monarch.members("buffer", trainer())
        with pytest.raises(errors.ParticipantFailed, match="the admission of buffer/0"):
            await coord.admit(member)

    live(tmp_path / "run", work)


def test_a_member_is_a_slice_of_one_rank() -> None:
    mesh = monarch.this_host().spawn_procs(per_host={"a": 2, "b": 2}).spawn("trainer", Trainer)
    found = ss.monarch.members("trainer", mesh, mesh.slice(a=0, b=1))
    assert [one.id for one in found] == [f"trainer/{rank}" for rank in range(5)]
