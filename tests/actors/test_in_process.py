"""One coordinator and owners of several roles on one event loop: save, restart, restore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import torch
from tests.actors._owners import Buffer, Dataset, Trainer, coordinator, live, participant
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.session import Policy


class World:
    """A life of the job: two trainers, a buffer, and a data source that is fetched."""

    def __init__(self, root: Path, **options: object) -> None:
        self.trainers = [Trainer(rank, 2) for rank in range(2)]
        self.buffer = Buffer()
        self.dataset = Dataset()
        self.coordinator = coordinator(root, **options)
        fetch = ss.fetched(self.dataset.state_dict, self.dataset.load_state_dict)
        self.coordinator.add("dataset", fetch)

    async def admit(self) -> None:
        members = ss.in_process(*(t.ss for t in self.trainers), self.buffer.ss)
        await self.coordinator.admit(*members)

    def train(self, value: int) -> None:
        for trainer in self.trainers:
            trainer.fill(value)
            trainer.watermark = value
        self.buffer.samples = list(range(value))
        self.dataset.state["index"] = value

    def seen(self) -> list[float]:
        """Return what each owner holds, as one number."""
        holds = [trainer.holds() for trainer in self.trainers]
        return [*holds, len(self.buffer.samples), self.dataset.state["index"]]


def test_on_commit_is_told_the_cut_of_all_roles(tmp_path: Path) -> None:
    told: list[ss.Commit] = []

    async def life() -> None:
        world = World(tmp_path / "run", on_commit=told.append)
        async with world.coordinator as coord:
            await world.admit()
            world.train(7)
            await coord.save(7, cut={"policy_version": 3}, metrics={"r": 0.5}, tags=["a"])

    live(life())
    (commit,) = told
    assert commit.path == str(tmp_path / "run/step-7")
    assert (commit.metrics, commit.tags) == ({"r": 0.5}, ("a",))
    assert commit.cut == {"policy_version": 3, "watermark": 7, "position": 7}


def test_one_step_holds_all_roles_and_comes_back(tmp_path: Path) -> None:
    async def first() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            assert await coord.restore() is None
            world.train(7)
            saved = await coord.save(7, cut={"policy_version": 3}, metrics={"r": 0.5}, tags=["a"])
            assert (saved.step, saved.path) == (7, str(tmp_path / "run/step-7"))
            world.train(8)
            await coord.save(8)

    async def second() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            resumed = await coord.restore(7)
            assert resumed is not None
            assert world.seen() == [7, 7, 7, 7]
            assert set(resumed.report) == {"model", "own", "buffer", "dataset"}
            world.train(9)
            await coord.save(9)

    live(first())
    live(second())
    run = ss.open(tmp_path / "run")
    manifest = run.step(7).manifest
    assert manifest.participants == ("dataset/0", "trainer/0", "trainer/1", "buffer/0")
    roles = {entry.name: entry.role for entry in manifest.components}
    own = {"model": "trainer", "own": "trainer", "buffer": "buffer", "dataset": "dataset"}
    assert roles == own
    assert manifest.cut == {"policy_version": 3, "watermark": 7, "position": 7}
    assert (manifest.metrics, manifest.tags) == ({"r": 0.5}, ("a",))


def test_stock_dcp_reads_the_tensors(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            await coord.save(5)

    live(life())
    model = torch.nn.Linear(3, 2)
    state = model.state_dict()
    with pytest.warns(UserWarning, match="single process"):
        dcp_load(state, checkpoint_id=tmp_path / "run/step-5")
    assert {v for tensor in state.values() for v in tensor.flatten().tolist()} == {5.0}


def test_a_relation_that_does_not_hold_refuses_the_cut(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            world.trainers[0].watermark = world.trainers[1].watermark = 6
            with pytest.raises(errors.ParticipantFailed, match="watermark is 6 on trainer/0") as e:
                await coord.save(5)
            assert set(e.value.failures) == {"trainer/0", "buffer/0"}
            world.train(6)
            await coord.save(6)

    live(life())
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-6"]


def test_a_producer_that_moves_on_after_the_consumer_fits_the_order(tmp_path: Path) -> None:
    """The buffer grows between the two captures: the order makes that a sound cut."""

    async def life(order: tuple[str, ...]) -> str:
        world = World(tmp_path / "-".join(order), order=order)
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            for trainer in world.trainers:
                real = trainer.ss.capture

                def capture(begin: object, real: object = real) -> None:
                    real(begin)  # type: ignore[operator]
                    world.buffer.samples.append(1)

                trainer.ss.capture = capture  # type: ignore[method-assign]
            real_buffer = world.buffer.ss.capture

            def capture_buffer(begin: object) -> None:
                real_buffer(begin)  # type: ignore[arg-type]
                world.buffer.samples.append(1)
                for trainer in world.trainers:
                    trainer.watermark = len(world.buffer.samples)

            world.buffer.ss.capture = capture_buffer  # type: ignore[method-assign]
            try:
                await coord.save(5)
            except errors.ParticipantFailed as error:
                return str(error)
            return "committed"

    assert live(life(("trainer", "buffer"))) == "committed"
    assert "watermark <= position does not hold" in live(life(("buffer", "trainer")))


def test_a_failure_in_a_capture_fails_the_save_with_its_name(tmp_path: Path) -> None:
    class Broken(Buffer):
        is_broken = True

        def __init__(self) -> None:
            super().__init__()
            self.ss.add("broken", (self._get, lambda _: None), kind="tree")

        def _get(self) -> dict[str, int]:
            if self.is_broken:
                raise RuntimeError("no state now")
            return {"a": 1}

    async def life() -> None:
        trainer, buffer = Trainer(), Broken()
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(trainer.ss, buffer.ss))
            with pytest.raises(errors.ParticipantFailed, match="no state now") as found:
                await coord.save(1)
            assert set(found.value.failures) == {"buffer/0"}
            buffer.is_broken = False
            await coord.save(2)

    live(life())


def test_a_component_in_two_roles_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        trainer, other = Trainer(), participant("judge")
        other.add("model", {"a": 1})
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss, other))
            with pytest.raises(errors.ParticipantFailed, match="also a component of role"):
                await coord.save(1)

    live(life())


def test_members_join_and_leave_between_steps(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await coord.admit(*ss.in_process(world.buffer.ss))
            with pytest.raises(errors.ParticipantFailed, match="nobody reports watermark"):
                await coord.save(1)
            await coord.admit(*ss.in_process(*(t.ss for t in world.trainers)))
            world.train(2)
            await coord.save(2)
            await coord.release("trainer/1", "trainer/0")
            with pytest.raises(errors.ParticipantFailed, match="nobody reports watermark"):
                await coord.save(3)

    live(life())
    manifest = ss.open(tmp_path / "run").step(2).manifest
    assert set(manifest.participants) == {"buffer/0", "dataset/0", "trainer/0", "trainer/1"}


def test_replicas_are_compared_within_a_role(tmp_path: Path) -> None:
    """What is not required is left out of the step where the members differ in it."""

    async def life() -> None:
        world = World(tmp_path / "run")
        for rank, trainer in enumerate(world.trainers):
            options = {"sharing": ss.REPLICATED, "required": False}
            trainer.ss.add("extra", {"seen": torch.full((2,), rank)}, **options)  # type: ignore[arg-type]
            with pytest.raises(errors.InvalidInput, match="does not wait until its files"):
                trainer.ss.add("full", {}, sharing=ss.REPLICATED, validate="full")
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            await coord.save(5)
            world.trainers[1].fill(6)
            with pytest.raises(
                errors.ParticipantFailed, match=r"component model: .*bias, weight differ:"
            ):
                await coord.save(6)

    live(life())
    manifest = ss.open(tmp_path / "run").step(5).manifest
    assert set(manifest.left_out) == {"extra"}
    assert {entry.name for entry in manifest.components} == {"model", "own", "buffer", "dataset"}


def test_a_missing_member_of_a_role_is_named(tmp_path: Path) -> None:
    async def life() -> None:
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(Trainer(0, 2).ss))
            with pytest.raises(errors.ParticipantFailed, match="expected all of trainer/0, tr"):
                await coord.save(1)
            with pytest.raises(errors.InvalidInput, match="expected all of trainer/0, trainer/1"):
                await coord.restore()

    live(life())


async def save_step_5(root: Path) -> None:
    """Save a job of all roles once, at step 5."""
    world = World(root)
    async with world.coordinator as coord:
        await world.admit()
        world.train(5)
        await coord.save(5)


def test_a_role_that_is_gone_at_a_restore_is_named_or_skipped(tmp_path: Path) -> None:
    async def without() -> None:
        trainers = [Trainer(rank, 2) for rank in range(2)]
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(*(t.ss for t in trainers)))
            with pytest.raises(errors.StateMismatch, match="nobody holds buffer of role buffer"):
                await coord.restore()
            resumed = await coord.restore(policies={"buffer": "skip", "dataset": "skip"})
            assert resumed is not None
            assert [t.holds() for t in trainers] == [5, 5]

    live(save_step_5(tmp_path / "run"))
    live(without())


def test_a_restore_of_some_components_leaves_all_others_as_they_are(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(9)
            with pytest.raises(errors.InvalidInput, match="only: no component 'modle'"):
                await coord.restore(only=["modle"])
            resumed = await coord.restore(only=["model"])
            assert resumed is not None
            assert [t.model.bias.tolist() for t in world.trainers] == [[5, 5]] * 2
            assert [t.own["drawn"] for t in world.trainers] == [9, 9]
            assert resumed.report["model"].startswith("restored")

    live(save_step_5(tmp_path / "run"))
    live(life())


def test_a_role_of_another_size_restores_what_any_number_can_read(tmp_path: Path) -> None:
    async def alone() -> None:
        trainer = Trainer()
        async with coordinator(tmp_path / "run") as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            others: dict[str, Policy] = {"buffer": "skip", "dataset": "skip"}
            with pytest.raises(errors.StateMismatch, match="saved per rank by 2 participants"):
                await coord.restore(policies=others)
            others["own"] = "fresh"
            resumed = await coord.restore(policies=others)
            assert resumed is not None
            assert trainer.model.bias.tolist() == [5, 5]

    live(save_step_5(tmp_path / "run"))
    live(alone())


def test_a_cancelled_save_goes_on_and_its_failure_is_raised_later(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(coord.save(5), 0.0005)
            await coord.save(6)
            assert (tmp_path / "run/step-5").is_dir()
            for trainer in world.trainers:
                trainer.watermark = 99
            task = asyncio.ensure_future(coord.save(7))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(errors.ParticipantFailed, match="save of step 7"):
                await coord.save(8)

    live(life())


def test_two_saves_at_once_run_one_after_the_other(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(5)
            found = await asyncio.gather(coord.save(5), coord.save(6))
            assert [saved.step for saved in found] == [5, 6]

    live(life())


def test_of_two_coordinators_on_one_root_the_newer_one_commits(tmp_path: Path) -> None:
    async def life() -> None:
        first, second = World(tmp_path / "run"), World(tmp_path / "run")
        async with first.coordinator as older, second.coordinator as newer:
            await first.admit()
            await second.admit()
            first.train(5)
            await older.save(5)
            await newer.restore()
            with pytest.raises(errors.NotCurrent, match="incarnation 2"):
                await older.save(6)
            await newer.save(6)
        assert ss.open(tmp_path / "run").step(6).manifest.incarnation == 2

    live(life())


def test_a_call_without_participants_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        async with coordinator(tmp_path / "run") as coord:
            with pytest.raises(errors.InvalidInput, match="no participant was admitted"):
                await coord.save(1)
        with pytest.raises(errors.InvalidInput, match="closed"):
            await coord.save(1)

    live(life())


@pytest.mark.parametrize(
    "arguments",
    [{"rank": 1}, {"rank": -1}, {"role": "a/b/c/d"}, {"role": ""}, {"size": 0}],
)
def test_wrong_places_in_a_role_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(errors.InvalidInput):
        ss.Participant(**({"role": "trainer"} | arguments))  # type: ignore[arg-type]
