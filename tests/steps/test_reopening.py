"""The mount under a root dies and comes back; the storages stand for the old mount and the new."""

from __future__ import annotations

import errno
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import FakeIndexer, Root, attempt_id

from stepseal.errors import CheckpointError, RootNotFound, StorageUnavailable
from stepseal.layout import MARKER
from stepseal.steps import OwnedSteps, PosixSteps, open_store
from stepseal.steps._claims import claim_key
from stepseal.steps._reopening import Reopening
from stepseal.storage import KeyNotFound, create_durable, make_dirs, read_bytes
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import Storage

NUMBERS = [errno.ENOTCONN, errno.ESTALE]


class Mounted(FaultyStorage):
    """A root whose mount dies on demand, and is there again once it was opened anew."""

    def __init__(self, inner: Storage, number: int = errno.ENOTCONN) -> None:
        self.is_dead = False
        self.path_leads_to: Storage = inner
        self.opened = 0
        fault = Fault(lambda *_: self.is_dead, Fail(number), sticky=True)
        super().__init__(inner, [fault], reads=True)

    def reopen(self, check: Callable[[Storage], None]) -> None:
        self.opened += 1
        check(self.path_leads_to)
        self._inner, self.is_dead = self.path_leads_to, False


@pytest.fixture(params=NUMBERS)
def mounted(request: pytest.FixtureRequest) -> Mounted:
    root = Root(MemoryStorage())
    root.commit(10)
    return Mounted(root.storage, request.param)


def owned(storage: Mounted) -> OwnedSteps:
    """Return the steps of a life of the job, which has claimed the root."""
    steps = PosixSteps(storage, reopen=storage.reopen).own(FakeIndexer(), lease_s=60.0)
    chosen = steps.select(step=None, exclude=(), unverified=False)
    assert steps.claim(chosen.ref) == 2
    return steps


def test_the_next_attempt_goes_on_where_the_mount_came_back(mounted: Mounted) -> None:
    steps = owned(mounted)
    for number in (20, 30):
        mounted.is_dead = True
        begun = steps.begin(number, 2, attempt_id(number))
        assert PosixSteps(mounted).find_nonce(begun.key) == begun.nonce
    mounted.is_dead = True
    steps.begin_publication(1, 2, attempt_id(40))
    mounted.is_dead = True
    assert steps.select(step=None, exclude=(), unverified=False).ref is not None
    assert mounted.opened == 4
    steps.close()


def test_a_participant_goes_on_by_the_nonce(mounted: Mounted) -> None:
    begun = owned(mounted).begin(20, 2, attempt_id(20))
    store = PosixSteps(mounted, reopen=mounted.reopen)
    store.run_id()
    mounted.is_dead = True
    assert store.find_nonce(begun.key) == begun.nonce


def test_a_mount_that_is_still_dead_is_told_with_what_to_do(mounted: Mounted) -> None:
    def gone(_check: object) -> None:
        raise RootNotFound("no root at /mnt")

    steps = owned(mounted)
    steps._reopening._reopen = gone
    mounted.is_dead = True
    with pytest.raises(StorageUnavailable, match="Mount it again at the same path") as caught:
        steps.begin(20, 2, attempt_id(20))
    assert caught.value.errno in NUMBERS
    steps._reopening._reopen = mounted.reopen
    steps.begin(20, 2, attempt_id(20))  # the advice works


def test_an_error_that_is_no_death_opens_nothing(mounted: Mounted) -> None:
    steps = owned(mounted)
    with pytest.raises(CheckpointError):
        steps.begin(20, 1, attempt_id(20))  # not our incarnation
    assert mounted.opened == 0


def test_it_is_opened_again_once_for_each_attempt(mounted: Mounted) -> None:
    def back_and_dead(check: Callable[[Storage], None]) -> None:
        Mounted.reopen(mounted, check)
        mounted.is_dead = True

    steps = owned(mounted)
    steps._reopening._reopen = back_and_dead
    mounted.is_dead = True
    with pytest.raises(StorageUnavailable):
        steps.begin(20, 2, attempt_id(20))
    assert mounted.opened == 1


def other_root(_: Storage) -> Storage:
    root = Root(MemoryStorage())
    root.commit(10)
    root.claim(root.head)
    return root.storage


def empty_mountpoint(_: Storage) -> Storage:
    return MemoryStorage()


def without_our_claim(storage: Storage) -> Storage:
    """Return a copy that was made before we claimed the root."""
    copy = MemoryStorage()
    make_dirs(copy, claim_key(1).rpartition("/")[0])
    for key in (MARKER, claim_key(1)):
        create_durable(copy, key, read_bytes(storage, key, 1 << 16))
    return copy


def with_the_claim_of_another(storage: Storage) -> Storage:
    copy = without_our_claim(storage)
    create_durable(copy, claim_key(2), b"{}")
    return copy


OTHERS = [other_root, empty_mountpoint, without_our_claim, with_the_claim_of_another]


@pytest.mark.parametrize("there_is_now", OTHERS)
@pytest.mark.parametrize("naive", [False, True])
def test_another_root_in_its_place_is_never_touched(
    mounted: Mounted,
    there_is_now: Callable[[Storage], Storage],
    naive: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = owned(mounted)
    mounted.path_leads_to = other = there_is_now(mounted._inner)
    mounted.is_dead = True
    if naive:
        monkeypatch.setattr(Reopening, "_require_same", lambda *_: None)
        with pytest.raises(CheckpointError) as caught:
            steps.begin(20, 3, attempt_id(20))
        assert "restart this process" not in str(caught.value)
        assert mounted._inner is other
        return
    with pytest.raises(StorageUnavailable, match="restart this process"):
        steps.begin(20, 2, attempt_id(20))
    assert mounted._inner is not other


def test_a_claim_that_could_not_be_read_back_proves_nothing(mounted: Mounted) -> None:
    steps = owned(mounted)
    steps._reopening._known[claim_key(2)] = None
    mounted.is_dead = True
    with pytest.raises(StorageUnavailable, match="restart this process"):
        steps.begin(20, 2, attempt_id(20))


def test_a_root_without_marker_is_remembered_as_such() -> None:
    storage = Mounted(MemoryStorage())
    reopening = Reopening(storage, storage.reopen)
    reopening.remember()
    storage.is_dead = True
    with pytest.raises(StorageUnavailable, match="restart this process"):
        reopening.between_attempts(lambda: storage.list_dir(""))


def test_a_store_opens_its_own_path_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "root", create=True)
    Root(store.storage)
    store.run_id()
    reopen = store._reopening._reopen
    assert reopen is not None
    (tmp_path / "root").rename(tmp_path / "moved")
    with pytest.raises(RootNotFound):
        reopen(store._reopening._require_same)
    (tmp_path / "root").mkdir()
    with pytest.raises(StorageUnavailable, match="same bytes"):
        reopen(store._reopening._require_same)
    (tmp_path / "root").rmdir()
    shutil.copytree(tmp_path / "moved", tmp_path / "root")
    (tmp_path / "root" / "new").mkdir()
    assert "new" not in {entry.name for entry in store.storage.list_dir("")}
    reopen(store._reopening._require_same)
    assert "new" in {entry.name for entry in store.storage.list_dir("")}


def test_storage_that_cannot_be_opened_again_tells_the_error() -> None:
    storage = Mounted(MemoryStorage())
    storage.is_dead = True
    with pytest.raises(StorageUnavailable, match="on purpose") as caught:
        Reopening(storage).between_attempts(lambda: storage.list_dir(""))
    assert not isinstance(caught.value, KeyNotFound)
