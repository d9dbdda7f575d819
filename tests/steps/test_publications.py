"""Publications are an area of their own: committed alike, and never taken for steps."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, exists, overwrite
from tests.steps._publishing import verb, with_faults

from stepseal.errors import CheckpointError, NotCurrent, StepExists, StepNotFound
from stepseal.layout import LATEST, MANIFEST, Area
from stepseal.steps._attempts import attempt_at, sweep
from stepseal.steps._catalog import list_foreign, list_steps, read_step, step_numbers
from stepseal.steps._claims import claim
from stepseal.steps._hidden import hidden_commits, put_back_pruned
from stepseal.steps._leases import read_leases, take_lease
from stepseal.steps._owned import OwnedSteps
from stepseal.steps._posix import PosixSteps
from stepseal.steps._reading import Reading
from stepseal.steps._roots import STAGING, SUPERSEDED
from stepseal.steps._select import select
from stepseal.storage import read_bytes, remove_tree
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepseal.layout import Manifest
    from stepseal.storage import Storage


class Stop(BaseException):
    """Everything ends here, as by a crash."""


def sound(storage: Storage, run_id: str) -> list[int]:
    entries = list_steps(storage, run_id, Area.PUBLISHED)
    return [entry.step for entry in entries if entry.state == "committed"]


def nothing_wrong(_storage: Storage, _key: str, _manifest: Manifest) -> Sequence[str]:
    return ()


def copy_folder(storage: Storage, source: str, target: str) -> None:
    """Copy a commit of the kit, as somebody with `cp -r` does."""
    for folder in ("", "/parts", "/parts/trainer"):
        storage.make_dir(f"{target}{folder}")
    names = [MANIFEST, *(f"parts/trainer/{number}.json" for number in range(2))]
    for name in names:
        with storage.create_file(f"{target}/{name}") as handle:
            handle.write(read_bytes(storage, f"{source}/{name}", 1 << 20), 0)


def test_a_publication_is_weights_in_a_folder_of_its_own(storage: Storage) -> None:
    root = Root(storage)
    root.commit(3)
    manifest = root.publish_version(7)
    assert (manifest.kind, manifest.resumable, manifest.key) == ("weights", False, "published/v-7")
    assert root.names("published") == ["v-7"]
    assert attempt_at(storage, "published/v-7") == manifest.attempt
    assert root.names(STAGING) == []
    assert manifest.parent == root.head
    store = PosixSteps(storage)
    assert store.versions() == (7,)
    assert store.entry(7, root.run_id, Area.PUBLISHED).manifest == manifest


def test_a_scanner_of_steps_never_meets_a_publication(storage: Storage) -> None:
    """List, restore, fresh start and what looks for steps that were moved away."""
    root = Root(storage)
    for version in (5, 7):
        root.publish_version(version)
    assert list_steps(storage) == ()
    assert step_numbers(storage) == []
    assert list_foreign(storage) == ()
    assert hidden_commits(storage) == {}
    found = select(storage, root.run_id, step=None, exclude=(), inspect=nothing_wrong)
    assert (found.entry, found.has_commits, found.reasons) == (None, False, {})
    for version in (5, 7):
        with pytest.raises(StepNotFound):
            select(storage, root.run_id, step=version, exclude=(), inspect=nothing_wrong)
    owned = OwnedSteps(storage, FakeIndexer())
    assert owned.claim_unrestored() == 2  # a root with publications alone has no step to restore
    root.head = None
    root.number = 2
    root.commit(1)
    assert [entry.step for entry in list_steps(storage)] == [1]
    assert not exists(storage, LATEST)


def test_a_publication_that_was_copied_among_the_steps_is_no_step(storage: Storage) -> None:
    root = Root(storage)
    root.publish_version(7)
    copy_folder(storage, "published/v-7", "step-7")
    entry = read_step(storage, 7, root.run_id)
    assert (entry.state, entry.manifest, entry.is_commit) == ("foreign", None, False)
    assert "the folder of published/v-7" in entry.problem
    found = select(storage, root.run_id, step=None, exclude=(), inspect=nothing_wrong)
    assert (found.entry, found.has_commits) == (None, False)
    staging, manifest = root.prepare(7)
    with pytest.raises(StepExists, match=r"in the way: the folder of published/v-7"):
        root.publish(staging, manifest)


def test_a_step_that_was_copied_among_the_publications_is_none(storage: Storage) -> None:
    """Weights and full steps never count for one another, whatever a folder is called."""
    root = Root(storage)
    root.publish_version(6)
    root.commit(7)
    copy_folder(storage, "step-7", "published/v-7")
    assert sound(storage, root.run_id) == [6]
    entry = PosixSteps(storage).entry(7, root.run_id, Area.PUBLISHED)
    assert (entry.state, entry.problem) == ("foreign", "the folder of step-7, moved or copied here")


@pytest.mark.parametrize("version", [0, 6, 7])
def test_a_version_must_grow_in_all_lives_of_the_job(storage: Storage, version: int) -> None:
    root = Root(storage)
    root.publish_version(7)
    second = OwnedSteps(storage, FakeIndexer())
    number = claim(storage, None, now_s=0)
    with pytest.raises(StepExists, match=r"above 7, as published/v-7 exists.* Publish version 8"):
        second.begin_publication(version, number, "ab" * 16)
    assert root.names(STAGING) == []
    begun = second.begin_publication(8, number, "ab" * 16)
    assert begun.key == f"{STAGING}/v-8.{number}.{'ab' * 16}"
    second.close()


def test_a_damaged_publication_is_not_published_again(storage: Storage) -> None:
    """A reader may have read it before it was damaged: a version has one content for good."""
    root = Root(storage)
    root.publish_version(7)
    overwrite(storage, f"published/v-7/{MANIFEST}", b"{}")
    owned = OwnedSteps(storage, FakeIndexer())
    with pytest.raises(StepExists):
        owned.begin_publication(7, root.number, "ab" * 16)


def test_an_older_incarnation_publishes_nothing(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(7, Area.PUBLISHED)
    claim(storage, None, now_s=0)
    with pytest.raises(NotCurrent):
        OwnedSteps(storage, FakeIndexer()).begin_publication(8, root.number, "ab" * 16)
    with pytest.raises(NotCurrent):
        root.publish(staging, manifest)
    assert sound(storage, root.run_id) == []


def test_a_version_that_appears_meanwhile_is_never_displaced(storage: Storage) -> None:
    """Two starts of the job race: one of them loses, and readers keep what they read."""
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(7, Area.PUBLISHED)
    first = root.publish_version(7)
    with pytest.raises(StepExists, match="published once"):
        root.publish(staging, manifest)
    assert attempt_at(storage, "published/v-7") == first.attempt
    assert root.names(SUPERSEDED) == []


def crashes(
    before: Callable[[], tuple[Root, MemoryStorage]],
) -> Iterator[tuple[Root, MemoryStorage]]:
    """Publish version 2 again and again, with a crash at each operation, until none is left."""
    at, reached = 0, True
    while reached:
        root, memory = before()
        reached = False

        def die(number: int, _operation: str, _key: str, at: int = at) -> None:
            nonlocal reached
            if number == at:
                reached = True
                raise Stop

        root.storage = FaultyStorage(memory, before=die)
        try:
            root.publish_version(2)
        except Stop:
            root.storage = memory
        if reached:
            yield root, memory
        at += 1


def one_published() -> tuple[Root, MemoryStorage]:
    memory = MemoryStorage()
    root = Root(memory)
    root.publish_version(1)
    return root, memory


def files_whole(storage: Storage, version: int) -> bool:
    key = Area.PUBLISHED.key(version)
    manifest = PosixSteps(storage).entry(version, None, Area.PUBLISHED).manifest
    return manifest is not None and not FakeIndexer().inspect(storage, key, manifest, exact=True)


@pytest.mark.parametrize("power", ["kept", "lost"])
def test_a_crash_at_each_operation_leaves_the_old_or_the_new_version_whole(power: str) -> None:
    seen = set()
    for root, memory in crashes(one_published):
        storage = memory.after_power_loss(lambda *_: False) if power == "lost" else memory
        versions = sound(storage, root.run_id)
        assert versions in ([1], [1, 2])
        assert all(files_whole(storage, version) for version in versions)
        seen.add(tuple(versions))
        root.storage = storage
        root.claim()
        sweep(storage, root.number)
        assert root.names(STAGING) == []
        root.publish_version(3)
        assert sound(storage, root.run_id) == [*versions, 3]
    assert seen == {(1,), (1, 2)}


def naive_versions(storage: Storage) -> list[int]:
    """Read as one who takes every folder for a publication, whatever is in it."""
    return [int(entry.name[2:]) for entry in storage.list_dir("published")]


def test_a_publisher_that_makes_the_folder_before_its_data_is_caught() -> None:
    """The naive ones: data into the final folder, or a pointer before the data."""

    def in_place() -> tuple[Root, MemoryStorage]:
        root, memory = one_published()
        memory.make_dir("published/v-2")  # what a crash in the middle of such a publisher leaves
        memory.make_dir("published/v-2/parts")
        return root, memory

    root, memory = in_place()
    assert naive_versions(memory) == [1, 2]
    assert not files_whole(memory, 2)
    assert sound(memory, root.run_id) == [1]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_at_each_operation_leaves_the_old_or_the_new_version_whole(number: int) -> None:
    at, going_on = 0, True
    while going_on:
        root, memory = one_published()
        faulty = FaultyStorage(memory, [Fault(at, Fail(number))])
        root.storage = faulty
        going_on = False
        try:
            root.publish_version(2)
        except CheckpointError:
            going_on = True
        versions = sound(memory, root.run_id)
        assert versions in ([1], [1, 2])
        assert all(files_whole(memory, version) for version in versions)
        at += 1
    assert at > 10


def test_an_attempt_to_publish_is_resolved_by_its_own_place(storage: Storage) -> None:
    root = Root(storage)
    root.commit(7)
    staging, manifest = root.prepare(7, Area.PUBLISHED)
    store = PosixSteps(storage)
    assert store.resolve(7, manifest.attempt, staging).state == "unknown"
    sha256 = root.publish(staging, manifest)
    found = store.resolve(7, manifest.attempt, staging)
    assert (found.state, found.manifest_sha256) == ("committed", sha256)
    remove_tree(storage, "published/v-7")
    assert store.resolve(7, manifest.attempt, staging).state == "not committed"


def test_a_failed_sync_after_the_rename_is_unknown(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(7, Area.PUBLISHED)
    inner = root.storage
    with_faults(root, Fault(verb("sync_dir", "published"), Fail(errno.EIO)))
    with pytest.raises(CheckpointError, match=r"version 7: .*sync of published"):
        root.publish(staging, manifest)
    assert sound(inner, root.run_id) == [7]


def test_a_file_in_the_place_of_the_folder_is_left_alone(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    with storage.create_file("published") as handle:
        handle.write(b"mine", 0)
    assert PosixSteps(storage).versions() == ()
    with pytest.raises(CheckpointError, match="published"):
        OwnedSteps(storage, FakeIndexer()).begin_publication(1, root.number, "ab" * 16)
    assert read_bytes(storage, "published", 9) == b"mine"


def test_a_lease_of_a_version_is_none_of_a_step(storage: Storage) -> None:
    Root(storage)
    take_lease(storage, 7, ttl_s=100, now_s=1000, area=Area.PUBLISHED)
    take_lease(storage, 8, ttl_s=100, now_s=1000)
    assert read_leases(storage, 1000, Area.PUBLISHED) == {7: 1101}
    assert read_leases(storage, 1000) == {8: 1101}


def test_a_publication_is_leased_while_it_is_read(storage: Storage) -> None:
    root = Root(storage)
    manifest = root.publish_version(7)
    with Reading(storage, manifest, clock=lambda: 1000.0) as reading:
        assert reading.is_leased
        assert list(read_leases(storage, 1000, Area.PUBLISHED)) == [7]
        assert read_leases(storage, 1000) == {}
    remove_tree(storage, "published/v-7")
    with pytest.raises(StepNotFound, match=r"^version 7: .*published/v-7"):
        Reading(storage, manifest).__enter__()


def test_a_restart_takes_no_publication_out_of_the_trash_as_a_step(storage: Storage) -> None:
    root = Root(storage)
    root.publish_version(7)
    manifest = PosixSteps(storage).entry(7, None, Area.PUBLISHED).manifest
    assert manifest is not None
    name = f"v-7.{manifest.incarnation}.{manifest.attempt}.{'0' * 16}.pruned"
    storage.rename("published/v-7", f".stepseal/trash/{name}")
    take_lease(storage, 7, ttl_s=100, now_s=1000)
    put_back_pruned(storage, 1000)
    found = select(storage, root.run_id, step=None, exclude=(), inspect=nothing_wrong)
    assert (found.entry, found.has_commits) == (None, False)
    assert list_steps(storage) == ()
