"""Aborted attempts that cannot be moved; room for new ones; steps that nobody can supersede."""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, attempt_id, exists
from tests.steps.test_attempts import crashed_exchange, outside

from stepseal.errors import StorageUnavailable
from stepseal.layout import MANIFEST
from stepseal.steps import OwnedSteps, PosixSteps, _attempts
from stepseal.steps._attempts import attempt_at, begin, discard, sweep
from stepseal.steps._immovable import find_immovable
from stepseal.steps._roots import STAGING, SUPERSEDED, TRASH
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage

NUMBERS = [errno.EDQUOT, errno.ENOSPC, errno.EXDEV]
CREATES = ("rename", "make_dir", "create_file", "link")


def stuck(inner: Storage, number: int = errno.EDQUOT) -> FaultyStorage:
    """Return storage that refuses every rename."""
    return FaultyStorage(
        inner, [Fault(lambda verb, _: verb == "rename", Fail(number), sticky=True)]
    )


class Quota(FaultyStorage):
    """A copy-on-write file system: while payload of attempts fills it, only removals work."""

    def __init__(self, inner: Storage, at_most: int = 0) -> None:
        def is_full(verb: str, key: str) -> bool:
            if verb not in CREATES or (verb == "make_dir" and exists(inner, key)):
                return False
            staged = [f"{STAGING}/{entry.name}/parts" for entry in inner.list_dir(STAGING)]
            return len([parts for parts in staged if exists(inner, parts)]) > at_most

        super().__init__(inner, [Fault(is_full, Fail(errno.EDQUOT), sticky=True)])


def owned(storage: Storage) -> OwnedSteps:
    return OwnedSteps(storage, FakeIndexer(), layered=True)


# -- aborted attempts ------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("whole", [False, True])
def test_an_aborted_attempt_is_removed_where_it_lies(
    storage: Storage, number: int, whole: bool
) -> None:
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(10)
    if whole:
        with pytest.raises(StorageUnavailable):
            dataclasses.replace(root, storage=stuck(storage, number)).publish(staging, manifest)
        assert exists(storage, f"{staging}/{MANIFEST}")
    discard(stuck(storage, number), staging)
    discard(stuck(storage, number), staging)
    assert root.names(STAGING) == root.names(TRASH) == []


