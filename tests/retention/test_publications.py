"""The newest publications stay, and so does what is being read; steps do not count for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.retention._kit import NOW_S, Meanwhile, Stop, die, inspect_with, plan_for
from tests.steps._kit import Root, overwrite

from stepseal.errors import InvalidInput, NotCurrent
from stepseal.layout import MANIFEST, Area
from stepseal.retention import Housekeeper, Retention, check_publish_keep, latest
from stepseal.retention._publications import outdated, prune_published
from stepseal.steps import Removal
from stepseal.steps._catalog import list_steps
from stepseal.steps._claims import claim
from stepseal.steps._leases import release_lease, take_lease
from stepseal.steps._posix import PosixSteps
from stepseal.steps._reading import Reading
from stepseal.steps._roots import TRASH
from stepseal.storage import remove_tree
from stepseal.testing import FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.steps import PruneReport
    from stepseal.storage import Storage


def published(storage: Storage, *versions: int) -> Root:
    root = Root(storage)
    for version in versions:
        root.publish_version(version)
    return root


def prune_now(storage: Storage, root: Root, keep: int = 2) -> PruneReport | None:
    removal, inspect = Removal(storage, lambda: NOW_S), inspect_with(storage)
    return prune_published(removal, root.run_id, root.number, keep, inspect=inspect)


def versions_of(storage: Storage) -> list[str]:
    return [entry.name for entry in storage.list_dir("published")]


def manifest_of(storage: Storage, version: int) -> Manifest:
    manifest = PosixSteps(storage).entry(version, None, Area.PUBLISHED).manifest
    assert manifest is not None
    return manifest


def lease(storage: Storage, version: int) -> object:
    return take_lease(storage, version, ttl_s=100, now_s=NOW_S, area=Area.PUBLISHED)


def test_the_newest_stay_by_number_and_the_leased_besides() -> None:
    assert outdated([1, 2, 9, 10], 2, {}) == (1, 2)
    assert outdated([1, 2, 9, 10], 2, {1: 0}) == (2,)
    assert outdated([9, 10], 2, {}) == ()
    assert outdated([], 2, {}) == ()


@pytest.mark.parametrize("keep", [0, -1, True, 1.0, "2", None])
def test_a_number_to_keep_is_at_least_one(keep: object) -> None:
    with pytest.raises(InvalidInput, match="publish_keep="):
        check_publish_keep(keep)


def test_the_last_ones_stay(storage: Storage) -> None:
    root = published(storage, 1, 2, 9, 10)
    report = prune_now(storage, root)
    assert report is not None
    assert (report.removed, report.failures) == ([1, 2], [])
    assert versions_of(storage) == ["v-10", "v-9"]
    assert storage.list_dir(TRASH) == ()


def test_neither_counts_for_the_other(storage: Storage) -> None:
    """Steps are not kept because there are few publications, nor the other way round."""
    root = published(storage, 1, 2)
    for step in (10, 20, 30):
        root.commit(step)
    root.publish_version(3)
    plan = plan_for(storage, root, keep=2)
    assert {j.step: j.keep for j in plan.steps} == {10: False, 20: True, 30: True}
    report = prune_now(storage, root)
    assert report is not None
    assert report.removed == [1]
    assert [entry.step for entry in list_steps(storage)] == [10, 20, 30]


def test_what_is_being_read_stays_and_goes_later(storage: Storage) -> None:
    root = published(storage, 1, 2, 3, 4)
    held = take_lease(storage, 1, ttl_s=100, now_s=NOW_S, area=Area.PUBLISHED)
    prune_now(storage, root)
    assert versions_of(storage) == ["v-1", "v-3", "v-4"]
    release_lease(storage, held)
    prune_now(storage, root)
    assert versions_of(storage) == ["v-3", "v-4"]


def test_a_reader_that_comes_between_the_plan_and_the_move_keeps_it(storage: Storage) -> None:
    """A prune moves first and looks second; a reader leases first and looks second."""
    root = published(storage, 1, 2, 3)
    report = prune_now(Meanwhile(storage, lambda: lease(storage, 1)), root)
    assert report is not None
    assert report.put_back == {1: "being read (leased)"}
    assert versions_of(storage) == ["v-1", "v-2", "v-3"]
    assert storage.list_dir(TRASH) == ()


def test_a_leased_reader_waits_until_it_is_put_back(storage: Storage) -> None:
    root = published(storage, 1, 2, 3)
    manifest = manifest_of(storage, 1)
    states: list[str] = []

    def read() -> None:
        def put_back(_: float) -> None:
            states.append("waited")
            name = storage.list_dir(TRASH)[0].name
            storage.rename(f"{TRASH}/{name}", "published/v-1")

        with Reading(storage, manifest, clock=lambda: NOW_S, sleep=put_back):
            states.append("read")
            raise Stop

    with pytest.raises(Stop):
        prune_now(Meanwhile(storage, read), root)
    assert states == ["waited", "read"]


def naive_prune(storage: Storage, root: Root, keep: int = 2) -> None:
    """Delete what is too old, as one who does not look at leases."""
    for entry in list_steps(storage, root.run_id, Area.PUBLISHED)[:-keep]:
        remove_tree(storage, entry.name)


def reads_in_peace(storage: Storage, prune: object) -> bool:
    """Tell whether a reader that holds a lease reads the publication to its end."""
    assert callable(prune)
    root = published(storage, 1, 2, 3)
    manifest = manifest_of(storage, 1)
    with Reading(storage, manifest, clock=lambda: NOW_S):
        prune(storage, root)
        found = list_steps(storage, root.run_id, Area.PUBLISHED)
        return any(entry.manifest == manifest for entry in found)


def test_a_prune_that_does_not_look_at_leases_is_caught() -> None:
    assert reads_in_peace(MemoryStorage(), prune_now)
    assert not reads_in_peace(MemoryStorage(), naive_prune)


def test_damaged_ones_do_not_count_and_stay(storage: Storage) -> None:
    root = published(storage, 1, 2, 3, 4)
    overwrite(storage, f"published/v-3/{MANIFEST}", b"{}")
    storage.remove_file("published/v-4/parts/trainer/0.json")
    storage.make_dir("published/v-5")
    prune_now(storage, root, keep=1)
    assert versions_of(storage) == ["v-2", "v-3", "v-4", "v-5"]


def test_without_a_sound_one_nothing_is_removed(storage: Storage) -> None:
    root = published(storage, 1, 2)
    with pytest.raises(Stop):
        prune_now(Meanwhile(storage, die), root, keep=1)
    overwrite(storage, f"published/v-2/{MANIFEST}", b"{}")
    assert prune_now(storage, root, keep=1) is None
    assert len(storage.list_dir(TRASH)) == 1


def test_a_newer_life_stops_the_prune(storage: Storage) -> None:
    root = published(storage, 1, 2, 3)
    with pytest.raises(NotCurrent):
        prune_now(Meanwhile(storage, lambda: claim(storage, None, now_s=0)), root)
    assert versions_of(storage) == ["v-1", "v-2", "v-3"]


def test_a_crash_at_each_operation_of_a_prune_is_finished_by_the_next_life() -> None:
    at, going_on = 0, True
    while going_on:
        storage = MemoryStorage()
        root = published(storage, 1, 2, 3, 4)
        going_on = False

        def die_here(number: int, _operation: str, _key: str, at: int = at) -> None:
            nonlocal going_on
            if number == at:
                going_on = True
                raise Stop

        try:
            prune_now(FaultyStorage(storage, before=die_here), root)
        except Stop:
            disk = storage.after_power_loss(lambda *_: False)
        else:
            disk = storage
        assert {"v-3", "v-4"} <= set(versions_of(disk))
        root.storage = disk
        root.claim()
        keeper(disk)(root.run_id, root.number, False)
        assert versions_of(disk) == ["v-3", "v-4"]
        assert disk.list_dir(TRASH) == ()
        at += 1
    assert at > 8


def keeper(storage: Storage, keep: int = 2, retention: Retention | None = None) -> Housekeeper:
    removal = Removal(storage, lambda: NOW_S)
    return Housekeeper(removal, retention, inspect_with(storage), publish_keep=keep)


def test_the_housekeeper_prunes_publications_whatever_the_rule_for_steps(storage: Storage) -> None:
    root = published(storage, 1, 2, 3)
    for step in (10, 20):
        root.commit(step)
    keeper(storage, keep=1)(root.run_id, root.number, False)
    assert versions_of(storage) == ["v-3"]
    assert [entry.step for entry in list_steps(storage)] == [10, 20]
    keeper(storage, keep=1, retention=Retention(latest(1)))(root.run_id, root.number, True)
    assert versions_of(storage) == ["v-3"]
    assert [entry.step for entry in list_steps(storage)] == [20]
