"""Pruning removes what the plan says and nothing else, whatever happens meanwhile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import (
    NOW_S,
    Meanwhile,
    Stop,
    carry_out,
    die,
    four,
    plan_for,
    prune_now,
    steps_of,
)
from tests.steps._kit import Root, attempt_id, exists

from stepseal.errors import Corrupt, NotCurrent
from stepseal.retention import Retention, latest
from stepseal.steps._catalog import list_steps, read_step
from stepseal.steps._claims import INCARNATIONS, claim
from stepseal.steps._hidden import put_back_pruned
from stepseal.steps._leases import take_lease
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import create_durable, make_dirs, remove_tree
from stepseal.testing import FaultyStorage
from stepseal.testing._storage_helpers import ODD_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import LocalStorage, Storage


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
        carry_out(storage, plan, Retention(latest(1)))
    assert len(steps_of(storage)) == 4


def test_a_step_that_was_replaced_since_the_plan_goes_back(storage: Storage) -> None:
    root = four(storage)
    plan = plan_for(storage, root)
    storage.rename("step-10", "mine")
    parent = next(e for e in list_steps(storage) if e.step == 20)
    other = Root(storage)
    other.number, other.head = root.number, parent.ref()
    other.num_attempts = 100
    staging, manifest = other.prepare(10)
    other.publish(staging, manifest)
    report = carry_out(storage, plan, Retention(latest(1)))
    assert "another attempt" in report.put_back[10]
    assert exists(storage, "step-10/manifest.json")


def test_a_step_that_cannot_go_back_is_superseded(storage: Storage) -> None:
    root = four(storage)

    def meanwhile() -> None:
        create_durable(storage, ".stepseal/pins/step-10.json", b"{}")
        storage.make_dir("step-10")

    prune_now(Meanwhile(storage, meanwhile), root, keep=3)
    assert [e.name.split(".")[0] for e in storage.list_dir(SUPERSEDED)] == ["step-10"]


def test_a_restart_finds_its_parent_although_a_replaced_job_died_pruning_it(
    storage: Storage,
) -> None:
    root = four(storage)
    plan = plan_for(storage, root)

    parent = list_steps(storage)[0].ref()

    def claim_and_die() -> None:
        claim(storage, parent, now_s=NOW_S)
        raise Stop

    with pytest.raises(Stop):
        carry_out(Meanwhile(storage, claim_and_die), plan, Retention(latest(1)))
    assert "step-10" not in steps_of(storage)
    put_back_pruned(storage, NOW_S)
    assert "step-10" in steps_of(storage)
    put_back_pruned(storage, NOW_S)


def test_a_restart_finds_what_was_committed_in_the_place_of_a_step_when_its_prune_died(
    storage: Storage,
) -> None:
    root = four(storage)
    root.claim(list_steps(storage)[0].ref())  # leaves 20 to 40 outside the lineage
    root.commit(15)
    plan = plan_for(storage, root)
    assert [v.step for v in plan.steps if not v.keep] == [20, 30, 40]
    newest = root.commit(20)
    with pytest.raises(Stop):
        carry_out(Meanwhile(storage, die), plan, Retention(latest(1)))
    assert "step-20" not in steps_of(storage)
    put_back_pruned(storage, NOW_S)
    assert read_step(storage, 20, root.run_id).ref() == newest


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
    assert len(report.failures) == 1
    assert list(report.in_trash) == [10]
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
    report = carry_out(storage, plan, Retention(latest(3)))
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
    other = carry_out(storage, plan, Retention(latest(1)))
    assert len(other.removed_superseded) == 1
    report = carry_out(storage, plan, Retention(latest(1)))
    assert (report.removed, report.removed_superseded, report.failures) == ([], [], [])


def test_a_folder_that_somebody_else_deletes_is_done(storage: Storage) -> None:
    root = four(storage)

    def delete() -> None:
        for entry in storage.list_dir(TRASH):
            remove_tree(storage, f"{TRASH}/{entry.name}")

    report = prune_now(Meanwhile(storage, delete, after=".deleting"), root, keep=3)
    assert (report.removed, report.failures) == ([10], [])


def test_a_root_without_claims_keeps_everything(storage: Storage) -> None:
    root = four(storage)
    storage.remove_file(f"{INCARNATIONS}/1.json")
    assert prune_now(storage, root).removed == []
    assert len(steps_of(storage)) == 4


def test_a_claim_voids_a_plan_of_a_root_that_nobody_had_claimed(storage: Storage) -> None:
    root = four(storage)
    plan = replace(plan_for(storage, root), incarnation=0)
    with pytest.raises(NotCurrent):
        carry_out(storage, plan, Retention(latest(1)))
    assert len(steps_of(storage)) == 4
    storage.remove_file(f"{INCARNATIONS}/1.json")
    assert carry_out(storage, plan, Retention(latest(1))).removed == [10, 20, 30]
