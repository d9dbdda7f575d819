from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import NOW_S, plan_for, prune_now
from tests.steps._kit import Root, attempt_id, damage, overwrite

from stepseal.layout import Area, seal, unix_time
from stepseal.steps._catalog import read_step
from stepseal.steps._claims import INCARNATIONS, claim
from stepseal.steps._folders import FolderName
from stepseal.steps._pins import pin
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import read_bytes, remove_tree
from stepseal.testing import FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.retention import Plan
    from stepseal.storage import Entry, Storage


def actions(plan: Plan) -> dict[int, bool]:
    return {judgement.step: judgement.keep for judgement in plan.steps}


def test_a_plan_says_something_about_every_step_and_changes_nothing(storage: Storage) -> None:
    root = Root(storage)
    for step in (9, 10, 11, 12):
        root.commit(step)
    damage(storage, 11)
    storage.make_dir("step-13")
    plan = plan_for(storage, root, keep=2)
    assert actions(plan) == {9: False, 10: True, 11: True, 12: True, 13: True}
    assert actions(plan_for(storage, root, keep=3)) == {
        9: True,
        10: True,
        11: True,
        12: True,
        13: True,
    }
    assert plan.incarnation == 1
    assert [e.name for e in storage.list_dir("") if e.name.startswith("step-")] == [
        "step-10", "step-11", "step-12", "step-13", "step-9",
    ]  # fmt: skip


