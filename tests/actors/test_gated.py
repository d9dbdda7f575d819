"""Writers that save on their own, and one commit: the cases S1 to S7, C7, C10 and C11."""

from __future__ import annotations

import asyncio
import dataclasses
import filecmp
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
from tests._threads import no_more_threads
from tests.actors._gated_job import Held, job, raises, writes
from tests.actors._owners import live, participant
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.actors._slots import Slots
from stepseal.protocol import Deadlines
from stepseal.session import GatedPart

if TYPE_CHECKING:
    from pathlib import Path


def test_all_declared_saves_are_one_step_that_comes_back(tmp_path: Path) -> None:
    told: list[ss.Commit] = []

    async def first() -> None:
        async with job(tmp_path, on_commit=told.append) as held:
            await held.save_all(10)
            await held.wait_all()
            assert held.steps() == (), "the controller has not called save"
            saved = await held.coord.save(10, cut={"cursor": 7}, metrics={"reward": 0.5})
            assert saved.step == 10

    async def second() -> None:
        async with job(tmp_path) as held:
            restored = await held.coord.restore()
            assert restored is not None
            assert restored.step == 10
            assert held.loaded == {
                "actor/0": "rank0+rank1",
                "actor/1": "rank0+rank1",
                "critic/0": "state.txt",
            }

    live(first())
    live(second())
    step = ss.open(tmp_path).step(10)
    assert step.verify() == ()
    assert step.manifest.cut == {"cursor": 7}
    assert {one.name: one.role for one in step.manifest.components} == {
        "actor": "actor",
        "critic": "critic",
    }
    assert [(one.step, one.metrics, one.cut) for one in told] == [
        (10, {"reward": 0.5}, {"cursor": 7})
    ]


# -- S1 to S7 ----------------------------------------------------------------------------------


def test_s1_an_async_save_returns_before_its_function(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path) as held:
            slow = Held()
            held.critic.save_async("critic", slow, 10)
            assert slow.begun.wait(30)
            await held.save_actors(10)
            slow.go_on.set()
            await held.coord.save(10)

    live(life())


def test_s2_c7_a_function_that_raises_fails_the_step_with_its_name(tmp_path: Path) -> None:
    """At the writer's next call and at the coordinator, once each; later saves work."""

    async def life() -> None:
        async with job(tmp_path) as held:
            held.critic.save_async("critic", raises, 10)
            with pytest.raises(errors.ParticipantFailed, match="disk full") as told:
                await held.coord.save(10)
            assert set(told.value.failures) == {"critic/0"}
            with pytest.raises(errors.ParticipantFailed, match=r"critic/0.*disk full") as raised:
                held.critic.save_async("critic", writes("c"), 20)
            assert isinstance(raised.value.__cause__, OSError)
            with pytest.raises(errors.ParticipantFailed, match="disk full"):
                await held.run(held.critic.save_sync, raises, 15)
            assert held.steps() == ()
            held.critic.wait_all()
            await held.save_all(20)
            await held.coord.save(20)
            assert held.steps() == (20,)

    live(life())


def test_c7_the_others_go_on_and_are_not_raised_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def life() -> None:
        async with job(tmp_path) as held:
            await held.save_actors(10)
            held.critic.save_async("critic", raises, 10)
            with pytest.raises(errors.ParticipantFailed):
                await held.coord.save(10)
            for one in held.actors:
                await held.run(one.wait_all)
            with pytest.raises(errors.ParticipantFailed):
                await held.run(held.critic.wait_all)
            await held.save_all(20)
            await held.coord.save(20)

    with caplog.at_level(logging.WARNING, "stepseal"):
        live(life())
    assert "actor/0: save of step 10" in caplog.text


def test_s3_a_writer_that_dies_blocks_nobody(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path) as held:
            saving = asyncio.ensure_future(held.coord.save(10))
            await held.save_actors(10)
            # the line ends without a goodbye, as that of a dead process does
            wiring = held.critic._wiring
            assert wiring is not None
            wiring.driver._link._connection.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
            with pytest.raises(errors.ParticipantFailed) as told:
                await saving
            assert set(told.value.failures) == {"critic/0"}
            await held.coord.admit(*ss.in_process(held.critic))
            await held.save_all(20)
            await held.coord.save(20)
            assert held.steps() == (20,)

    live(life())


