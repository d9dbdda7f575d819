"""Tests of the functions in `storage._compose` for every backend; part of `StorageSuite`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stepseal.errors import Corrupt, StorageUnavailable
from stepseal.storage import (
    KeyNotFound,
    create_durable,
    make_dirs,
    put_if_absent,
    read_bytes,
    remove_tree,
    replace_durable,
    walk_files,
)
from stepseal.testing._storage_helpers import names, put, race, tree

if TYPE_CHECKING:
    from stepseal.storage import Storage

__all__ = ["CompositionSuite"]


class CompositionSuite:
    """Base of `StorageSuite`, which provides the fixture `storage`."""

    def test_make_dirs_tolerates_what_exists(self, storage: Storage) -> None:
        make_dirs(storage, "a/b/c")
        make_dirs(storage, "a/b/d", base="a/b")
        make_dirs(storage, "a/b")
        make_dirs(storage, "")
        assert names(storage, "a/b") == ["c", "d"]
        put(storage, "f", b"")
        with pytest.raises(Corrupt):
            make_dirs(storage, "f/x")

    def test_read_bytes_is_bounded(self, storage: Storage) -> None:
        create_durable(storage, "a", b"1234")
        assert read_bytes(storage, "a", 4) == b"1234"
        with pytest.raises(Corrupt):
            read_bytes(storage, "a", 3)

    def test_put_if_absent_puts_once_and_leaves_no_litter(self, storage: Storage) -> None:
        assert put_if_absent(storage, "a", b"1")
        assert not put_if_absent(storage, "a", b"2")
        assert not put_if_absent(storage, "a", b"1")
        assert read_bytes(storage, "a", 10) == b"1"
        assert names(storage, "") == ["a"]

    def test_put_if_absent_has_one_winner_among_threads(self, storage: Storage) -> None:
        for key in ("claim-0", "claim-1", "claim-2", "claim-3"):
            assert sorted(race(storage, key, 8)) == [False] * 7 + [True]
            assert read_bytes(storage, key, 100) == b"same for all"
        assert len(names(storage, "")) == 4

    def test_replace_durable_replaces(self, storage: Storage) -> None:
        replace_durable(storage, "latest", b"1")
        replace_durable(storage, "latest", b"22")
        assert read_bytes(storage, "latest", 10) == b"22"
        assert names(storage, "") == ["latest"]
        storage.make_dir("d")
        with pytest.raises(StorageUnavailable):
            replace_durable(storage, "d", b"")
        assert names(storage, "") == ["d", "latest"]

    def test_remove_tree_removes_all_below_and_nothing_beside(self, storage: Storage) -> None:
        tree(storage)
        make_dirs(storage, "full/1/2/3")
        put(storage, "full/1/2/f", b"")
        remove_tree(storage, "full")
        remove_tree(storage, "a")
        assert names(storage, "") == ["empty", "file", "moving"]
        with pytest.raises(KeyNotFound):
            remove_tree(storage, "full")

    def test_walk_files_finds_everything_that_is_not_a_directory(self, storage: Storage) -> None:
        tree(storage)
        assert [path for path, _ in walk_files(storage, "")] == ["a", "file", "full/x", "moving/m"]
        assert [path for path, _ in walk_files(storage, "full")] == ["x"]
        assert walk_files(storage, "empty") == []
        with pytest.raises(Corrupt):
            walk_files(storage, "a")