def test_its_manifest_goes_first(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    staging, manifest = root.prepare(10)
    with pytest.raises(StorageUnavailable):
        dataclasses.replace(root, storage=stuck(storage)).publish(staging, manifest)
    others = Fault(
        lambda verb, key: verb == "remove_file" and not key.endswith(MANIFEST),
        Fail(errno.EIO),
        sticky=True,
    )
    with pytest.raises(StorageUnavailable, match="EIO"):
        discard(FaultyStorage(stuck(storage), [others]), staging)
    storage.rename(staging, "step-10")  # a server carries out a late rename
    assert attempt_at(storage, "step-10") is None


@pytest.mark.parametrize("number", NUMBERS)
def test_a_superseded_step_in_staging_is_never_removed_in_place(
    storage: Storage, number: int
) -> None:
    root = outside(storage)
    superseded = attempt_at(storage, "step-20")
    staging = crashed_exchange(root, 20)
    root.claim(root.head)
    with pytest.raises(StorageUnavailable):
        sweep(stuck(storage, number), root.number)
    assert attempt_at(storage, staging) == superseded
    sweep(storage, root.number)
    assert len(root.names(SUPERSEDED)) == 1


@pytest.mark.parametrize("naive", [False, True])
def test_a_restore_gets_through_while_aborted_attempts_fill_the_disk(
    storage: Storage, naive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Root(storage)
    root.commit(10)
    root.prepare(20)
    root.prepare(30)
    steps = owned(Quota(storage))
    if naive:
        monkeypatch.setattr(_attempts, "cannot_move", lambda _: False)
        with pytest.raises(StorageUnavailable, match="EDQUOT"):
            steps.select(step=None, exclude=(), unverified=False)
        return
    chosen = steps.select(step=None, exclude=(), unverified=False)
    assert chosen.ref is not None
    assert chosen.ref.step == 10
    assert steps.claim(chosen.ref) == 2
    assert root.names(STAGING) == []


def test_what_a_killed_prune_was_deleting_makes_room_too(storage: Storage) -> None:
    root = Root(storage)
    root.commit(10)
    staging, _ = root.prepare(20)
    dying = f"{TRASH}/step-5.1.{attempt_id(5)}.{1000:08x}{'0' * 8}.deleting"
    storage.rename(staging, dying)

    def is_full(verb: str, key: str) -> bool:
        return verb in CREATES and not exists(storage, key) and exists(storage, dying)

    full = FaultyStorage(storage, [Fault(is_full, Fail(errno.ENOSPC), sticky=True)])
    assert owned(full).select(step=None, exclude=(), unverified=False).ref is not None
    assert root.names(TRASH) == []


# -- room for the next attempt ---------------------------------------------------------------


def test_the_next_attempt_removes_those_of_this_life_that_were_aborted(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    aborted, _ = root.prepare(10)
    steps = owned(Quota(storage))
    stale = Fault(lambda verb, _: verb == "remove_file", Fail(errno.EIO))
    steps._storage = FaultyStorage(steps._storage, [stale])
    with pytest.raises(StorageUnavailable, match="EIO"):
        steps.discard(aborted)
    begun = steps.begin(20, 1, attempt_id(20))
    assert [f"{STAGING}/{name}" for name in root.names(STAGING)] == [begun.key]


def test_the_next_attempt_never_removes_one_that_was_not_aborted(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    going_on, _ = root.prepare(10)
    with pytest.raises(StorageUnavailable, match="EDQUOT"):
        owned(Quota(storage)).begin(20, 1, attempt_id(20))
    assert exists(storage, going_on)
    owned(Quota(storage, at_most=1)).begin(20, 1, attempt_id(20))


def test_the_next_attempt_removes_what_older_starts_left(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    old, _ = root.prepare(10)
    root.claim()
    steps = owned(Quota(storage))
    steps.begin(20, 2, attempt_id(20))
    assert not exists(storage, old)


# -- steps that cannot be moved --------------------------------------------------------------


def layered(inner: Storage, *steps: int) -> FaultyStorage:
    """Return storage on which these steps lie in a lower layer."""
    names = {f"step-{step}" for step in steps}

    def strikes(verb: str, key: str) -> bool:
        return verb in ("rename", "exchange") and not names.isdisjoint(key.split(" -> "))

    return FaultyStorage(inner, [Fault(strikes, Fail(errno.EXDEV), sticky=True)])


def four(storage: Storage) -> Root:
    root = Root(storage)
    for step in (10, 20, 30, 40):
        root.commit(step)
    return root


def test_steps_that_cannot_be_moved_are_found_and_stay_where_they_are(storage: Storage) -> None:
    root = four(storage)
    assert find_immovable(storage, [10, 20, 30, 40, 50]) == []
    assert find_immovable(layered(storage, 10, 30), [10, 20, 30, 40]) == [10, 30]
    assert root.names(TRASH) == []
    assert [name for name in root.names() if name.startswith("step-")] == [
        "step-10", "step-20", "step-30", "step-40",
    ]  # fmt: skip
    assert find_immovable(Quota(storage, at_most=-1), [10]) == []  # cannot be tried


@pytest.mark.parametrize("step", [10, None])
def test_a_start_says_at_once_what_it_could_not_supersede(
    storage: Storage, step: int | None
) -> None:
    four(storage)
    steps = owned(layered(storage, 20, 40))

    def start() -> object:
        if step is None:
            return steps.claim(None)
        return steps.select(step=step, exclude=(), unverified=False)

    with pytest.raises(StorageUnavailable, match=r"step-20, step-40.*cp -a") as caught:
        start()
    assert caught.value.errno == errno.EXDEV


def test_steps_are_tried_on_layered_storage_alone(storage: Storage) -> None:
    four(storage)
    steps = OwnedSteps(layered(storage, 20), FakeIndexer())
    assert steps.select(step=10, exclude=(), unverified=False).ref is not None
    assert steps.claim(None) == 2


def test_a_start_from_the_newest_step_supersedes_nothing(storage: Storage) -> None:
    four(storage)
    steps = owned(layered(storage, 10, 20, 30, 40))
    chosen = steps.select(step=None, exclude=(), unverified=False)
    assert chosen.ref is not None
    assert steps.claim(chosen.ref) == 2


def test_a_file_system_that_replaces_full_folders_gets_the_step_back() -> None:
    class Careless(FaultyStorage):
        def rename(self, source: str, target: str, *, replace: bool = False) -> None:
            if replace and exists(inner, f"{target}/entry"):
                inner.remove_dir(f"{target}/entry")
            super().rename(source, target, replace=replace)

    inner = MemoryStorage()
    four(inner)
    assert find_immovable(Careless(inner), [10, 20]) == []
    assert attempt_at(inner, "step-10") == attempt_id(1001)
    assert attempt_at(inner, "step-20") == attempt_id(1002)


def test_a_trial_that_a_crash_interrupts_is_swept(storage: Storage) -> None:
    root = four(storage)
    nothing = FaultyStorage(
        storage, [Fault(lambda verb, _: verb == "remove_dir", Fail(errno.EIO), sticky=True)]
    )
    find_immovable(nothing, [10])
    assert len(root.names(TRASH)) == 1
    sweep(storage, 1)
    assert root.names(TRASH) == []


def test_begin_is_not_tried_again_for_other_refusals(storage: Storage) -> None:
    root = Root(storage)
    root.claim()
    begin(storage, 20, 1, attempt_id(20))
    with pytest.raises(StorageUnavailable):
        owned(storage).begin(20, 1, attempt_id(20))


def test_a_store_tells_which_steps_cannot_be_moved(storage: Storage) -> None:
    four(storage)
    assert PosixSteps(storage).immovable() == ()
    assert PosixSteps(layered(storage, 20)).immovable() == (20,)


# -- roots that cannot be written ------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_restore_that_cannot_claim_says_how_to_read(storage: Storage, number: int) -> None:
    four(storage)
    refused = Fault(lambda verb, _: verb == "create_file", Fail(number), sticky=True)
    steps = OwnedSteps(FaultyStorage(storage, [refused]), FakeIndexer())
    with pytest.raises(StorageUnavailable, match=r"ss\.load\(root") as caught:
        steps.select(step=None, exclude=(), unverified=False)
    assert (caught.value.errno, caught.value.step) == (number, 40)