def test_s3_a_writer_that_never_saves_is_named_at_the_deadline(tmp_path: Path) -> None:
    short = Deadlines(write_s=0.2, close_s=30, connect_s=30)

    async def life() -> None:
        async with job(tmp_path, short) as held:
            held.actors[0].save_async("actor", writes("a"), 10)
            with pytest.raises(errors.CommitTimeout) as told:
                await held.coord.save(10)
            assert {"actor/1", "critic/0"} <= set(told.value.failures)

    live(life())


def test_s4_leaving_flushes_what_is_wanted_and_masks_nothing(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path) as held:
            await held.save_all(10)
            asyncio.ensure_future(held.coord.save(10))  # noqa: RUF006 - the coordinator keeps it
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        live(life())
    assert ss.open(tmp_path).steps() == (10,)


def test_s5_a_slow_older_step_neither_moves_anything_back_nor_raises(tmp_path: Path) -> None:
    told: list[int] = []

    async def life() -> None:
        async with job(tmp_path, on_commit=lambda commit: told.append(commit.step)) as held:
            slow = Held()
            await held.save_actors(10)
            held.critic.save_async("critic", slow, 10)
            assert slow.begun.wait(30)
            older = asyncio.ensure_future(held.coord.save(10))
            await held.save_actors(20)
            newer = asyncio.ensure_future(held.coord.save(20))
            again = held.run(held.critic.save_async, "critic", writes("c"), 20)
            slow.go_on.set()  # the slot's own saves are one after the other
            await again
            done = await asyncio.gather(older, newer, return_exceptions=True)
            steps = [one.step for one in done if isinstance(one, ss.Saved)]
            assert steps in ([20], [10, 20]), done
            assert held.steps() == tuple(steps)
            held.critic.save_async("critic", writes("late"), 15)
            await held.run(held.critic.wait_all)
            assert held.steps() == tuple(steps)

    live(life())
    assert told == sorted(told)


def test_s6_sync_and_async_write_the_same_files(tmp_path: Path) -> None:
    async def life(root: Path, *, is_async: bool) -> None:
        async with job(root, gates=("critic",)) as held:
            await held.coord.release("actor/0", "actor/1")
            if is_async:
                held.critic.save_async("critic", writes("same"), 10)
            else:
                await held.run(held.critic.save_sync, writes("same"), 10)
            await held.coord.save(10)

    for name in ("sync", "async"):
        live(life(tmp_path / name, is_async=name == "async"))
    folders = [tmp_path / name / "step-10/external/critic" for name in ("sync", "async")]
    same, _, _ = filecmp.cmpfiles(folders[0], folders[1], ["state.txt"], shallow=False)
    assert same == ["state.txt"]


def test_s7_nothing_that_follows_a_commit_moves_before_it(tmp_path: Path) -> None:
    told: list[int] = []

    async def life() -> None:
        async with job(tmp_path, on_commit=lambda commit: told.append(commit.step)) as held:
            slow = Held()
            saving = asyncio.ensure_future(held.coord.save(10))
            held.critic.save_async("critic", slow, 10)
            assert slow.begun.wait(30)
            await held.save_actors(10)
            await held.run(held.actors[0].wait_all)
            assert (held.steps(), told) == ((), [])
            assert "latest" not in os.listdir(tmp_path)
            slow.go_on.set()
            await saving
            assert held.steps() == (10,)

    live(life())
    assert told == [10]


# -- C10, C11 ----------------------------------------------------------------------------------


def test_c10_a_training_step_that_raises_commits_nothing(tmp_path: Path) -> None:
    """All writers are done, and the step is not wanted: it is not committed, also at exit."""

    async def life() -> None:
        async with job(tmp_path) as held:
            await held.save_all(10)
            await held.wait_all()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        live(life())
    assert ss.open(tmp_path).steps() == ()


def test_c11_weights_and_full_saves_of_one_step_do_not_count_for_each_other(
    tmp_path: Path,
) -> None:
    """Two components of one writer: each must be there, whatever the other has done."""

    async def life() -> None:
        async with job(tmp_path, gates=("critic", "critic/weights")) as held:
            await held.coord.release("actor/0", "actor/1")
            saving = asyncio.ensure_future(held.coord.save(10))
            await held.run(held.critic.save_sync, writes("full"), 10)
            with pytest.raises(errors.InvalidInput, match="each save counts once"):
                await held.run(held.critic.save_sync, writes("again"), 10)
            assert not saving.done()
            assert held.steps() == ()
            held.critic.save_async("weights", writes("weights"), 10)
            await saving

    live(life())
    found = ss.open(tmp_path).step(10)
    assert {one.name for one in found.manifest.components} == {"critic", "weights"}
    with open(f"{found.path}/external/critic/state.txt", encoding="utf-8") as file:
        assert file.read() == "full"


