from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root

from stepseal.errors import Corrupt, StepNotFound
from stepseal.process import Home
from stepseal.steps._catalog import read_step
from stepseal.steps._leases import LEASES, drop_expired, read_leases
from stepseal.steps._reading import Reading
from stepseal.steps._roots import TRASH
from stepseal.storage import KeyNotFound
from stepseal.testing import Fail, Fault, FaultyStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import Manifest
    from stepseal.storage import Entry, Storage


def manifest_of(root: Root, step: int) -> Manifest:
    root.commit(step)
    manifest = read_step(root.storage, step, root.run_id).manifest
    assert manifest is not None
    return manifest


def test_a_step_is_leased_exactly_while_it_is_read(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    with Reading(storage, manifest, clock=lambda: 1000.0) as reading:
        assert reading.is_leased
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
    assert "will expire" in caplog.text


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


class Prune:
    """Takes a step out of its place, and puts it back after some waits, if at all."""

    def __init__(self, storage: Storage, manifest: Manifest, num_waits: int) -> None:
        self._storage = storage
        self._trash = f"{TRASH}/step-10.1.{manifest.attempt}.{'0' * 16}.pruned"
        self._num_waits = num_waits
        self.waited_s: list[float] = []

    def move(self) -> None:
        self._storage.rename("step-10", self._trash)

    def put_back(self) -> None:
        self._storage.rename(self._trash, "step-10")

    def sleep(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        if len(self.waited_s) == self._num_waits:
            self.put_back()


def test_a_leased_reader_waits_for_the_prune_to_put_the_step_back(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    prune = Prune(storage, manifest, 3)
    with Reading(storage, manifest, sleep=prune.sleep) as reading:
        prune.move()
        reading.require_standing()
    assert len(prune.waited_s) == 3


def test_a_leased_reader_does_not_wait_for_ever(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    prune = Prune(storage, manifest, 0)
    prune.move()
    with (
        pytest.raises(StepNotFound, match="not put back within 10 s"),
        Reading(storage, manifest, sleep=prune.sleep),
    ):
        raise AssertionError("never entered")
    assert sum(prune.waited_s) == pytest.approx(10)


def test_a_reader_without_a_lease_does_not_wait(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    prune = Prune(storage, manifest, 1)
    plan = [Fault(lambda verb, _: verb == "create_file", Fail(errno.EROFS))]
    with Reading(FaultyStorage(storage, plan), manifest, sleep=prune.sleep) as reading:
        prune.move()
        with pytest.raises(StepNotFound, match="pruned or superseded"):
            reading.require_standing()
    assert prune.waited_s == []


def test_a_step_that_is_put_back_between_the_two_looks_stands(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    prune = Prune(storage, manifest, 0)

    class PutBack(FaultyStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            if key == TRASH:
                prune.put_back()
            return super().list_dir(key)

    with Reading(PutBack(storage), manifest, sleep=prune.sleep) as reading:
        prune.move()
        reading.require_standing()
    assert prune.waited_s == []


@pytest.mark.parametrize("how", ["seems damaged", "raises"])
def test_what_seems_damaged_is_looked_at_once_more(storage: Storage, how: str) -> None:
    manifest = manifest_of(Root(storage), 10)
    looks = iter([("damaged", [3, 4]), ("whole", [5, 1, 10])])

    def look(advance: Callable[[int], None]) -> str:
        found, sizes = next(looks)
        for size in sizes:
            advance(size)
        if found == "damaged" and how == "raises":
            raise Corrupt("a file is missing")
        return found

    told: list[int] = []
    with Reading(storage, manifest) as reading:
        found = reading.look(look, is_damaged=lambda f: f == "damaged", progress=told.append)
    assert found == "whole"
    assert told == [3, 4, 9]  # the second look told from the seventh byte on


def test_looking_renews_the_lease(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    now = [1000.0]

    def look(advance: Callable[[int], None]) -> int:
        now[0] += 500
        advance(1)
        return read_leases(storage, 0)[10]

    with Reading(storage, manifest, clock=lambda: now[0]) as reading:
        assert reading.look(look) == 1000 + 500 + 901


@pytest.mark.parametrize("num_looks", [1, 2])
def test_what_was_pruned_meanwhile_is_not_damaged(storage: Storage, num_looks: int) -> None:
    manifest = manifest_of(Root(storage), 10)
    prune = Prune(storage, manifest, 0)
    plan = [Fault(lambda verb, _: verb == "create_file", Fail(errno.EROFS))]
    looks = []

    def look(_: object) -> str:
        looks.append(1)
        if len(looks) == num_looks:
            prune.move()
        return "damaged"

    reading = Reading(FaultyStorage(storage, plan), manifest)
    with pytest.raises(StepNotFound), reading:
        reading.look(look, is_damaged=lambda _: True)
    assert len(looks) == num_looks


def test_what_stays_damaged_is_damage(storage: Storage) -> None:
    manifest = manifest_of(Root(storage), 10)
    with Reading(storage, manifest) as reading:
        assert reading.look(lambda _: "damaged", is_damaged=lambda _: True) == "damaged"


def test_a_forked_child_neither_renews_nor_ends_the_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(Root(storage), 10)
    now = [1000.0]
    with Reading(storage, manifest, clock=lambda: now[0]) as reading:
        before = read_leases(storage, 0)
        monkeypatch.setattr(Home, "is_here", property(lambda _: False))
        now[0] += 500
        reading.tick()
        reading.__exit__(None, None, None)
        assert read_leases(storage, 0) == before
        monkeypatch.undo()
    assert storage.list_dir(LEASES) == ()
