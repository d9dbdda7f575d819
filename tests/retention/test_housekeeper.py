from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.retention._kit import NOW_S, inspect_with, prune_now, steps_of
from tests.steps._kit import FakeIndexer, Root, exists, overwrite

from stepseal.retention import Housekeeper, Retention, latest
from stepseal.steps import Removal
from stepseal.steps._leases import LEASES, take_lease
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import create_durable
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage


def keeper(storage: Storage, keep: int | None = None) -> Housekeeper:
    return housekeeper(storage, None if keep is None else Retention(latest(keep)))


def housekeeper(
    storage: Storage,
    retention: Retention | None,
    indexer: FakeIndexer | None = None,
    now_s: float = NOW_S,
) -> Housekeeper:
    inspect = inspect_with(storage, indexer)
    return Housekeeper(Removal(storage, lambda: now_s), retention, inspect)


def test_abandoned_staging_is_swept_by_the_next_incarnation_before_it_commits(
    storage: Storage,
) -> None:
    """Else what was left could fill the disk, and no start of the job would ever commit again."""
    root = Root(storage)
    root.commit(10)
    abandoned, _ = root.prepare(20)
    keeper(storage)(root.run_id, root.number, True)
    assert exists(storage, abandoned)
    root.claim(root.head)
    keeper(storage)(root.run_id, root.number, False)
    assert not exists(storage, abandoned)
    assert storage.list_dir(TRASH) == storage.list_dir(SUPERSEDED) == ()


