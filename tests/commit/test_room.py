from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from tests.commit._kit import Root

from stepseal.commit import LEASES
from stepseal.commit._claims import INCARNATIONS
from stepseal.commit._room import with_room
from stepseal.commit._roots import STAGING
from stepseal.errors import StorageUnavailable
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
    assert with_room(disk, lambda: put(disk)) == "written"
    assert root.names(STAGING) == []
    assert errno.errorcode[number] in caplog.text


def test_nothing_is_swept_where_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    root = staged()
    assert with_room(root.storage, lambda: put(root.storage)) == "written"
    assert len(root.names(STAGING)) == 2
    assert caplog.text == ""


@pytest.mark.parametrize("swept", [False, True])
def test_other_refusals_are_told_at_once(swept: bool) -> None:
    root = staged()
    inner = full(root.storage) if swept else root.storage
    disk = FaultyStorage(inner, [Fault(lambda verb, _: verb == "write", Fail(errno.EIO))])
    with pytest.raises(StorageUnavailable, match="EIO"):
        with_room(disk, lambda: put(disk))
    assert len(root.names(STAGING)) == (0 if swept else 2)


def test_a_disk_that_stays_full_says_what_to_remove() -> None:
    root = staged()
    disk = full(root.storage, until=-1)
    with pytest.raises(StorageUnavailable, match="stepseal prune") as caught:
        with_room(disk, lambda: put(disk))
    assert (caught.value.errno, caught.value.path) == (errno.ENOSPC, KEY)


def test_what_cannot_be_swept_does_not_keep_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    root = staged()
    first = root.names(STAGING)[0]
    stuck = Fault(lambda verb, key: verb == "rename" and first in key, Fail(errno.EIO), sticky=True)
    disk = FaultyStorage(full(root.storage, until=1), [stuck])
    assert with_room(disk, lambda: put(disk)) == "written"
    assert root.names(STAGING) == [first]
    assert "not all" in caplog.text


def test_staging_of_a_start_whose_claim_is_not_seen_stays() -> None:
    root = staged(1)
    root.storage.remove_file(f"{INCARNATIONS}/1.json")
    disk = full(root.storage)
    with pytest.raises(StorageUnavailable):
        with_room(disk, lambda: put(disk))
    assert len(root.names(STAGING)) == 1
