"""Acceptance cases of checkpointing, for actors: which test stands for each.

| case | test |
|---|---|
| C7 a component raises on one member | here |
| H4 values of each rank come back on each rank | here |
| H5 a failure behind the owner's back is seen, and the next save recovers | here |
| H5 by the next call, where nobody awaited it | `test_in_process.py`: `test_a_cancelled_...` |
| H6 one fails and all go on: no such step ever | C7, and `test_processes.py` |
| H7 leftovers of a bigger world are in no step | here |
| H8 failed saves evict no good step | here |
| H9 all agree on the step to resume | here |
| H10 all roles or no step | C7, and `test_in_process.py`: `test_members_join_and_leave_...` |
| H13 no prompt is skipped or trained twice | `test_frontier.py` |

The same at random, with crashes between any two operations of storage:
`tests.campaigns.simulator.run --actors`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from tests.actors._owners import Buffer, Trainer, coordinator, live, participant

import stepseal as ss
from stepseal import errors
from stepseal.protocol import _coordinator_driver as driver
from stepseal.session import _saving
from stepseal.transfer import write_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.actors import Coordinator


def visible(root: Path) -> list[str]:
    """Return the names of all steps that anybody can see."""
    return sorted(name for name in os.listdir(root) if name.startswith("step-"))


class Job:
    """Some trainers and a buffer."""

    def __init__(self, num_trainers: int = 2) -> None:
        self.trainers = [Trainer(rank, num_trainers) for rank in range(num_trainers)]
        self.buffer = Buffer()

    async def admit(self, coord: Coordinator) -> None:
        members = ss.in_process(*(one.ss for one in self.trainers), self.buffer.ss)
        await coord.admit(*members)

    def train(self, value: int) -> None:
        for one in self.trainers:
            one.fill(value)
        self.buffer.samples = list(range(value))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_c7_h6_h10_a_component_raises_on_one_member(rank: int, tmp_path: Path) -> None:
    """All hear of it, nothing is committed, the step before stands, and the job saves again."""

    async def life() -> None:
        job, is_broken = Job(3), False

        def state_of(one: int) -> dict[str, int]:
            if is_broken and one == rank:
                raise ArithmeticError("no state now")
            return {"a": one}

        for index, one in enumerate(job.trainers):
            state = (lambda index=index: state_of(index), lambda _: None)
            one.ss.add("raises", state, kind="tree", sharing=ss.PER_RANK)
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            job.train(1)
            await coord.save(1)
            is_broken = True
            for _ in range(2):
                with pytest.raises(errors.ParticipantFailed, match="no state now") as found:
                    await coord.save(2)
                assert set(found.value.failures) == {f"trainer/{rank}"}
                assert visible(tmp_path / "run") == ["step-1"]
            is_broken = False
            await coord.save(3)
            assert visible(tmp_path / "run") == ["step-1", "step-3"]
            assert await coord.restore(1) is not None

    live(life())
    assert ss.open(tmp_path / "run").step(1).verify() == ()


def test_h4_values_of_each_rank_come_back_on_each_rank(tmp_path: Path) -> None:
    def people() -> list[tuple[dict[str, Any], ss.Participant]]:
        found = []
        for rank in range(3):
            one = participant("loader", rank=rank, size=3)
            own: dict[str, Any] = {"index": -1, "rng": (0.0,)}
            one.add("own", own, sharing=ss.PER_RANK)
            found.append((own, one))
        return found

    async def life(fill: bool) -> list[dict[str, Any]]:
        held = people()
        async with ss.Coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(*(one for _, one in held)))
            if not fill:
                await coord.restore()
                return [own for own, _ in held]
            for rank, (own, _) in enumerate(held):
                own.update(index=10 * rank, rng=(rank / 7, rank))
            await coord.save(1)
            return [own for own, _ in held]

    assert live(life(True)) == live(life(False))


def test_h5_a_failure_behind_the_owners_back_is_seen_and_the_next_save_recovers(
    tmp_path: Path,
) -> None:
    def full(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        del arguments, options
        raise errors.StorageUnavailable("no space left", errno=28)

    async def life() -> None:
        job = Job()
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            job.train(1)
            with mock.patch.object(_saving, "write_part", side_effect=full) as write:
                with pytest.raises(errors.ParticipantFailed, match="no space left"):
                    await coord.save(1)
                write.side_effect = write_part
                await coord.save(1)

    live(life())
    assert ss.open(tmp_path / "run").step(1).verify() == ()


def test_h7_leftovers_of_a_bigger_world_are_in_no_step(tmp_path: Path) -> None:
    """The controller of three trainers ends in mid-save; one with a single trainer goes on."""

    async def bigger() -> None:
        job = Job(3)
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            job.train(1)
            await coord.save(1)
            broken = errors.StorageUnavailable("gone")
            with (
                mock.patch.object(_saving, "write_part", side_effect=_all_but_one(broken)),
                pytest.raises(errors.ParticipantFailed),
            ):
                await coord.save(2)

    async def smaller() -> None:
        job = Job(1)
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            await coord.restore(policies={"own": "fresh"})
            job.train(2)
            await coord.save(2)

    with mock.patch.object(driver, "discard_aborted"):  # it would have died before
        live(bigger())
    assert os.listdir(tmp_path / "run/.stepseal/staging"), "nothing was left over"
    live(smaller())
    step = ss.open(tmp_path / "run").step(2)
    assert step.manifest.participants == ("trainer/0", "buffer/0")
    assert step.verify() == ()


def _all_but_one(error: Exception) -> Callable[..., Any]:
    failing = iter([error])

    def write(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        for one in failing:
            raise one
        return write_part(*arguments, **options)

    return write


def test_h8_failed_saves_evict_no_good_step(tmp_path: Path) -> None:
    async def life() -> None:
        job = Job()
        async with coordinator(tmp_path / "run", keep=ss.latest(1)) as coord:
            await job.admit(coord)
            job.train(1)
            await coord.save(1)
            job.trainers[0].watermark = job.trainers[1].watermark = 99
            for step in range(2, 7):
                with pytest.raises(errors.ParticipantFailed, match="does not hold"):
                    await coord.save(step)
            assert visible(tmp_path / "run") == ["step-1"]
            resumed = await coord.restore()
            assert resumed is not None
            assert resumed.step == 1

    live(life())


def test_h9_all_roles_agree_on_the_step_to_resume(tmp_path: Path) -> None:
    """The newest step is damaged for one role: all fall back, and none takes the newer one."""

    async def saves() -> None:
        job = Job()
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            for value in (1, 2):
                job.train(value)
                await coord.save(value)

    async def resumes() -> None:
        job = Job()
        async with coordinator(tmp_path / "run") as coord:
            await job.admit(coord)
            resumed = await coord.restore()
            assert resumed is not None
            assert (resumed.step, set(resumed.skipped)) == (1, {"step-2"})
            assert [one.holds() for one in job.trainers] == [1, 1]
            assert job.buffer.samples == [0]

    live(saves())
    part = tmp_path / "run/step-2/parts/buffer/0.json"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    live(resumes())
