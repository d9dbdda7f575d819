"""Ranks with loops of their own beside a coordinator: saved, restored and closed at any time."""

from __future__ import annotations

import dataclasses
import os
import stat
import threading
from typing import TYPE_CHECKING

import pytest
from tests.actors._owners import Buffer, live
from tests.actors._ranks import Group, LoopRank, kinds
from tests.protocol._conversations import PATIENT

import stepseal as ss
from stepseal import errors
from stepseal.actors import Admission
from stepseal.actors._letters import put_letter, read_letter
from stepseal.storage import Access

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.actors import Coordinator

pytestmark = pytest.mark.slow


def coordinator(root: Path, freeze: tuple[str, ...] = (), **limits: float) -> Coordinator:
    deadlines = dataclasses.replace(PATIENT, **limits)
    return ss.Coordinator(root, order=("trainer", "buffer"), freeze=freeze, deadlines=deadlines)


def counted(root: Path, step: int) -> list[int]:
    """Return how far each rank was when it was captured."""
    found = ss.open(root).step(step)
    names = [one for one in found.manifest.participants if one.startswith("trainer/")]
    return [found.value("counter", name)["step"] for name in names]


def free(group: Group) -> Group:
    """Return a job without collectives: each rank steps as it likes."""

    def goes_on(rank: LoopRank) -> bool:
        del rank
        return not group.ending.is_set()

    group.goes_on = goes_on  # type: ignore[method-assign]
    return group


async def first_failure(coord: Coordinator) -> errors.ParticipantFailed:
    """Save until that fails."""
    for step in range(1, 1000):
        try:
            await coord.save(step)
        except errors.ParticipantFailed as error:
            return error
    raise AssertionError("no save failed")


@pytest.mark.parametrize(("size", "freeze"), [(1, ()), (2, ()), (2, ("trainer",)), (3, ())])
def test_every_save_is_at_one_step_of_all_ranks(
    tmp_path: Path, size: int, freeze: tuple[str, ...]
) -> None:
    root = tmp_path / "run"

    async def life() -> None:
        buffer = Buffer()
        async with coordinator(root, freeze) as coord:
            with Group(root, size) as group:
                await coord.admit(*group.members(), *ss.in_process(buffer.ss))
                for number in range(1, 11):
                    await coord.save(number)
                    (at,) = set(counted(root, number))
                    cut = ss.open(root).step(number).manifest.cut
                    assert cut["trainer.step"] == at
        assert group.errors() == [None] * size

    live(life())
    ats = [set(counted(root, number)) for number in range(1, 11)]
    assert sorted(ats, key=min) == ats


def test_ranks_are_restored_before_their_loop_and_in_it(tmp_path: Path) -> None:
    root = tmp_path / "run"

    async def first() -> None:
        async with coordinator(root) as coord:
            with Group(root, restores=True) as group:
                await coord.admit(*group.members())
                assert await coord.restore() is None
                await coord.save(1)
            assert [rank.resumed for rank in group.ranks] == [[None], [None]]

    async def second() -> None:
        (at,) = set(counted(root, 1))
        async with coordinator(root) as coord:
            with Group(root, restores=True) as group:
                await coord.admit(*group.members())
                assert (await coord.restore(check_only=True)) is not None
                assert (await coord.restore()) is not None
                await coord.save(2)
                (later,) = set(counted(root, 2))
                assert later > at
                assert (await coord.restore(1)) is not None
                await coord.save(3)
            assert group.errors() == [None, None]
            for rank in group.ranks:
                assert [one.step for one in rank.resumed if one is not None] == [1, 1]
        assert len(set(counted(root, 3))) == 1

    live(first())
    live(second())


def test_saves_before_the_first_restore_are_carried_out(tmp_path: Path) -> None:
    root = tmp_path / "run"

    async def life() -> None:
        async with coordinator(root) as coord:
            with Group(root, restores=True) as group:
                await coord.admit(*group.members())
                await coord.save(1)
                assert (await coord.restore()) is not None
                await coord.save(2)
            assert group.errors() == [None, None]

    live(life())
    assert counted(root, 1) == [0, 0]
    assert "trainer.step" not in ss.open(root).step(1).manifest.cut
    assert len(set(counted(root, 2))) == 1


def test_an_admission_is_for_its_owner_alone_and_is_taken_away(tmp_path: Path) -> None:
    root = tmp_path / "run"
    folder = root / ".stepseal/admissions/trainer"

    async def life() -> None:
        async with coordinator(root) as coord:
            admitting = coord.admit(*ss.ranks("trainer", 1))
            group = Group(root, 1)
            modes: list[int] = []
            real = group.ranks[0].own.admit

            def admit(admission: Admission) -> None:
                modes.append(stat.S_IMODE(os.stat(folder / "0.json").st_mode))
                real(admission)

            group.ranks[0].own.admit = admit  # type: ignore[method-assign, assignment]
            with group:
                await admitting
                await coord.save(1)
            assert modes == [0o600]
            assert os.listdir(folder) == []

    live(life())


