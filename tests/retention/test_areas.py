"""Folders in `superseded/` and `trash/`: what becomes of each, and why."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import NOW_S, carry_out, plan_for, prune_now, steps_of
from tests.steps._kit import Root, attempt_id, overwrite

from stepseal.errors import StorageUnavailable
from stepseal.retention import AsideJudgement, Retention, latest, plan_prune
from stepseal.steps import Removal
from stepseal.steps._claims import INCARNATIONS
from stepseal.steps._leases import release_lease, take_lease
from stepseal.steps._pins import PINS
from stepseal.steps._roots import SUPERSEDED, TRASH
from stepseal.storage import create_durable, remove_tree
from stepseal.testing import FaultyStorage

if TYPE_CHECKING:
    from stepseal.retention import Plan
    from stepseal.storage import ReadHandle, Storage

LONG_S = 1e6


def trashed(storage: Storage) -> Root:
    """Steps 10 to 30 of which 10 and 20 lie whole in the trash, as a job left them there."""
    root = Root(storage)
    for step in (10, 20, 30):
        root.commit(step)
    prune_now(storage, root, trash_grace_s=LONG_S)
    return root


def judgements(plan: Plan) -> dict[str, tuple[str, str]]:
    return {v.name.split(".")[0]: (v.action, v.reason) for v in plan.trash}


def test_whole_steps_in_the_trash_stay_for_their_grace(storage: Storage) -> None:
    root = trashed(storage)
    plan = plan_for(storage, root, now_s=NOW_S + 3600, trash_grace_s=7200)
    why = "pruned 1.0 h ago, kept in the trash for 2.0 h"
    assert judgements(plan) == {"step-10": ("keep", why), "step-20": ("keep", why)}
    later = plan_for(storage, root, now_s=NOW_S + 7200, trash_grace_s=7200)
    assert {action for action, _ in judgements(later).values()} == {"delete"}


def test_what_lies_there_already_may_have_a_grace_of_its_own(storage: Storage) -> None:
    root = trashed(storage)
    plan = plan_prune(
        Removal(storage, lambda: NOW_S + 3600),
        root.run_id,
        Retention(latest(1)),
        inspect=lambda *_: (),
        trash_grace_s=86_400,
    )
    assert {action for action, _ in judgements(plan).values()} == {"keep"}


def test_a_protected_step_goes_back_whatever_its_age(storage: Storage) -> None:
    root = trashed(storage)
    create_durable(storage, f"{PINS}/step-10.json", b"{}")
    take_lease(storage, 20, ttl_s=LONG_S, now_s=NOW_S)
    plan = plan_for(storage, root, trash_grace_s=LONG_S)
    assert judgements(plan) == {
        "step-10": ("put back", "pinned"), "step-20": ("put back", "being read (leased)"),
    }  # fmt: skip
    report = prune_now(storage, root, trash_grace_s=LONG_S)
    assert sorted(report.put_back_trash.values()) == ["being read (leased)", "pinned"]
    assert report.put_back == {}
    assert steps_of(storage) == ["step-10", "step-20", "step-30"]


def keys(storage: Storage) -> list[str]:
    return [f"{TRASH}/{entry.name}" for entry in storage.list_dir(TRASH)]


def test_what_is_protected_no_more_when_it_is_its_turn_is_left_to_the_next_prune(
    storage: Storage,
) -> None:
    root = trashed(storage)
    lease = take_lease(storage, 10, ttl_s=LONG_S, now_s=NOW_S)
    plan = plan_for(storage, root, trash_grace_s=LONG_S)
    release_lease(storage, lease)
    report = carry_out(storage, plan, Retention(latest(1)))
    assert (report.removed_trash, report.put_back_trash) == ([], {})
    assert len(keys(storage)) == 2


def test_a_folder_that_is_of_another_attempt_or_of_none_goes_back(storage: Storage) -> None:
    root = trashed(storage)
    first, second = keys(storage)
    overwrite(storage, f"{first}/manifest.json", b"{}")
    storage.rename(second, second.replace(attempt_id(1002), attempt_id(7)))
    assert judgements(plan_for(storage, root)) == {
        "step-10": ("put back", "its manifest is damaged"),
        "step-20": ("put back", "another attempt had taken its place"),
    }


def test_without_a_good_step_no_whole_folder_is_deleted(storage: Storage) -> None:
    root = trashed(storage)
    aside = f"step-5.1.{attempt_id(5)}.{1000:08x}{'0' * 8}"
    storage.make_dir(f"{SUPERSEDED}/{aside}")
    overwrite(storage, "step-30/manifest.json", b"{}")
    plan = plan_for(storage, root)
    why = "no step is known to be good to resume from: nothing is removed"
    assert judgements(plan) == {"step-10": ("keep", why), "step-20": ("keep", why)}
    assert plan.superseded == (AsideJudgement(aside, keep=True, reason=why),)
    report = prune_now(storage, root)
    assert (report.removed_trash, report.removed_superseded) == ([], [])
    assert len(keys(storage)) == 2


@pytest.mark.parametrize("lost", [False, True])
def test_a_claim_that_cannot_be_read_keeps_what_is_in_the_trash(
    storage: Storage, lost: bool
) -> None:
    root = Root(storage)
    root.commit(10)
    root.claim(root.head)
    for step in (20, 30):
        root.commit(step)
    prune_now(storage, root, trash_grace_s=LONG_S)
    record = f"{INCARNATIONS}/2.json"
    if lost:
        storage.remove_file(record)
        remove_tree(storage, "step-30")  # the trash alone tells of incarnation 2
    else:
        overwrite(storage, record, b"{}")
    plan = plan_for(storage, root)
    if lost:
        assert "incarnations/2.json is missing" in judgements(plan)["step-20"][1]
        assert judgements(plan)["step-20"][0] == "keep"
        assert not prune_now(storage, root).removed_trash
    else:  # 20 is of the newest incarnation itself
        assert judgements(plan)["step-20"][0] == "delete"


def test_every_other_name_in_the_trash_has_its_reason(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    moved = f"step-9.1.{attempt_id(1)}.{1000:08x}{'0' * 8}"
    for name in ("mine", moved, f"{moved}.deleting", f"step-9.1.{attempt_id(1)}"):
        storage.make_dir(f"{TRASH}/{name}")
    plan = plan_for(storage, root)
    assert {v.name.removeprefix(moved): (v.action, v.reason) for v in plan.trash} == {
        "mine": ("keep", "not a name that stepseal gives"),
        f"step-9.1.{attempt_id(1)}": ("keep", "not a name that stepseal gives"),
        "": ("keep", "left by a save: the next start of the job sweeps it"),
        ".deleting": ("delete", "its deletion began earlier and is finished"),
    }
    assert prune_now(storage, root).removed_trash == [f"{moved}.deleting"]
    assert len(keys(storage)) == 3


def test_what_cannot_be_read_in_the_trash_stays_and_stops_no_prune(storage: Storage) -> None:
    root = trashed(storage)
    root.commit(40)

    class Rotten(FaultyStorage):
        def open_read(self, key: str) -> ReadHandle:
            if TRASH in key:
                raise StorageUnavailable("no answer", errno=errno.EIO)
            return super().open_read(key)

    plan = plan_for(Rotten(storage), root)
    assert {action for action, _ in judgements(plan).values()} == {"keep"}
    assert all("cannot be read" in reason for _, reason in judgements(plan).values())
    assert [v.keep for v in plan.steps] == [False, True]


def test_a_root_without_these_folders_has_no_judgements(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    for area in (SUPERSEDED, TRASH):
        remove_tree(storage, area)
    plan = plan_for(storage, root)
    assert (plan.superseded, plan.trash) == ((), ())


def test_what_another_prune_took_out_of_the_trash_is_not_reported(storage: Storage) -> None:
    root = trashed(storage)
    plan = plan_for(storage, root)
    for key in keys(storage):
        remove_tree(storage, key)
    report = carry_out(storage, plan, Retention(latest(1)))
    assert (report.removed_trash, report.put_back_trash, report.failures) == ([], {}, [])