def test_a_step_whose_files_are_gone_does_not_count(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    storage.remove_file("step-30/parts/trainer/0.json")
    plan = plan_for(storage, root)
    assert actions(plan) == {10: False, 20: True, 30: True}
    assert plan.steps[2].reasons[0].startswith("damaged: parts/trainer/0.json")


def test_the_parent_of_the_newest_incarnation_stays(storage: Storage) -> None:
    root = Root(storage)
    parent = root.commit(10)
    root.claim(parent)
    for step in (20, 30, 40):
        root.commit(step)
    assert actions(plan_for(storage, root)) == {10: True, 20: False, 30: False, 40: True}


def test_steps_outside_the_lineage_stay_for_their_grace(storage: Storage) -> None:
    root = Root(storage)
    parent = root.commit(10)
    root.commit(20)
    root.claim(parent)
    root.commit(30)
    saved_at_s = prune_time(root)
    assert actions(plan_for(storage, root, now_s=saved_at_s + 3600))[20]
    assert not actions(plan_for(storage, root, now_s=saved_at_s + 90_000))[20]


def test_the_grace_of_old_steps_begins_when_they_leave_the_lineage(storage: Storage) -> None:
    """Whoever restores an old step by mistake finds the newer ones, however old they are."""
    root = Root(storage)
    parent = root.commit(10)
    root.commit(20)
    number = claim(storage, parent, now_s=NOW_S)
    assert actions(plan_for(storage, root, now_s=NOW_S + 3600))[20]
    assert not actions(plan_for(storage, root, now_s=NOW_S + 90_000))[20]
    key = f"{INCARNATIONS}/{number}.json"
    record = json.loads(read_bytes(storage, key, 1 << 14))["body"]
    overwrite(storage, key, seal(record | {"claimed_at": "some day"}))
    assert actions(plan_for(storage, root, now_s=NOW_S + 90_000))[20]


@pytest.mark.parametrize("ending", ["Z", ".5Z", ".123456+00:00"])
def test_every_time_that_a_manifest_may_say_is_understood(storage: Storage, ending: str) -> None:
    root = Root(storage)
    parent = root.commit(10)
    staging, manifest = root.prepare(20)
    root.publish(staging, dataclasses.replace(manifest, created_at=f"2033-05-18T03:33:20{ending}"))
    root.claim(parent)
    root.commit(30)
    assert actions(plan_for(storage, root, now_s=NOW_S + 3600))[20]
    assert not actions(plan_for(storage, root, now_s=NOW_S + 90_000))[20]


def prune_time(root: Root) -> float:
    manifest = read_step(root.storage, 30, root.run_id).manifest
    assert manifest is not None
    return unix_time(manifest.created_at)


def test_superseded_folders_go_after_their_grace_unless_pinned(storage: Storage) -> None:
    root = Root(storage)
    parent = root.commit(10)
    for step in (20, 30):
        root.commit(step)
    root.claim(parent)
    for step in (20, 30):
        root.commit(step)
    storage.make_dir(f"{SUPERSEDED}/mine")
    pin(storage, 20, root.run_id)
    plan = plan_for(storage, root)
    kept = {aside.name.split(".")[0]: aside.keep for aside in plan.superseded}
    assert kept == {"mine": True, "step-20": True, "step-30": False}
    young = plan_for(storage, root, now_s=prune_time(root) + 60)
    assert all(aside.keep for aside in young.superseded)
    report = prune_now(storage, root)
    assert [name.split(".")[0] for name in report.removed_superseded] == ["step-30"]
    assert [e.name.split(".")[0] for e in storage.list_dir(SUPERSEDED)] == ["mine", "step-20"]


def test_a_root_that_nobody_claimed_has_an_empty_plan() -> None:
    storage = MemoryStorage()
    root = Root(storage)
    plan = plan_for(storage, root, now_s=NOW_S)
    assert (plan.incarnation, plan.steps, plan.superseded) == (0, (), ())


def test_steps_that_cannot_be_resumed_are_not_counted_and_stay(storage: Storage) -> None:
    root = Root(storage)
    for step in (10, 20, 30):
        if step == 20:
            staging, manifest = root.prepare(step)
            root.publish(staging, dataclasses.replace(manifest, resumable=False))
        else:
            root.commit(step)
    assert actions(plan_for(storage, root)) == {10: False, 20: True, 30: True}


def test_a_plan_of_steps_has_no_publications(storage: Storage) -> None:
    """Also no hidden ones: a prune of steps would put them back among the steps."""
    root = Root(storage)
    root.commit(10)
    for version in (10, 20):
        root.publish_version(version)
    name = FolderName(10, 1, attempt_id(2), area=Area.PUBLISHED).moved(0, ".pruned")
    storage.rename("published/v-10", f"{TRASH}/{name}")
    plan = plan_for(storage, root)
    assert (actions(plan), plan.trash) == ({10: True}, ())


def test_a_copied_root_without_control_folders_has_a_plan(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    remove_tree(storage, SUPERSEDED)
    assert plan_for(storage, root).superseded == ()


def restored_elsewhere(storage: Storage) -> Root:
    """Steps 100 to 300, then a restore of 100 that saved 110 and 120; each claim by its number."""
    root = Root(storage)
    parent = root.commit(100)
    root.commit(200)
    root.commit(300)
    root.claim(parent)
    root.commit(110)
    root.commit(120)
    return root


def test_a_damaged_claim_makes_no_step_of_older_incarnations_go_or_count(storage: Storage) -> None:
    """Else step 300, which was left behind, passed for the newest, and the job's own steps went."""
    root = restored_elsewhere(storage)
    assert actions(plan_for(storage, root)) == {
        100: True, 110: False, 120: True, 200: False, 300: False,
    }  # fmt: skip
    overwrite(storage, f"{INCARNATIONS}/2.json", b"{}")
    plan = plan_for(storage, root)
    assert actions(plan) == {100: True, 110: False, 120: True, 200: True, 300: True}
    assert plan.doubt == "incarnations/2.json is damaged"
    assert plan.steps[0].reasons == (
        "incarnations/2.json is damaged: whether this step counts is not known",
    )
    assert "the newest good step" in plan.steps[2].reasons


@pytest.mark.parametrize("lost", [(2,), (1, 2)])
def test_lost_claims_make_everything_stay(storage: Storage, lost: tuple[int, ...]) -> None:
    root = restored_elsewhere(storage)
    for number in lost:
        storage.remove_file(f"{INCARNATIONS}/{number}.json")
    plan = plan_for(storage, root)
    assert all(actions(plan).values())
    assert plan.doubt == "incarnations/2.json is missing"
    assert prune_now(storage, root).removed == []


def test_a_lost_claim_that_no_step_depends_on_is_no_doubt(storage: Storage) -> None:
    root = restored_elsewhere(storage)
    storage.remove_file(f"{INCARNATIONS}/1.json")
    plan = plan_for(storage, root)
    assert plan.doubt == ""
    assert actions(plan) == {100: True, 110: False, 120: True, 200: False, 300: False}


def test_a_claim_and_a_commit_between_two_readings_are_no_lost_claim(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    root.commit(20)

    class Busy(FaultyStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            found = super().list_dir(key)
            if key == INCARNATIONS and root.number == 1:
                root.claim(root.head)
                root.commit(30)
            return found

    assert plan_for(Busy(storage), root).doubt == ""
