"""A trainer of Trinity's shape: its classes and methods, without the holes of its counters."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.integrations.trinity import (
    CHECKPOINTED,
    STATE_DICT,
    CheckpointCoordinator,
    CheckpointMonitor,
    find_latest_path,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


def writes(text: str) -> Callable[[str], None]:
    def save(path: str) -> None:
        with open(f"{path}/state", "w", encoding="utf-8") as file:
            file.write(text)

    return save


class Worker:
    """Holds one state, as an engine does."""

    def __init__(self, role: str) -> None:
        self.state = ""
        loads = dict.fromkeys((role, "model")[: 2 if role == "actor" else 1], self._load)
        self.coordinator = CheckpointCoordinator(role=role, loads=loads)

    def _load(self, path: str) -> None:
        with open(f"{path}/state", encoding="utf-8") as file:
            self.state += file.read()


class Job:
    def __init__(self, job_dir: Path, **options: Any) -> None:  # noqa: ANN401
        usual: dict[str, Any] = {
            "gates": ("actor", "actor/model", "critic"),
            "state_dict_gates": ("actor/model",),
            "deadlines": PATIENT,
        }
        self.job_dir = job_dir
        self.monitor = CheckpointMonitor(job_dir, **(usual | options))
        self.coordinator = CheckpointCoordinator(self.monitor)
        self.actor, self.critic = Worker("actor"), Worker("critic")

    async def save(self, step: int) -> None:
        """Save as workers do: some behind, some on their main thread, one after the other."""
        self.actor.coordinator.save_async("model", writes(f"model{step} "), step)
        await asyncio.to_thread(self.actor.coordinator.save_sync, writes(f"actor{step} "), step)
        await asyncio.to_thread(self.critic.coordinator.save_sync, writes(f"critic{step}"), step)

    def pointer(self, name: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.job_dir / name).read_text("utf-8")
        return None


@contextlib.asynccontextmanager
async def job(job_dir: Path, **options: Any) -> AsyncIterator[Job]:  # noqa: ANN401
    held = Job(job_dir, **options)
    workers = (held.actor.coordinator, held.critic.coordinator)
    try:
        async with held.monitor as monitor:
            full = ss.in_process(*(one.checkpoints for one in workers))
            await monitor.admit(full, ss.in_process(held.actor.coordinator.state_dicts))
            await monitor.restore()
            yield held
    finally:
        for one in workers:
            one.close()


def test_it_saves_resumes_and_moves_its_files(tmp_path: Path) -> None:
    async def first() -> None:
        async with job(tmp_path) as held:
            await held.save(10)
            await held.coordinator.register_and_monitor(
                10, checkpoint_thread_count=2, cut={"samples": 640}
            )
            await held.monitor.wait()
            await held.save(20)  # and the controller never gets there

    async def second() -> None:
        async with job(tmp_path) as held:
            assert (held.actor.state, held.critic.state) in {
                ("actor10 model10 ", "critic10"),
                ("model10 actor10 ", "critic10"),
            }

    asyncio.run(first())
    assert (tmp_path / CHECKPOINTED).read_text("utf-8") == "10"
    asyncio.run(second())
    run = ss.open(tmp_path / "checkpoints")
    assert run.steps() == (10,)
    assert run.step(10).manifest.cut == {"samples": 640}
    assert run.step(10).verify() == ()
    found = find_latest_path(tmp_path, "actor/model")
    assert found == str(tmp_path / "checkpoints/step-10/external/actor-model")
    assert find_latest_path(tmp_path / "elsewhere", "actor") is None


def test_a_full_save_does_not_let_a_state_dict_go_and_the_other_way_round(tmp_path: Path) -> None:
    """T2 of the reference: the pointer moved before `model.safetensors` was there."""

    async def life() -> None:
        async with job(tmp_path) as held:
            begun, go_on = threading.Event(), threading.Event()

            def slow(path: str) -> None:
                begun.set()
                assert go_on.wait(60)
                writes("weights")(path)

            held.actor.coordinator.save_async("model", slow, 10, is_state_dict=True)
            await held.coordinator.register_and_monitor(10, True, state_dict_thread_count=1)
            assert begun.wait(30)
            await held.save(10)
            await held.coordinator.register_and_monitor(10, checkpoint_thread_count=2)
            await held.monitor._saving[-1]
            assert held.pointer(STATE_DICT) is None
            go_on.set()
            await held.monitor.wait()

    asyncio.run(life())
    assert (tmp_path / STATE_DICT).read_text("utf-8") == "10"
    assert (tmp_path / CHECKPOINTED).read_text("utf-8") == "10"


def test_a_writer_that_raises_is_told_to_both_sides_and_the_next_step_works(
    tmp_path: Path,
) -> None:
    """T1 of the reference: the step was lost in a log, and with a gate the next one hung."""

    def fails(_path: str) -> None:
        raise OSError("no space")

    async def life() -> None:
        async with job(tmp_path) as held:
            held.actor.coordinator.save_async("model", fails, 10)
            await held.coordinator.register_and_monitor(10)
            with pytest.raises(errors.ParticipantFailed, match="no space") as told:
                await held.monitor.wait()
            assert set(told.value.failures) == {"actor/0"}
            with pytest.raises(errors.ParticipantFailed, match="no space"):
                await asyncio.to_thread(held.actor.coordinator.wait_all)
            assert held.pointer(CHECKPOINTED) is None
            await held.save(20)
            await held.coordinator.register_and_monitor(20)
            await held.monitor.wait()

    asyncio.run(life())
    assert (tmp_path / CHECKPOINTED).read_text("utf-8") == "20"


def test_a_training_step_that_raises_is_not_committed(tmp_path: Path) -> None:
    """T6 of the reference."""

    async def life() -> None:
        async with job(tmp_path) as held:
            await held.save(10)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(life())
    assert not (tmp_path / CHECKPOINTED).exists()
    assert ss.open(tmp_path / "checkpoints").steps() == ()


def test_state_dicts_are_pruned_and_checkpoints_kept(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path, keep_state_dicts=ss.latest(1)) as held:
            await held.save(1)
            await held.coordinator.register_and_monitor(1)
            for step in (2, 3, 4):
                held.actor.coordinator.save_async("model", writes("w"), step, is_state_dict=True)
                await held.coordinator.register_and_monitor(step, is_state_dict=True)
                await held.monitor.wait()

    asyncio.run(life())
    assert ss.open(tmp_path / "checkpoints").steps() == (1,)
    assert ss.open(tmp_path / "state_dicts").steps() == (4,)


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        worker = CheckpointCoordinator(role="actor")
        with pytest.raises(errors.InvalidInput, match="without a CheckpointMonitor"):
            await worker.register_and_monitor(1)
        async with job(tmp_path, state_dict_gates=()) as held:
            with pytest.raises(errors.InvalidInput, match="a worker needs role="):
                held.coordinator.save_sync(writes("x"), 1)
            with pytest.raises(errors.InvalidInput, match="expected state_dict_gates="):
                await held.coordinator.register_and_monitor(1, is_state_dict=True)

    asyncio.run(life())
