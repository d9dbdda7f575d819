"""`Coordinator.publish`: only the roles that hold what is published take part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.actors._owners import Buffer, Dataset, Trainer, coordinator, live, participant
from tests.actors._ranks import Group

import stepseal as ss
from stepseal import errors

if TYPE_CHECKING:
    from pathlib import Path


class World:
    """Two trainers, a buffer, and a data source that is fetched."""

    def __init__(self, root: Path, **options: Any) -> None:  # noqa: ANN401
        self.trainers = [Trainer(rank, 2) for rank in range(2)]
        self.buffer = Buffer()
        self.coordinator = coordinator(root, **options)
        dataset = Dataset()
        fetch = ss.fetched(dataset.state_dict, dataset.load_state_dict)
        self.coordinator.add("dataset", fetch)

    async def admit(self) -> None:
        members = ss.in_process(*(t.ss for t in self.trainers), self.buffer.ss)
        await self.coordinator.admit(*members)

    def train(self, value: int) -> None:
        for trainer in self.trainers:
            trainer.fill(value)
            trainer.watermark = value
        self.buffer.samples = list(range(value))


def test_the_roles_that_hold_it_publish_it_and_nobody_else(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            assert await coord.restore() is None
            world.train(4)
            saved = await coord.publish(
                7, components=["model"], cut={"policy_version": 7}, metrics={"r": 1}, tags=["a"]
            )
            assert (saved.step, saved.path) == (7, str(tmp_path / "run/published/v-7"))
            await coord.publish(8, components=["buffer", "dataset"])

    live(life())
    run = ss.open(tmp_path / "run")
    assert run.published() == (7, 8)
    assert run.steps() == ()
    first, second = run.publication(7), run.publication(8)
    assert first.manifest.participants == ("trainer/0", "trainer/1")
    assert [(one.name, one.role) for one in first.manifest.components] == [("model", "trainer")]
    assert first.manifest.cut == {"policy_version": 7, "watermark": 4}
    assert (first.manifest.metrics, first.manifest.tags) == ({"r": 1.0}, ("a",))
    assert second.manifest.participants == ("dataset/0", "buffer/0")
    assert second.value("buffer") == {"samples": [0, 1, 2, 3]}
    model = torch.nn.Linear(3, 2)
    ss.load(tmp_path / "run", published=7, model=model)
    assert {v for p in model.parameters() for v in p.flatten().tolist()} == {4.0}


def test_relations_across_roles_are_for_steps(tmp_path: Path) -> None:
    """Who holds the other field takes no part, so that nobody could say whether one holds."""

    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(4)
            world.trainers[0].watermark = world.trainers[1].watermark = 9
            await coord.publish(1, components=["model"])
            with pytest.raises(errors.ParticipantFailed, match="watermark <= position"):
                await coord.save(1)

    live(life())
    assert ss.open(tmp_path / "run").published() == (1,)


def test_a_field_of_the_cut_has_one_value_in_a_publication_too(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.trainers[1].watermark = 3
            with pytest.raises(errors.ParticipantFailed, match="publication of version 1"):
                await coord.publish(1, components=["model"])

    live(life())
    assert not (tmp_path / "run/published").exists()


def test_publications_and_saves_interleave(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run", keep=ss.latest(2), publish_keep=1)
        async with world.coordinator as coord:
            await world.admit()
            for step in range(1, 4):
                world.train(step)
                calls = [coord.publish(10 * step, components=["model"]), coord.save(step)]
                both = await asyncio.gather(*calls)
                assert [one.step for one in both] == [10 * step, step]
            await coord.publish(31, components=["model"])

    async def resume() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            restored = await coord.restore()
            assert restored is not None
            assert restored.step == 3
            with pytest.raises(errors.StepExists, match="Publish version 32 or a higher one"):
                await coord.publish(20, components=["model"])
            await coord.publish(32, components=["model"])
            await coord.save(4)

    live(life())
    run = ss.open(tmp_path / "run")
    assert (run.steps(), run.published()) == ((2, 3), (31,))
    assert (tmp_path / "run/latest").read_text() == "step-3\n"
    live(resume())
    assert run.steps() == (2, 3, 4)
    assert run.published() == (31, 32)


def test_the_death_of_a_role_that_holds_nothing_of_it_stops_no_publication(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(2)
            await coord.save(1)
            world.buffer.ss.close()
            with pytest.raises(errors.ParticipantFailed, match="buffer/0"):
                await coord.save(2)
            await coord.publish(2, components=["model"])
            world.trainers[1].ss.close()
            with pytest.raises(errors.ParticipantFailed, match=r"version 3.*trainer/1"):
                await coord.publish(3, components=["model"])

    live(life())
    run = ss.open(tmp_path / "run")
    assert (run.steps(), run.published()) == ((1,), (2,))


def test_what_nobody_holds_is_refused_and_the_next_call_goes_on(tmp_path: Path) -> None:
    async def life() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(1)
            with pytest.raises(errors.InvalidInput, match=r"version 1: no participant .* critic"):
                await coord.publish(1, components=["model", "critic"])
            with pytest.raises(errors.InvalidInput, match="list of names"):
                await coord.publish(1, components="model")
            await coord.publish(1, components=["model"])
            await coord.release("trainer/0", "trainer/1")
            with pytest.raises(errors.InvalidInput, match="holds model"):
                await coord.publish(2, components=["model"])

    live(life())
    assert ss.open(tmp_path / "run").published() == (1,)


def test_what_is_added_after_the_admission_can_be_published(tmp_path: Path) -> None:
    async def life() -> None:
        own = participant("judge")
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(own))
            own.add("judge", {"score": 3})
            await coord.publish(1, components=["judge"])

    live(life())
    assert ss.open(tmp_path / "run").publication(1).value("judge") == {"score": 3}


def test_ranks_of_a_role_that_hold_different_things_publish_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        one, other = (participant("judge", rank=rank, size=2) for rank in range(2))
        one.add("judge", {"score": 3}, sharing=ss.REPLICATED)
        other.add("jury", {"score": 3}, sharing=ss.REPLICATED)
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(one, other))
            with pytest.raises(errors.ParticipantFailed, match=r"judge/1: has components \[\]"):
                await coord.publish(1, components=["judge"])

    live(life())


def test_one_name_in_two_roles_is_refused(tmp_path: Path) -> None:
    async def life() -> None:
        one, other = participant("actor"), participant("critic")
        for own in (one, other):
            own.add("model", {"w": 1})
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(one, other))
            with pytest.raises(errors.ParticipantFailed, match="also a component of role"):
                await coord.publish(1, components=["model"])

    live(life())


def test_a_failed_publication_taints_nothing_and_a_failed_restore_stops_it(tmp_path: Path) -> None:
    class Fragile(Trainer):
        broken = False

        def cut(self) -> dict[str, int]:
            if self.broken:
                raise RuntimeError("not now")
            return super().cut()

    async def life() -> None:
        trainer = Fragile()
        async with coordinator(tmp_path / "run", relations=()) as coord:
            await coord.admit(*ss.in_process(trainer.ss))
            trainer.broken = True
            with pytest.raises(errors.ParticipantFailed, match=r"version 1.*not now"):
                await coord.publish(1, components=["model"])
            trainer.broken = False
            await coord.save(1)
            await coord.publish(1, components=["model"])
            coord._progress.tainted = True
            with pytest.raises(errors.Tainted):
                await coord.publish(2, components=["model"])
            await coord.restore()
            await coord.publish(2, components=["model"])

    live(life())
    assert ss.open(tmp_path / "run").published() == (1, 2)


def test_publishing_before_a_restore_is_refused(tmp_path: Path) -> None:
    async def first() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(1)
            await coord.save(1)

    async def second() -> None:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            with pytest.raises(errors.NotRestored):
                await coord.publish(1, components=["model"])

    live(first())
    live(second())


def test_a_generator_reads_each_version_whole_while_the_job_goes_on(tmp_path: Path) -> None:
    """The explorer of a trainer: it waits for the next version, loads it, and says so."""

    async def life() -> list[float]:
        world = World(tmp_path / "run", publish_keep=1)
        seen: list[float] = []
        async with world.coordinator as coord:
            await world.admit()
            await coord.restore()

            async def explore() -> None:
                run, model = ss.open(tmp_path / "run"), torch.nn.Linear(3, 2)
                version = 0
                while version < 5:
                    with await run.wait_published_async(version + 1, 60) as found:
                        version = found.version
                        state = await asyncio.to_thread(found.tensors)
                    model.load_state_dict(state)
                    (value,) = {v for p in model.parameters() for v in p.flatten().tolist()}
                    assert value == version
                    seen.append(value)

            explorer = asyncio.ensure_future(explore())
            for version in range(1, 6):
                world.train(version)
                await coord.publish(version, components=["model"])
            await explorer
        return seen

    seen = live(life())
    assert seen[-1] == 5
    assert seen == sorted(seen)
    assert ss.open(tmp_path / "run").published()[-1] == 5


def test_readers_of_a_coordinator_that_closes_hear_that_it_has_finished(tmp_path: Path) -> None:
    async def life() -> ss.Run:
        world = World(tmp_path / "run")
        async with world.coordinator as coord:
            await world.admit()
            world.train(1)
            await coord.publish(1, components=["model"])
            run = ss.open(tmp_path / "run")
            with pytest.raises(errors.WaitTimeout):
                run.wait_published(2, timeout_s=0)
        return run

    run = live(life())
    with pytest.raises(errors.StepNotFound, match="the job that publishes has finished"):
        run.wait_published(2, timeout_s=1e6)


@pytest.mark.slow
def test_ranks_with_a_loop_publish_at_one_step_and_a_buffer_is_not_asked(tmp_path: Path) -> None:
    async def life() -> None:
        buffer = Buffer()
        async with coordinator(tmp_path / "run", relations=()) as coord:
            with Group(tmp_path / "run") as group:
                await coord.admit(*group.members(), *ss.in_process(buffer.ss))
                buffer.ss.close()
                for version in (1, 2):
                    await coord.publish(version, components=["counter"])
            assert group.errors() == [None, None]

    live(life())
    run = ss.open(tmp_path / "run")
    for version in (1, 2):
        found = run.publication(version)
        assert found.manifest.participants == ("trainer/0", "trainer/1")
        at = {found.value("counter", name)["step"] for name in found.manifest.participants}
        assert at == {found.manifest.cut["trainer.step"]}


def test_a_coordinator_with_gates_publishes_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        async with ss.Coordinator(tmp_path / "run", gates=("actor",)) as coord:
            with pytest.raises(errors.InvalidInput, match="has gates"):
                await coord.publish(1, components=["actor"])

    live(life())
