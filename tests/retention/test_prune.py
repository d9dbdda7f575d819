"""Pruning removes what the plan says and nothing else, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import random
from typing import TYPE_CHECKING

import pytest
from tests.commit._kit import FakeFinisher, Root, attempt_id, exists
from tests.retention._kit import NOW_S, Meanwhile, plan_for, prune_now, steps_of

from stepseal.commit import PINS, SUPERSEDED, TRASH, list_steps, read_step, take_lease
from stepseal.commit._claims import claim
from stepseal.commit._resume import put_back_pruned
from stepseal.errors import CheckpointError, Corrupt, NotCurrent, StorageUnavailable
from stepseal.retention import Retention, latest, prune
from stepseal.storage import MemoryStorage, create_durable, make_dirs, remove_tree
from stepseal.testing import Fail, Fault, FaultyStorage, Lose
from stepseal.testing._storage_helpers import ODD_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import Entry, LocalStorage, Storage


def four(storage: Storage) -> Root:
    root = Root(storage)
    for step in (10, 20, 30, 40):
        root.commit(step)
    return root


def test_what_the_plan_says_is_gone_and_the_rest_is_whole(storage: Storage) -> None:
    root = four(storage)
    report = prune_now(storage, root, keep=2)
    assert report.removed == [10, 20]
    assert (report.put_back, report.failures) == ({}, [])
    assert steps_of(storage) == ["step-30", "step-40"]
    assert {entry.state for entry in list_steps(storage, root.run_id)} == {"committed"}
    assert storage.list_dir(TRASH) == ()
    assert prune_now(storage, root, keep=2).removed == []


def test_the_trash_keeps_a_step_for_its_grace(storage: Storage) -> None:
    root = four(storage)
    assert prune_now(storage, root, keep=3, trash_grace_s=100).removed == [10]
    assert len(storage.list_dir(TRASH)) == 1
    prune_now(storage, root, keep=3, trash_grace_s=100, now_s=NOW_S + 99)
    assert len(storage.list_dir(TRASH)) == 1
    prune_now(storage, root, keep=3, trash_grace_s=100, now_s=NOW_S + 100)
    assert storage.list_dir(TRASH) == ()


def happenings(storage: Storage, root: Root) -> dict[str, Callable[[], object]]:
    def pin_in_the_dark() -> None:
        create_durable(storage, ".stepseal/pins/step-10.json", b"{}")

    return {
        "pinned": pin_in_the_dark,
        "leased": lambda: take_lease(storage, 10, ttl_s=100, now_s=NOW_S),
    }


@pytest.mark.parametrize("what", ["pinned", "leased"])
def test_a_step_that_is_protected_after_the_move_goes_back(storage: Storage, what: str) -> None:
    root = four(storage)
    before = list_steps(storage, root.run_id)
    report = prune_now(Meanwhile(storage, happenings(storage, root)[what]), root, keep=3)
    assert what in report.put_back[10]
    assert report.removed == []
    assert list_steps(storage, root.run_id) == before
    assert storage.list_dir(TRASH) == ()


def test_a_newer_incarnation_stops_the_prune_and_the_step_goes_back(storage: Storage) -> None:
    root = four(storage)
    head = root.head
    before = list_steps(storage, root.run_id)
    with pytest.raises(NotCurrent):
        prune_now(Meanwhile(storage, lambda: Root(storage).claim(head)), root)
    assert list_steps(storage, root.run_id) == before


def test_a_plan_of_an_older_incarnation_is_void(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root)
    root.claim(root.head)
    with pytest.raises(NotCurrent):
        prune(storage, plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert len(steps_of(storage)) == 4


def test_a_step_that_was_replaced_since_the_plan_goes_back(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root)
    storage.rename("step-10", "mine")
    parent = next(e for e in list_steps(storage) if e.step == 20)
    other = Root(storage)
    other.number, other.head = root.number, parent.lineage()
    other.num_attempts = 100
    staging, manifest = other.prepare(10)
    other.publish(staging, manifest)
    report = prune(storage, plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert "another attempt" in report.put_back[10]
    assert exists(storage, "step-10/manifest.json")


def test_a_step_that_cannot_go_back_is_superseded(storage: Storage) -> None:
    root = four(storage)

    def meanwhile() -> None:
        create_durable(storage, ".stepseal/pins/step-10.json", b"{}")
        storage.make_dir("step-10")

    prune_now(Meanwhile(storage, meanwhile), root, keep=3)
    assert [e.name.split(".")[0] for e in storage.list_dir(SUPERSEDED)] == ["step-10"]


class Unreadable(FaultyStorage):
    """The pins cannot be listed once the step has moved."""

    def __init__(self, inner: Storage, error: CheckpointError) -> None:
        super().__init__(inner)
        self._error = error

    def list_dir(self, key: str) -> tuple[Entry, ...]:
        if key == PINS and super().list_dir(TRASH):
            raise self._error
        return super().list_dir(key)


@pytest.mark.parametrize(
    "error", [StorageUnavailable("no answer", errno=errno.EIO), Corrupt("a symlink")]
)
def test_guards_that_cannot_be_read_protect(storage: Storage, error: CheckpointError) -> None:
    root = four(storage)
    report = prune_now(Unreadable(storage, error), root, keep=3)
    assert steps_of(storage) == ["step-10", "step-20", "step-30", "step-40"]
    assert report.failures


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE, errno.EACCES])
def test_a_refusal_at_any_operation_harms_no_kept_step(number: int) -> None:
    for index in range(1000):
        inner = MemoryStorage()
        root = four(inner)
        kept = list_steps(inner, root.run_id)[2:]
        faulty = FaultyStorage(inner, [Fault(index, Fail(number))])
        with contextlib.suppress(StorageUnavailable):
            prune_now(faulty, root, keep=2)
        assert list_steps(inner, root.run_id)[-2:] == kept
        assert all(entry.state == "committed" for entry in list_steps(inner, root.run_id))
        prune_now(inner, root, keep=2)
        assert steps_of(inner) == ["step-30", "step-40"]
        if len(faulty.count.operations()) <= index:
            break
    assert index > 20


class Stop(BaseException):
    """Everything ends here, as by a crash."""


def die() -> None:
    raise Stop


class Crashing(FaultyStorage):
    """Stops before the operation of this number."""

    def __init__(self, inner: Storage, at: int) -> None:
        super().__init__(inner)
        self._at = at
        self.stopped = False

    def perform(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        if self._at == 0:
            self.stopped = True
            raise Stop
        self._at -= 1
        return super().perform(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("protected", [False, True])
def test_a_crash_at_any_operation_leaves_whole_steps_only(lossy: bool, protected: bool) -> None:
    """Also if power is lost with it, and if a reader holds the step when the next prune comes."""
    finisher = FakeFinisher()
    rng = random.Random(0)
    for at in range(1000):
        inner = MemoryStorage()
        root = four(inner)
        inner = inner.after_power_loss(lambda *_: 1.0) if lossy else inner
        crashing = Crashing(inner, at)
        with contextlib.suppress(Stop):
            prune_now(crashing, root, keep=2)
        if lossy:
            inner = inner.after_power_loss(lambda *_: rng.choice([0.0, 1.0]))
        if protected:
            take_lease(inner, 10, ttl_s=100, now_s=NOW_S)
        standing = list_steps(inner, root.run_id)
        assert {entry.step for entry in standing} >= {30, 40}
        root.storage = inner
        prune_now(inner, root, keep=2)
        for entry in list_steps(inner, root.run_id):
            assert entry.state == "committed"
            assert entry.manifest is not None
            assert not finisher.inspect(inner, entry.name, entry.manifest, exact=True)
        assert steps_of(inner)[-2:] == ["step-30", "step-40"]
        if not protected:
            assert steps_of(inner) == ["step-30", "step-40"]
            assert inner.list_dir(TRASH) == ()
        if not crashing.stopped:
            break
    assert at > 20


def test_a_move_whose_answer_was_lost_is_made_durable_before_anything_is_deleted() -> None:
    storage = MemoryStorage()
    root = four(storage)
    lost = FaultyStorage(storage, [Fault(lambda verb, _key: verb == "rename", Lose(errno.EIO))])
    plan = plan_for(storage, root, keep=3)
    prune(lost, plan, Retention(latest(3)), clock=lambda: NOW_S)
    after = storage.after_power_loss(lambda _kind, key: float(key != "step-10"))
    assert {entry.state for entry in list_steps(after)} == {"committed"}


def test_a_step_goes_only_when_the_newer_one_is_durable() -> None:
    storage = MemoryStorage()
    root = four(storage)
    storage.rename("step-40", "moved")
    storage.sync_dir("")
    storage.rename("moved", "step-40")  # as by a commit that did not sync the root yet
    crashing = FaultyStorage(storage, [Fault(lambda verb, _key: verb == "rename", Fail(errno.EIO))])
    prune(crashing, plan_for(storage, root), Retention(latest(1)), clock=lambda: NOW_S)
    assert "step-40" in steps_of(storage.after_power_loss(lambda *_: 0.0))


def test_a_restart_finds_its_parent_although_a_replaced_job_died_pruning_it(
    storage: Storage,
) -> None:
    root = four(storage)
    plan = plan_for(storage, root)

    parent = list_steps(storage)[0].lineage()

    def claim_and_die() -> None:
        claim(storage, parent)
        raise Stop

    with pytest.raises(Stop):
        prune(Meanwhile(storage, claim_and_die), plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert "step-10" not in steps_of(storage)
    put_back_pruned(storage)
    assert "step-10" in steps_of(storage)
    put_back_pruned(storage)


def test_a_restart_finds_what_was_committed_in_the_place_of_a_step_when_its_prune_died(
    storage: Storage,
) -> None:
    root = four(storage)
    root.claim(list_steps(storage)[0].lineage())  # leaves 20 to 40 outside the lineage
    root.commit(15)
    plan = plan_for(storage, root)
    assert [v.step for v in plan.steps if not v.keep] == [20, 30, 40]
    newest = root.commit(20)
    with pytest.raises(Stop):
        prune(Meanwhile(storage, die), plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert "step-20" not in steps_of(storage)
    put_back_pruned(storage)
    assert read_step(storage, 20, root.run_id).lineage() == newest


def test_what_another_prune_finishes_meanwhile_is_no_failure(storage: Storage) -> None:
    root = four(storage)
    report = prune_now(Meanwhile(storage, lambda: prune_now(storage, root)), root)
    assert report.failures == []
    assert steps_of(storage) == ["step-40"]
    assert storage.list_dir(TRASH) == ()


def test_a_folder_that_is_being_deleted_is_never_put_back(storage: Storage) -> None:
    root = four(storage)

    class Halfway(FaultyStorage):
        def remove_file(self, key: str) -> None:
            super().remove_file(key)
            raise Stop

    with pytest.raises(Stop):
        prune_now(Halfway(storage), root, keep=3)
    take_lease(storage, 10, ttl_s=100, now_s=NOW_S)
    prune_now(storage, root, keep=3)
    assert steps_of(storage) == ["step-20", "step-30", "step-40"]
    assert storage.list_dir(TRASH) == ()


def test_names_that_stepseal_did_not_give_stay(storage: Storage) -> None:
    root = four(storage)
    names = ["mine", "step-1.pruned", f"step-1.1.{attempt_id(1)}.{'0' * 15}.pruned", "step-1.1.x"]
    for name in names:
        storage.make_dir(f"{TRASH}/{name}")
    prune_now(storage, root)
    assert sorted(e.name for e in storage.list_dir(TRASH)) == sorted(names)


def test_symlinks_are_removed_and_never_followed(local: LocalStorage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    root = four(local)
    step = tmp_path / "root" / "step-10"
    (step / "link").symlink_to(outside)
    (step / "parts" / "file").symlink_to(outside / "precious")
    assert prune_now(local, root, keep=3).removed == [10]
    assert (outside / "precious").read_text() == "mine"


def test_what_cannot_be_removed_stops_no_other_removal(storage: Storage) -> None:
    class Damaged(FaultyStorage):
        def remove_file(self, key: str) -> None:
            if "step-10" in key:
                raise Corrupt(f"{key}: expected a directory, found a symlink.", path=key)
            super().remove_file(key)

    root = four(storage)
    report = prune_now(Damaged(storage), root, keep=1)
    assert report.removed == [20, 30]
    assert len(report.failures) == 2  # once as a step, once in the trash
    assert steps_of(storage) == ["step-40"]
    prune_now(storage, root, keep=1)
    assert storage.list_dir(TRASH) == ()


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_odd_name_in_a_step_is_pruned_with_it(local: LocalStorage, name: str) -> None:
    root = four(local)
    create_durable(local, f"step-10/{name}", b"")
    make_dirs(local, f"step-20/parts/{name}/{name}")
    report = prune_now(local, root, keep=1)
    assert (report.removed, report.failures) == ([10, 20, 30], [])
    assert local.list_dir(TRASH) == ()


def test_a_step_that_became_a_symlink_stays(local: LocalStorage, tmp_path: Path) -> None:
    root = four(local)
    (tmp_path / "root" / "step-10").rename(tmp_path / "elsewhere")
    (tmp_path / "root" / "step-10").symlink_to(tmp_path / "elsewhere")
    assert prune_now(local, root, keep=3).removed == []
    assert (tmp_path / "elsewhere" / "manifest.json").exists()
    assert (tmp_path / "root" / "step-10").is_symlink()


def test_what_somebody_else_removed_is_not_reported(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root, keep=3)
    storage.rename("step-10", "mine")
    report = prune(storage, plan, Retention(latest(3)), clock=lambda: NOW_S)
    assert (report.removed, report.failures) == ([], [])


def test_two_prunes_at_once_do_not_disturb_each_other(storage: Storage) -> None:
    """The other one finishes what this one has begun: superseded folders, and the trash."""
    root = Root(storage)
    parent = root.commit(10)
    root.commit(20)
    root.claim(parent)
    root.commit(20)
    root.commit(30)
    plan = plan_for(storage, root)
    assert [aside.keep for aside in plan.superseded] == [False]
    other = prune(storage, plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert len(other.removed_superseded) == 1
    report = prune(storage, plan, Retention(latest(1)), clock=lambda: NOW_S)
    assert (report.removed, report.removed_superseded, report.failures) == ([], [], [])


def test_a_folder_that_somebody_else_deletes_is_done(storage: Storage) -> None:
    root = four(storage)

    def delete() -> None:
        for entry in storage.list_dir(TRASH):
            remove_tree(storage, f"{TRASH}/{entry.name}")

    report = prune_now(Meanwhile(storage, delete, after=".deleting"), root, keep=3)
    assert (report.removed, report.failures) == ([10], [])


def test_a_root_without_claims_is_pruned_by_the_same_rules(storage: Storage) -> None:
    root = four(storage)
    storage.remove_file(".stepseal/incarnations/1.json")
    assert prune_now(storage, root, keep=3).removed == [10]
