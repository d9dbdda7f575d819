from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import pytest
from tests.commit._kit import Root

from stepseal.commit._catalog import read_step
from stepseal.commit._leases import LEASES, drop_expired, read_leases
from stepseal.commit._reading import Reading
from stepseal.errors import Corrupt, StepNotFound
from stepseal.storage import KeyNotFound
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from stepseal.layout import Manifest
    from stepseal.storage import Storage


def manifest_of(root: Root, step: int) -> Manifest:
    root.commit(step)
    manifest = read_step(root.storage, step, root.run_id).manifest
    assert manifest is not None
    return manifest


def test_a_step_is_leased_exactly_while_it_is_read(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    with Reading(storage, manifest, clock=lambda: 1000.0):
        assert list(read_leases(storage, 1000)) == [10]
    assert storage.list_dir(LEASES) == ()


def test_a_long_read_renews_its_lease(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    now = [1000.0]
    with Reading(storage, manifest, clock=lambda: now[0]) as reading:
        before = read_leases(storage, 0)[10]
        reading.tick()
        assert read_leases(storage, 0)[10] == before
        now[0] += 500
        reading.tick()
        assert read_leases(storage, 0)[10] == before + 500
        assert len(storage.list_dir(LEASES)) == 1
    assert storage.list_dir(LEASES) == ()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_root_that_cannot_be_written_is_read_without_a_lease(
    storage: Storage, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = manifest_of(Root(storage), 10)
    plan = [Fault(lambda verb, _: verb == "create_file", Fail(number))]
    caplog.set_level(logging.INFO)
    with Reading(FaultyStorage(storage, plan), manifest) as reading:
        reading.tick()
    assert "without a lease" in caplog.text


def test_a_step_that_went_before_the_lease_is_not_found(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    storage.rename("step-10", ".stepseal/trash/gone")
    with pytest.raises(StepNotFound, match="pruned or superseded"), Reading(storage, manifest):
        raise AssertionError("never entered")
    assert storage.list_dir(LEASES) == ()


@pytest.mark.parametrize("error", [Corrupt("missing"), KeyNotFound("missing")])
def test_what_fails_because_the_step_went_says_so(storage: Storage, error: Exception) -> None:
    manifest = manifest_of(Root(storage), 10)

    def read() -> None:
        with Reading(storage, manifest):
            storage.rename("step-10", ".stepseal/trash/gone")
            raise error

    with pytest.raises(StepNotFound):
        read()
    assert storage.list_dir(LEASES) == ()


def test_damage_stays_damage(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    with pytest.raises(Corrupt, match="flipped"), Reading(storage, manifest):
        raise Corrupt("flipped")


def test_a_lease_that_cannot_be_released_is_logged(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = manifest_of(Root(storage), 10)
    plan = [Fault(lambda verb, _: verb == "remove_file", Fail(errno.EIO))]
    with Reading(FaultyStorage(storage, plan), manifest):
        pass
    assert "until it expires" in caplog.text


def test_a_lease_that_is_gone_when_it_is_renewed_is_reported(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manifest = manifest_of(Root(storage), 10)
    now = [1000.0]
    with Reading(storage, manifest, clock=lambda: now[0]) as reading:
        drop_expired(storage, 5000)
        now[0] += 500
        reading.tick()
    assert "without a lease" in caplog.text
