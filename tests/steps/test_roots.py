from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.steps._kit import Root, damage, exists, overwrite

from stepseal import errors
from stepseal.layout import MARKER, seal
from stepseal.steps._catalog import read_marker
from stepseal.steps._roots import initialise_root
from stepseal.storage import create_durable, make_dirs
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Entry, Storage


def test_initialising_is_idempotent(storage: Storage) -> None:
    run_id = initialise_root(storage)
    assert run_id == initialise_root(storage) == read_marker(storage)
    names = [entry.name for entry in storage.list_dir(".stepseal")]
    assert names == ["incarnations", "leases", "pins", "staging", "superseded", "trash"]


def test_root_without_marker_is_no_root(storage: Storage) -> None:
    with pytest.raises(errors.RootNotFound, match="/a/b has no"):
        read_marker(storage, "/a/b")


def test_newer_format_is_refused_and_nothing_is_made(storage: Storage) -> None:
    create_durable(storage, MARKER, seal({"format_version": 2, "run_id": "0" * 32}))
    with pytest.raises(errors.IncompatibleFormat) as caught:
        initialise_root(storage)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert not exists(storage, ".stepseal")


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"format_version": 1},
        {"format_version": 0, "run_id": "0" * 32},
        {"format_version": True, "run_id": "0" * 32},
        {"format_version": "1", "run_id": "0" * 32},
        {"format_version": 1, "run_id": "0" * 31},
        {"format_version": 1, "run_id": "X" * 32},
        {"format_version": 1, "run_id": 5},
    ],
)
def test_marker_of_another_shape_is_refused(body: object) -> None:
    storage = MemoryStorage()
    create_durable(storage, MARKER, seal(body))
    with pytest.raises(errors.Corrupt):
        initialise_root(storage)


def test_each_flipped_bit_of_the_marker_is_noticed() -> None:
    storage = MemoryStorage()
    create_durable(storage, MARKER, seal({"format_version": 1, "run_id": "0" * 32}))
    with storage.open_read(MARKER) as handle:
        data = bytearray(handle.size_bytes)
        handle.read_into(data, 0)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        overwrite(storage, MARKER, bytes(flipped))
        with pytest.raises(errors.Corrupt, match="restore the marker from a backup"):
            read_marker(storage)


def test_oversized_marker_is_refused(storage: Storage) -> None:
    create_durable(storage, MARKER, b" " * 5000)
    with pytest.raises(errors.Corrupt):
        read_marker(storage)


@pytest.mark.parametrize("damaged", [False, True])
def test_lost_marker_of_a_root_with_steps_is_no_fresh_root(storage: Storage, damaged: bool) -> None:
    root = Root(storage)
    root.commit(5)
    storage.remove_file(MARKER)
    if damaged:
        damage(storage, 5)
    with pytest.raises(errors.Corrupt, match="step-5") as caught:
        initialise_root(storage)
    assert caught.value.expected == (() if damaged else (root.run_id,))
    assert not exists(storage, MARKER)
    with pytest.raises(
        errors.Corrupt, match=r"/a/b has steps up to step-5 \(1 in all\), but no stepseal\.json"
    ):
        read_marker(storage, "/a/b")


def test_a_job_that_begins_between_two_looks_has_lost_no_marker() -> None:
    storage = MemoryStorage()

    class Begun(FaultyStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            Root(storage).commit(5)
            return super().list_dir(key)

    assert read_marker(Begun(storage)) == read_marker(storage)


def test_foreign_folders_do_not_keep_a_root_from_being_made(storage: Storage) -> None:
    make_dirs(storage, "step-5")
    create_durable(storage, "step-5/.metadata", b"x")
    assert initialise_root(storage)


def test_two_that_initialise_at_once_agree(storage: Storage) -> None:
    class Racing(FaultyStorage):
        def make_dir(self, key: str) -> None:
            super().make_dir(key)
            if key == ".stepseal/trash":
                other.append(initialise_root(storage))

    other: list[str] = []
    assert [initialise_root(Racing(storage))] == other


@pytest.mark.parametrize("at", range(30))
def test_failing_at_any_operation_leaves_a_root_that_can_be_made(at: int) -> None:
    storage = MemoryStorage()
    with suppress(errors.StorageUnavailable):
        initialise_root(FaultyStorage(storage, [Fault(at, Fail(errno.EIO))]))
    assert initialise_root(storage) == read_marker(storage)