def test_an_admission_that_was_left_behind_admits_nobody(tmp_path: Path) -> None:
    root = tmp_path / "run"
    ss.Coordinator(root)
    dead = Admission(
        "trainer/0", "old", str(root), "127.0.0.1", 1, "token", ss.__version__, PATIENT
    )
    put_letter(dead)

    async def life() -> None:
        async with coordinator(root) as coord:
            with Group(root, 1):
                await coord.admit(*ss.ranks("trainer", 1))
                await coord.save(1)

    live(life())
    assert read_letter(root, "trainer/0", Access()) is None
    put_letter(dead)
    alone = ss.Rank("trainer", rank=0, size=1)
    with pytest.raises(errors.CoordinatorLost, match="its admission does not count"):
        alone.wait_admitted(root, timeout_s=0.01)


def test_a_root_may_have_another_path_where_the_ranks_are(tmp_path: Path) -> None:
    ss.Coordinator(tmp_path / "run")
    elsewhere = Admission("trainer/0", "life", "/mnt/run", "h", 1, "t", ss.__version__, PATIENT)
    put_letter(dataclasses.replace(elsewhere, root=str(tmp_path / "run")))
    os.rename(tmp_path / "run", tmp_path / "mounted")
    found = read_letter(tmp_path / "mounted", "trainer/0", Access())
    assert found == dataclasses.replace(elsewhere, root=str(tmp_path / "mounted"))


def test_a_rank_that_nobody_admits_says_what_is_missing(tmp_path: Path) -> None:
    rank = ss.Rank("trainer", rank=0, size=1)
    with pytest.raises(errors.CoordinatorLost, match=r"found no admission there\. Does the contro"):
        rank.wait_admitted(tmp_path / "run", timeout_s=0.01)
    with pytest.raises(errors.InvalidInput, match="call wait_admitted"):
        rank.step(1)
    with pytest.raises(errors.InvalidInput, match="poll would begin a call where"):
        rank.poll()
    with pytest.raises(errors.InvalidInput, match="at least one rank"):
        ss.ranks("trainer", 0)


def test_a_rank_that_does_not_come_is_named_by_admit(tmp_path: Path) -> None:
    async def life() -> None:
        async with coordinator(tmp_path / "run", connect_s=0.2) as coord:
            with pytest.raises(
                errors.ParticipantFailed, match=r"trainer/0: did not connect within"
            ):
                await coord.admit(*ss.ranks("trainer", 1))

    live(life())


def test_different_numbers_at_one_safe_point_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"

    async def life() -> None:
        async with coordinator(root) as coord:
            with Group(root, skew={1: 1}) as group:
                await coord.admit(*group.members())
                with pytest.raises(errors.ParticipantFailed, match=r"trainer\.step"):
                    await coord.save(1)
        assert not (root / "step-1").exists()

    live(life())


def test_a_rank_that_never_comes_is_named_at_the_deadline_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    """Rank 1 is stuck in a step; rank 0 is free, as this job has no collectives."""
    root, stuck, passed = tmp_path / "run", threading.Event(), threading.Event()

    def at(rank: LoopRank) -> None:
        if rank.number == 1 and rank.state["step"] == 3:
            stuck.wait(60)
        if rank.number == 0 and rank.state["step"] > 20:
            passed.set()

    async def life() -> None:
        async with coordinator(root, capture_s=8.0) as coord:
            with free(Group(root, at=at)) as group:
                await coord.admit(*group.members())
                found = await first_failure(coord)
                assert found.kind == "commit_timeout"
                assert set(found.failures) == {"trainer/1"}
                assert "and did not come to number" in found.failures["trainer/1"]
                passed.clear()
                assert passed.wait(60), "rank 0 is still held"
                stuck.set()
        assert group.errors() == [None, None]

    live(life())


def test_a_rank_that_closes_makes_the_save_fail_and_holds_nobody(tmp_path: Path) -> None:
    """Rank 1 closes in its third step, whatever waits for it; rank 0 goes on."""
    root, passed = tmp_path / "run", threading.Event()

    def at(rank: LoopRank) -> None:
        if rank.number == 1 and rank.state["step"] == 3:
            rank.own.close()
        if rank.number == 0:
            passed.set()

    async def life() -> None:
        async with coordinator(root) as coord:
            with free(Group(root, at=at)) as group:
                await coord.admit(*group.members())
                found = await first_failure(coord)
                assert found.kind == "participant_failed"
                assert set(found.failures) == {"trainer/1"}
                assert "closed" in found.failures["trainer/1"]
                passed.clear()
                assert passed.wait(60), "rank 0 is still held"
                with pytest.raises(errors.ParticipantFailed, match="closed"):
                    await coord.save(1000)
        assert kinds(group.errors()) == ["None", "invalid_input"]

    live(life())


def test_a_released_rank_trains_on_and_one_that_lost_its_coordinator_says_so(
    tmp_path: Path,
) -> None:
    root, later = tmp_path / "run", threading.Event()

    def at(rank: LoopRank) -> None:
        if rank.state["step"] > 50:
            later.set()

    async def released() -> None:
        async with coordinator(root) as coord:
            with Group(root, at=at) as group:
                await coord.admit(*group.members())
                await coord.save(1)
                await coord.release("trainer/0", "trainer/1")
                for rank in group.ranks:
                    rank.state["step"] = 0
                later.clear()
                assert later.wait(60)
            assert group.errors() == [None, None]

    async def lost() -> None:
        group = Group(root)
        coord = coordinator(root)
        with group:
            await coord.admit(*group.members())
            await coord.restore()
            coord._driver._hub.close()
            for rank in group.ranks:
                rank.thread.join(60)
        assert "coordinator_lost" in kinds(group.errors())
        await coord.close()

    live(released())
    live(lost())