# -- wrong use ---------------------------------------------------------------------------------


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    async def life() -> None:
        with pytest.raises(errors.InvalidInput, match="not admitted"):
            ss.Participant("critic").save_async("critic", writes("c"), 1)
        async with job(tmp_path) as held:
            with pytest.raises(errors.InvalidInput, match="expected one of critic"):
                await held.run(lambda: held.critic.save_sync(writes("c"), 10, name="model"))
            held.critic.save_async("model", writes("c"), 10)
            with pytest.raises(errors.InvalidInput, match="expected one of critic"):
                await held.run(held.critic.wait_all)
            saving = asyncio.ensure_future(held.coord.save(10))
            await asyncio.sleep(0)
            with pytest.raises(errors.InvalidInput, match="not decided yet"):
                await held.coord.save(10)
            await held.save_all(10)
            await saving
            with pytest.raises(errors.StepExists):
                await held.coord.save(10)
            other = participant("buffer")
            await held.coord.admit(*ss.in_process(other))
            with pytest.raises(errors.InvalidInput, match="role buffer: a coordinator with gates"):
                await held.coord.save(20)

    live(life())


def test_a_coordinator_without_gates_refuses_both_ways(tmp_path: Path) -> None:
    async def life() -> None:
        async with ss.Coordinator(tmp_path, deadlines=PATIENT) as coord:
            critic = participant("critic")
            critic.add("critic", ss.External(load=print))
            process = ss.in_process(critic)
            await coord.admit(*process)
            with pytest.raises(errors.InvalidInput, match="its gates are none at all"):
                await asyncio.to_thread(critic.save_sync, writes("c"), 10)

    live(life())


def test_a_checkpointer_refuses_an_engine_that_does_not_save(tmp_path: Path) -> None:
    with ss.Checkpointer(tmp_path) as ckpt:
        ckpt.add("engine", ss.External(load=print))
        with pytest.raises(errors.InvalidInput, match="External has no save="):
            ckpt.save(1)


def test_an_empty_folder_fails_the_step_and_names_the_writer(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path, gates=("critic",)) as held:
            await held.coord.release("actor/0", "actor/1")
            own: list[str] = []
            try:
                await held.run(held.critic.save_sync, lambda _folder: None, 10)
            except errors.ParticipantFailed as error:  # it is known already
                own.append(str(error))
            with pytest.raises(errors.ParticipantFailed) as told:
                await held.coord.save(10)
            assert set(told.value.failures) == {"critic/0"}
            try:
                await held.run(held.critic.wait_all)
            except errors.ParticipantFailed as error:
                own.append(str(error))
            assert len(own) == 1, "told once, as soon as it is known"
            assert "critic" in own[0]

    live(life())


def test_a_role_that_is_admitted_in_part_fails_each_step(tmp_path: Path) -> None:
    async def life() -> None:
        async with job(tmp_path) as held:
            await held.coord.release("actor/1")
            with pytest.raises(errors.ParticipantFailed, match="expected all of actor/0, actor/1"):
                await held.run(held.actors[0].save_sync, writes("a"), 10)

    live(life())


@pytest.mark.parametrize("naive", [False, True])
def test_a_writer_that_finds_no_thread_ends_the_step_at_once(
    naive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller must not wait write_s for it."""
    if naive:
        monkeypatch.setattr(GatedPart, "failed", lambda *_: None)
        monkeypatch.setattr(Slots, "_raise_failures", lambda _: None)

    async def run() -> None:
        limits = dataclasses.replace(PATIENT, write_s=1.0 if naive else 1e6, close_s=1.0)
        async with job(tmp_path, limits) as held:
            with no_more_threads(), pytest.raises(errors.ParticipantFailed, match="ulimit -u"):
                held.critic.save_async("critic", writes("c"), 10)
            kind = errors.CommitTimeout if naive else errors.ParticipantFailed
            with pytest.raises(kind) as found:
                await held.coord.save(10)
            assert ("ulimit -u" in str(found.value)) is not naive
            if not naive:
                await held.save_all(11)
                await held.wait_all()
                assert (await held.coord.save(11)).step == 11

    live(run())