def test_what_dead_readers_and_crashes_left_is_swept(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    take_lease(storage, 10, ttl_s=10, now_s=1000)
    alive = take_lease(storage, 10, ttl_s=10, now_s=NOW_S)
    old, young = f".tmp-{1000:08x}{'0' * 24}", f".tmp-{int(NOW_S):08x}{'0' * 24}"
    for folder in ("", ".stepseal/incarnations/", ".stepseal/pins/"):
        for name in (old, young, ".tmp-mine"):
            create_durable(storage, f"{folder}{name}", b"")
    keeper(storage)(root.run_id, root.number, True)
    assert [f"{LEASES}/{e.name}" for e in storage.list_dir(LEASES)] == [alive.key]
    for folder in ("", ".stepseal/incarnations", ".stepseal/pins"):
        names = {e.name for e in storage.list_dir(folder)}
        assert old not in names
        assert {young, ".tmp-mine"} <= names


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_what_fails_is_logged_and_tried_again(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    inner = MemoryStorage()
    root = Root(inner)
    root.commit(10)
    abandoned, _ = root.prepare(20)
    root.claim(root.head)
    root.commit(20)
    plan = [Fault(lambda verb, key: verb == "rename" and TRASH in key, Fail(number))]
    keep = keeper(FaultyStorage(inner, plan))
    with caplog.at_level(logging.WARNING):
        keep(root.run_id, root.number, True)
    assert "after the next commit" in caplog.text
    assert exists(inner, abandoned)
    keep(root.run_id, root.number, True)
    assert not exists(inner, abandoned)


def test_steps_are_pruned_although_something_cannot_be_swept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = MemoryStorage()
    root = Root(inner)
    root.commit(10)
    root.prepare(15)
    root.claim(root.head)
    for step in (20, 30, 40):
        root.commit(step)
    bad = [Fault(lambda _verb, key: "step-15" in key, Fail(errno.EPERM), sticky=True)]
    keeper(FaultyStorage(inner, bad), keep=1)(root.run_id, root.number, True)
    assert "after the next commit" in caplog.text
    assert steps_of(inner) == ["step-10", "step-40"]


def test_what_a_prune_began_is_finished_by_a_job_that_keeps_all(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    prune_now(storage, root, keep=2, trash_grace_s=1e6)  # 10, just moved
    dying = f"{TRASH}/step-20.1.{'a' * 32}.{1000:08x}{'0' * 8}.deleting"
    storage.rename("step-20", dying)
    keeper(storage)(root.run_id, root.number, True)
    assert [e.name.split(".")[0] for e in storage.list_dir(TRASH)] == ["step-10"]
    assert steps_of(storage) == ["step-30"]


def test_a_defect_is_logged_and_does_not_spread(caplog: pytest.LogCaptureFixture) -> None:
    root = Root(MemoryStorage())
    root.commit(10)

    class Broken(FakeIndexer):
        def inspect(self, *_: object, **__: object) -> list[str]:
            raise ZeroDivisionError

    housekeeper(root.storage, Retention(latest(1)), Broken())(root.run_id, root.number, True)
    assert "defect in housekeeping" in caplog.text


def test_only_the_current_incarnation_prunes(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    keep = keeper(storage, keep=1)
    root.claim(root.head)
    keep(root.run_id, 1, True)
    assert len(steps_of(storage)) == 3
    keep(root.run_id, 2, True)
    assert steps_of(storage) == ["step-30"]


def test_each_step_is_looked_at_once(storage: Storage) -> None:
    root = Root(storage)
    looks: list[str] = []

    class Counting(FakeIndexer):
        def inspect(self, storage: Storage, key: str, *args: Any, **options: Any) -> list[str]:  # noqa: ANN401
            looks.append(key)
            return list(super().inspect(storage, key, *args, **options))

    keep = housekeeper(storage, Retention(latest(2)), Counting())
    for step in (10, 20, 30):
        root.commit(step)
        keep(root.run_id, root.number, True)
    assert looks == ["step-10", "step-20", "step-30"]
    assert steps_of(storage) == ["step-20", "step-30"]


def test_damaged_steps_are_looked_at_again(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    indexer = FakeIndexer(problems=["missing"])
    keep = housekeeper(storage, Retention(latest(1)), indexer)
    keep(root.run_id, root.number, True)
    assert len(steps_of(storage)) == 3
    indexer.problems.clear()
    keep(root.run_id, root.number, True)
    assert steps_of(storage) == ["step-30"]


def test_what_could_not_be_removed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    inner = MemoryStorage()
    root = Root(inner)
    for step in (10, 20):
        root.commit(step)
    plan = [Fault(lambda verb, key: verb == "remove_file" and TRASH in key, Fail(errno.EIO))]
    keeper(FaultyStorage(inner, plan), keep=1)(root.run_id, root.number, True)
    assert "prune: " in caplog.text
    assert steps_of(inner) == ["step-20"]


def test_nothing_is_pruned_before_a_commit_of_the_own_incarnation(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    root.claim(root.head)
    keep = keeper(storage, keep=1)
    keep(root.run_id, root.number, False)
    assert len(steps_of(storage)) == 3
    keep(root.run_id, root.number, True)
    assert steps_of(storage) == ["step-30"]


def test_a_damaged_claim_is_warned_of_once(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    root = Root(storage)
    root.commit(10)
    root.claim(root.head)
    overwrite(storage, ".stepseal/incarnations/2.json", b"{}")
    keep = keeper(storage, keep=1)
    for step in (20, 30):
        root.commit(step)
        keep(root.run_id, root.number, True)
    assert caplog.text.count("incarnations/2.json is damaged") == 1
    assert steps_of(storage) == ["step-10", "step-30"]


def test_after_a_failed_sync_a_job_removes_nothing_more_and_the_next_start_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = MemoryStorage()
    root = Root(inner)
    root.commit(10)
    root.commit(20)
    plan = [Fault(lambda verb, key: verb == "sync_dir" and key == TRASH, Fail(errno.EIO))]
    keep = keeper(FaultyStorage(inner, plan), keep=1)
    keep(root.run_id, root.number, True)
    assert steps_of(inner) == ["step-20"]
    root.commit(30)
    keep(root.run_id, root.number, True)
    root.claim(root.head)
    keep(root.run_id, root.number, False)
    assert steps_of(inner) == ["step-20", "step-30"]
    assert len(inner.list_dir(TRASH)) == 1
    assert caplog.text.count("removes no more steps") == 1
    assert caplog.text.count("sync of .stepseal/trash") == 1
    keeper(inner, keep=1)(root.run_id, root.number, True)
    assert steps_of(inner) == ["step-30"]
    assert inner.list_dir(TRASH) == ()


def test_after_a_failed_sync_a_job_that_keeps_all_finishes_nothing_more() -> None:
    inner = MemoryStorage()
    root = Root(inner)
    root.commit(10)
    root.commit(20)
    prune_now(inner, root, trash_grace_s=1e6)
    plan = [Fault(lambda verb, key: verb == "sync_dir" and key == "", Fail(errno.EIO))]
    keep = housekeeper(FaultyStorage(inner, plan), None, now_s=NOW_S + 100_000)
    keep(root.run_id, root.number, True)
    root.claim(root.head)
    keep(root.run_id, root.number, True)
    assert len(inner.list_dir(TRASH)) == 1


def test_a_replaced_job_that_keeps_all_finishes_nothing(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(20)
    prune_now(storage, root, trash_grace_s=1e6)
    root.claim(root.head)
    keep = housekeeper(storage, None, now_s=NOW_S + 100_000)
    keep(root.run_id, 1, True)
    assert len(storage.list_dir(TRASH)) == 1
    keep(root.run_id, 2, True)
    assert storage.list_dir(TRASH) == ()
