"""Tests that every storage backend must pass; inherit them in your own test class.

class TestMyStorage(StorageSuite):
def make_storage(self, tmp_path: Path) -> Storage:
return MyStorage(...)
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import Corrupt, InvalidInput, StorageUnavailable
from stepseal.storage import (
    KeyExists,
    KeyNotFound,
    NotSupported,
    Storage,
    make_dirs,
    read_bytes,
    walk_files,
)
from stepseal.testing._composition_suite import CompositionSuite
from stepseal.testing._storage_helpers import (
    BAD_KEYS,
    ODD_NAMES,
    names,
    put,
    renaming,
    tree,
    uses_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["StorageSuite"]


class StorageSuite(CompositionSuite):
    """Inherit from this class, and define `make_storage`."""

    def make_storage(self, tmp_path: Path) -> Storage:
        """Return an empty storage; `tmp_path` is a new, empty directory for this test."""
        raise NotImplementedError

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[Storage]:
        """Give each test its own storage, closed afterwards if it can be."""
        storage = self.make_storage(tmp_path)
        yield storage
        getattr(storage, "close", lambda: None)()

    # -- keys --------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_bad_key_is_refused_by_every_verb_and_touches_nothing(
        self, storage: Storage, key: str
    ) -> None:
        put(storage, "ok", b"1")
        verbs: list[Callable[[], object]] = [
            lambda: storage.open_read(key),
            lambda: storage.stat(key),
            lambda: storage.list_dir(key),
            lambda: storage.list_marks(key, "f"),
            lambda: storage.create_file(key),
            lambda: storage.make_dir(key),
            lambda: storage.sync_dir(key),
            lambda: storage.local_path(key),
            lambda: storage.adopt(key),
            lambda: storage.link("ok", key),
            lambda: storage.link(key, "new"),
            lambda: storage.rename("ok", key),
            lambda: storage.rename(key, "new", replace=True),
            lambda: storage.exchange("ok", key),
            lambda: storage.exchange(key, "ok"),
            lambda: storage.remove_file(key),
            lambda: storage.remove_dir(key),
        ]
        for verb in verbs:
            with pytest.raises(InvalidInput):
                verb()
        assert names(storage, "") == ["ok"]

    def test_the_root_is_listed_and_synced_but_never_changed(self, storage: Storage) -> None:
        assert storage.list_dir("") == ()
        assert (storage.stat("").kind, storage.stat("").name) == ("directory", "")
        storage.sync_dir("")
        changes: list[Callable[[], object]] = [
            lambda: storage.open_read(""),
            lambda: storage.create_file(""),
            lambda: storage.make_dir(""),
            lambda: storage.adopt(""),
            lambda: storage.remove_file(""),
            lambda: storage.remove_dir(""),
            lambda: storage.rename("", "a"),
            lambda: storage.exchange("a", ""),
        ]
        for change in changes:
            with pytest.raises(InvalidInput):
                change()

    @pytest.mark.parametrize("key", ODD_NAMES)
    def test_an_unusual_but_safe_key_works(self, storage: Storage, key: str) -> None:
        put(storage, key, b"1")
        assert names(storage, "") == [key]
        assert read_bytes(storage, key, 10) == b"1"
        storage.remove_file(key)

    # -- files -------------------------------------------------------------------------------

    def test_what_was_written_is_read(self, storage: Storage) -> None:
        data = bytes(range(256)) * 300
        with storage.create_file("a") as handle:
            handle.write(data[1000:], 1000)
            handle.write(memoryview(data)[:1000], 0)
            handle.write(b"", 5)
            handle.sync()
        with storage.open_read("a") as reader:
            assert reader.size_bytes == len(data)
            part = bytearray(777)
            reader.read_into(part, 4321)
            assert part == data[4321 : 4321 + 777]
            reader.read_into(bytearray(), 0)
        assert storage.stat("a").size_bytes == len(data)

    def test_a_gap_reads_as_zeros(self, storage: Storage) -> None:
        with storage.create_file("a") as handle:
            handle.write(b"x", 4)
        assert read_bytes(storage, "a", 10) == b"\0\0\0\0x"

    def test_any_contiguous_buffer_is_its_bytes(self, storage: Storage) -> None:
        words = memoryview(bytearray(range(24))).cast("I")
        put(storage, "a", words)
        assert read_bytes(storage, "a", 100) == bytes(range(24))
        target = memoryview(bytearray(24)).cast("Q", (3, 1))
        with storage.open_read("a") as reader:
            reader.read_into(target, 0)
        assert target.tobytes() == bytes(range(24))

    def test_a_wrong_buffer_or_offset_is_refused(self, storage: Storage) -> None:
        with storage.create_file("a") as handle:
            with pytest.raises(InvalidInput):
                handle.write(memoryview(b"abcd")[::2], 0)
            with pytest.raises(InvalidInput):
                handle.write(b"abcd", -1)
            handle.write(b"abcd", 0)
        with storage.open_read("a") as reader:
            with pytest.raises(InvalidInput):
                reader.read_into(b"1234", 0)
            with pytest.raises(InvalidInput):
                reader.read_into(bytearray(2), -1)

    @pytest.mark.parametrize(("size", "offset"), [(1, 4), (5, 0), (2, 3), (1, 1 << 40)])
    def test_a_read_past_the_end_is_refused(self, storage: Storage, size: int, offset: int) -> None:
        put(storage, "a", b"1234")
        with storage.open_read("a") as reader, pytest.raises(StorageUnavailable) as caught:
            reader.read_into(bytearray(size), offset)
        assert caught.value.path == "a"

    def test_create_is_exclusive(self, storage: Storage) -> None:
        put(storage, "a", b"old")
        storage.make_dir("d")
        for key in ("a", "d"):
            with pytest.raises(KeyExists) as caught:
                storage.create_file(key)
            assert (caught.value.path, caught.value.errno) == (key, errno.EEXIST)
        assert read_bytes(storage, "a", 10) == b"old"

    def test_a_closed_handle_refuses_and_closes_again(self, storage: Storage) -> None:
        handle = storage.create_file("a")
        handle.close()
        handle.close()
        changes: list[Callable[[], None]] = [lambda: handle.write(b"1", 0), handle.sync]
        for change in changes:
            with pytest.raises(StorageUnavailable):
                change()
        reader = storage.open_read("a")
        reader.close()
        reader.close()
        with pytest.raises(StorageUnavailable):
            reader.read_into(bytearray(1), 0)

    def test_the_error_of_the_block_is_the_one_that_leaves_it(self, storage: Storage) -> None:
        with pytest.raises(ZeroDivisionError), storage.create_file("a"):
            raise ZeroDivisionError

    def test_an_open_file_is_read_after_its_name_is_gone(self, storage: Storage) -> None:
        put(storage, "a", b"1234")
        with storage.open_read("a") as reader:
            storage.remove_file("a")
            found = bytearray(4)
            reader.read_into(found, 0)
        assert found == b"1234"

    # -- directories -------------------------------------------------------------------------

    def test_a_listing_is_sorted_and_says_kinds_and_sizes(self, storage: Storage) -> None:
        storage.make_dir("d")
        for name in ("b", "a", "C"):
            put(storage, f"d/{name}", name.encode() * 3)
        storage.make_dir("d/sub")
        found = [(entry.name, entry.kind) for entry in storage.list_dir("d")]
        assert found == [("C", "file"), ("a", "file"), ("b", "file"), ("sub", "directory")]
        assert storage.list_dir("d")[0].size_bytes == 3
        assert storage.stat("d/b") == storage.list_dir("d")[2]
        assert storage.stat("d").device == storage.stat("d/sub").device

    def test_a_mark_changes_with_the_bytes_of_the_file(self, storage: Storage) -> None:
        make_dirs(storage, "d/a")
        make_dirs(storage, "d/b")
        for key in ("d/a/f", "d/b/f", "d/f"):
            put(storage, key, b"1")
        found = storage.list_marks("d", "f")
        assert found == storage.list_marks("d", "f")
        assert set(found) == {"a", "b", "f"}
        assert found["f"] is None
        assert None not in (found["a"], found["b"])
        storage.remove_file("d/a/f")
        assert storage.list_marks("d", "f") == {**found, "a": None}
        put(storage, "d/a/f", b"2")
        changed = storage.list_marks("d", "f")
        assert changed["a"] not in (None, found["a"])
        assert changed["b"] == found["b"]
        with pytest.raises(KeyNotFound):
            storage.list_marks("no", "f")

    def test_a_listing_does_not_miss_what_is_renamed_meanwhile(self, storage: Storage) -> None:
        make_dirs(storage, "d")
        put(storage, "d/0", b"")
        with renaming(storage, "d"):
            looks = [names(storage, "d") for _ in range(50)]
        assert all(looks)

    def test_make_dir_is_exclusive_and_needs_its_parent(self, storage: Storage) -> None:
        storage.make_dir("d")
        put(storage, "f", b"")
        for key in ("d", "f"):
            with pytest.raises(KeyExists):
                storage.make_dir(key)
        with pytest.raises(KeyNotFound):
            storage.make_dir("no/d")

    def test_absent_keys_are_not_found_by_any_verb(self, storage: Storage) -> None:
        put(storage, "ok", b"")
        for key in ("no", "no/no"):
            for verb in uses_of(storage, key):
                with pytest.raises(KeyNotFound) as caught:
                    verb()
                assert caught.value.errno == errno.ENOENT
        assert names(storage, "") == ["ok"]

    def test_a_file_in_the_way_is_named(self, storage: Storage) -> None:
        put(storage, "f", b"")
        for verb in (storage.open_read, storage.stat, storage.create_file, storage.make_dir):
            with pytest.raises(Corrupt) as caught:
                verb("f/x")
            assert (caught.value.path, caught.value.found) == ("f", "regular file")
        with pytest.raises(Corrupt):
            storage.list_dir("f")
        storage.make_dir("d")
        with pytest.raises(Corrupt) as caught:
            storage.open_read("d")
        assert caught.value.found == "directory"

    def test_remove_takes_only_its_own_kind(self, storage: Storage) -> None:
        storage.make_dir("d")
        put(storage, "d/f", b"")
        cases = [
            (storage.remove_file, "d", errno.EISDIR),
            (storage.remove_dir, "d/f", errno.ENOTDIR),
            (storage.remove_dir, "d", errno.ENOTEMPTY),
        ]
        for verb, key, number in cases:
            with pytest.raises(StorageUnavailable) as caught:
                verb(key)
            assert (caught.value.errno, caught.value.path) == (number, key)
        storage.remove_file("d/f")
        storage.remove_dir("d")
        assert storage.list_dir("") == ()

    # -- link, rename, exchange --------------------------------------------------------------

    def test_link_gives_a_second_name_to_the_same_file(self, storage: Storage) -> None:
        storage.make_dir("d")
        put(storage, "a", b"1")
        storage.link("a", "d/b")
        assert storage.stat("a").inode == storage.stat("d/b").inode
        storage.remove_file("a")
        assert read_bytes(storage, "d/b", 10) == b"1"

    def test_link_never_replaces(self, storage: Storage) -> None:
        put(storage, "a", b"1")
        put(storage, "b", b"2")
        storage.make_dir("d")
        for target in ("b", "d"):
            with pytest.raises(KeyExists):
                storage.link("a", target)
        with pytest.raises(StorageUnavailable):
            storage.link("d", "e")
        assert read_bytes(storage, "b", 10) == b"2"

    @pytest.mark.parametrize("target", ["file", "empty", "full"])
    @pytest.mark.parametrize("source", ["a", "moving"])
    def test_rename_never_replaces_unasked(
        self, storage: Storage, source: str, target: str
    ) -> None:
        tree(storage)
        before = walk_files(storage, "")
        with pytest.raises(KeyExists) as caught:
            storage.rename(source, target)
        assert caught.value.path == target
        assert walk_files(storage, "") == before

    def test_rename_moves_files_and_whole_directories(self, storage: Storage) -> None:
        tree(storage)
        storage.rename("a", "empty/b")
        storage.rename("moving", "full/moved")
        assert [path for path, _ in walk_files(storage, "")] == [
            "empty/b", "file", "full/moved/m", "full/x",
        ]  # fmt: skip

    def test_rename_replaces_when_asked(self, storage: Storage) -> None:
        tree(storage)
        storage.rename("a", "file", replace=True)
        assert read_bytes(storage, "file", 10) == b"a"
        storage.rename("moving", "empty", replace=True)
        assert names(storage, "empty") == ["m"]
        with pytest.raises(KeyExists):
            storage.rename("empty", "full", replace=True)
        for source, target in (("file", "full"), ("full", "file")):
            with pytest.raises(StorageUnavailable):
                storage.rename(source, target, replace=True)

    def test_rename_replace_leaves_open_readers_their_file(self, storage: Storage) -> None:
        tree(storage)
        with storage.open_read("file") as reader:
            storage.rename("a", "file", replace=True)
            found = bytearray(4)
            reader.read_into(found, 0)
        assert found == b"file"

    @pytest.mark.parametrize(
        ("first", "second"), [("a", "a"), ("full", "full/x"), ("full/x", "full")]
    )
    def test_a_key_inside_the_other_is_refused(
        self, storage: Storage, first: str, second: str
    ) -> None:
        tree(storage)
        for verb in (storage.rename, storage.exchange, storage.link):
            with pytest.raises(InvalidInput):
                verb(first, second)

    def test_exchange_swaps_any_kinds_or_says_that_there_is_none(self, storage: Storage) -> None:
        tree(storage)
        before = walk_files(storage, "")
        try:
            storage.exchange("moving", "full")
        except NotSupported:
            with pytest.raises(NotSupported):
                storage.exchange("file", "full/x")
            assert walk_files(storage, "") == before
            return
        assert (names(storage, "moving"), names(storage, "full")) == (["x"], ["m"])
        storage.exchange("file", "full/m")
        assert read_bytes(storage, "file", 10) == b"m"
        storage.exchange("file", "empty")
        assert (storage.stat("file").kind, storage.stat("empty").kind) == ("directory", "file")

    def test_what_is_adopted_is_told_as_it_is(self, storage: Storage) -> None:
        tree(storage)
        found = storage.adopt("file")
        assert found == storage.stat("file")
        assert (found.name, found.kind, found.size_bytes) == ("file", "file", 4)
        assert (storage.adopt("full").kind, names(storage, "full")) == ("directory", ["x"])
        with pytest.raises(KeyNotFound):
            storage.adopt("absent")

    def test_free_space_is_told_in_bytes_or_not_at_all(self, storage: Storage) -> None:
        found = storage.free_space()
        assert found is None or found.size_bytes >= 0

    def test_sync_support_gives_reasons_for_best_effort(self, storage: Storage) -> None:
        facts = storage.sync_support()
        assert facts.durability == ("best-effort" if facts.doubts else "fsync")
