from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root

from stepseal.errors import StorageUnavailable
from stepseal.steps._claims import INCARNATIONS
from stepseal.steps._full_disk import retry_after_sweep
from stepseal.steps._leases import LEASES
from stepseal.steps._roots import STAGING
from stepseal.storage import create_durable
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage

KEY = f"{LEASES}/note"


def put(storage: Storage) -> str:
    create_durable(storage, KEY, b"few bytes")
    return "written"


def full(inner: Storage, number: int = errno.ENOSPC, until: int = 0) -> FaultyStorage:
    """Return a disk without room for a file while more than so many folders are staged."""

    def strikes(verb: str, _key: str) -> bool:
        return verb == "create_file" and len(inner.list_dir(STAGING)) > until

    return FaultyStorage(inner, [Fault(strikes, Fail(number), sticky=True)])


def staged(num_incarnations: int = 2) -> Root:
    root = Root(MemoryStorage())
    for _ in range(num_incarnations):
        root.claim()
        root.prepare(10)
    return root


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_older_starts_staged_makes_room(number: int, caplog: pytest.LogCaptureFixture) -> None:
    root = staged()
    disk = full(root.storage, number)
    assert retry_after_sweep(disk, lambda: put(disk)) == "written"
    assert root.names(STAGING) == []
    assert errno.errorcode[number] in caplog.text


def test_nothing_is_swept_where_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    root = staged()
    assert retry_after_sweep(root.storage, lambda: put(root.storage)) == "written"
    assert len(root.names(STAGING)) == 2
    assert caplog.text == ""


@pytest.mark.parametrize("swept", [False, True])
def test_other_refusals_are_told_at_once(swept: bool) -> None:
    root = staged()
    inner = full(root.storage) if swept else root.storage
    disk = FaultyStorage(inner, [Fault(lambda verb, _: verb == "write", Fail(errno.EIO))])
    with pytest.raises(StorageUnavailable, match="EIO"):
        retry_after_sweep(disk, lambda: put(disk))
    assert len(root.names(STAGING)) == (0 if swept else 2)


def test_a_disk_that_stays_full_says_what_to_remove() -> None:
    root = staged()
    disk = full(root.storage, until=-1)
    with pytest.raises(StorageUnavailable, match="stepseal prune") as caught:
        retry_after_sweep(disk, lambda: put(disk))
    assert (caught.value.errno, caught.value.path) == (errno.ENOSPC, KEY)


def test_what_cannot_be_swept_does_not_keep_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    root = staged()
    first = root.names(STAGING)[0]
    stuck = Fault(lambda verb, key: verb == "rename" and first in key, Fail(errno.EIO), sticky=True)
    disk = FaultyStorage(full(root.storage, until=1), [stuck])
    assert retry_after_sweep(disk, lambda: put(disk)) == "written"
    assert root.names(STAGING) == [first]
    assert "not all" in caplog.text


def test_staging_of_a_start_whose_claim_is_not_seen_stays() -> None:
    root = staged(1)
    root.storage.remove_file(f"{INCARNATIONS}/1.json")
    disk = full(root.storage)
    with pytest.raises(StorageUnavailable):
        retry_after_sweep(disk, lambda: put(disk))
    assert len(root.names(STAGING)) == 1
