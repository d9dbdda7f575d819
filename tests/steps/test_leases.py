from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root

from stepseal.errors import StorageUnavailable
from stepseal.process import LeaseTime
from stepseal.steps._leases import (
    LEASES,
    SKEW_S,
    drop_expired,
    read_leases,
    release_lease,
    renew_lease,
    take_lease,
)
from stepseal.steps._removal import Removal
from stepseal.storage import KeyNotFound
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage


def test_a_lease_protects_until_its_expiry_and_what_clocks_may_differ(storage: Storage) -> None:
    Root(storage)
    lease = take_lease(storage, 10, ttl_s=100, now_s=1000)
    assert lease.expires_at_s == 1101
    assert read_leases(storage, 1101 + SKEW_S) == {10: 1101}
    assert read_leases(storage, 1102 + SKEW_S) == {}


def test_a_renewed_lease_is_one_lease(storage: Storage) -> None:
    Root(storage)
    lease = take_lease(storage, 10, ttl_s=100, now_s=1000)
    renewed = renew_lease(storage, lease, ttl_s=100, now_s=1050)
    assert renew_lease(storage, renewed, ttl_s=100, now_s=1050) == renewed
    assert read_leases(storage, 1000) == {10: 1151}
    assert len(storage.list_dir(LEASES)) == 1
    release_lease(storage, renewed)
    release_lease(storage, renewed)
    assert storage.list_dir(LEASES) == ()


def test_the_last_expiry_of_several_readers_counts(storage: Storage) -> None:
    Root(storage)
    for ttl_s in (100, 300, 200):
        take_lease(storage, 10, ttl_s=ttl_s, now_s=1000)
    take_lease(storage, 20, ttl_s=1, now_s=1000)
    assert read_leases(storage, 1000) == {10: 1301, 20: 1002}


def test_only_expired_leases_are_dropped(storage: Storage) -> None:
    Root(storage)
    take_lease(storage, 10, ttl_s=100, now_s=1000)
    kept = take_lease(storage, 20, ttl_s=200, now_s=1000)
    storage.make_dir(f"{LEASES}/step-10.00000001.json")  # not a name that stepseal gives
    drop_expired(storage, 1102 + SKEW_S)
    names = [entry.name for entry in storage.list_dir(LEASES)]
    assert names == ["step-10.00000001.json", kept.key.rpartition("/")[2]]


def test_a_dropped_lease_cannot_be_renewed(storage: Storage) -> None:
    Root(storage)
    lease = take_lease(storage, 10, ttl_s=100, now_s=1000)
    drop_expired(storage, 5000)
    with pytest.raises(KeyNotFound):
        renew_lease(storage, lease, ttl_s=100, now_s=1050)


def test_a_root_without_the_folder_has_no_leases() -> None:
    storage = MemoryStorage()
    assert read_leases(storage, 0) == {}
    drop_expired(storage, 0)
    with pytest.raises(KeyNotFound):
        take_lease(storage, 10, ttl_s=1, now_s=0)


@pytest.mark.parametrize("verb", ["write", "close"])
def test_a_lease_whose_body_finds_no_room_blocks_no_pruning(storage: Storage, verb: str) -> None:
    Root(storage)
    full = FaultyStorage(storage, [Fault(lambda v, _: v == verb, Fail(errno.ENOSPC))])
    with pytest.raises(StorageUnavailable) as caught:
        take_lease(full, 10, ttl_s=100, now_s=1000)
    assert caught.value.errno == errno.ENOSPC
    assert storage.list_dir(LEASES) == ()


def test_a_lease_that_cannot_be_taken_back_is_held(storage: Storage) -> None:
    Root(storage)
    dying = FaultyStorage(
        storage, [Fault(lambda v, _: v in ("write", "remove_file"), Fail(errno.EIO), sticky=True)]
    )
    lease = take_lease(dying, 10, ttl_s=100, now_s=1000)
    assert read_leases(storage, 1000) == {10: 1101}
    release_lease(storage, lease)
    assert storage.list_dir(LEASES) == ()


@pytest.mark.parametrize("naive", [False, True])
def test_a_lease_that_ran_out_while_all_were_suspended_still_protects(
    storage: Storage, naive: bool
) -> None:
    """Reader and job sleep for a day; the prune comes first when they wake up."""
    Root(storage)
    now_s, awake_s = [1000.0], [1000.0]
    clock = LeaseTime(600, lambda: now_s[0], lambda: now_s[0], lambda: awake_s[0])
    removal = Removal(storage, lambda: now_s[0], None if naive else clock)
    lease = take_lease(storage, 10, ttl_s=900, now_s=now_s[0])
    now_s[0] += 86400.0
    removal.sweep(1)
    assert bool(removal.guards().leased) is not naive
    if not naive:
        renew_lease(storage, lease, ttl_s=900, now_s=now_s[0])
        for one in (now_s, awake_s):
            one[0] += 601.0
        assert removal.guards().leased.keys() == {10}
