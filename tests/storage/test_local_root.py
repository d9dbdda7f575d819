from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import Corrupt, InvalidInput, RootNotFound, StorageUnavailable
from stepseal.storage import (
    LocalStorage,
    create_durable,
    make_dirs,
    put_if_absent,
    remove_tree,
    replace_durable,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.storage.conftest import FakeCalls


def test_a_missing_root_is_not_made_by_open(tmp_path: Path) -> None:
    with pytest.raises(RootNotFound) as caught:
        LocalStorage.open(tmp_path / "no")
    assert caught.value.path == str(tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("make", [LocalStorage.open, LocalStorage.create])
@pytest.mark.parametrize("kind", ["file", "fifo", "below a file", "empty", "nul"])
def test_a_root_that_is_no_directory_is_refused(
    tmp_path: Path, kind: str, make: Callable[[str], LocalStorage]
) -> None:
    place = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_bytes(b"")
    path = {"below a file": str(place / "y"), "empty": "", "nul": "a\0b"}.get(kind, str(place))
    with pytest.raises(InvalidInput):
        make(path)


def test_create_refuses_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput):
        LocalStorage.create(tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


def test_create_makes_parents_and_may_be_repeated(tmp_path: Path) -> None:
    for _ in range(2):
        with LocalStorage.create(tmp_path / "a" / "b" / "c/") as storage:
            assert storage.list_dir("") == ()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_relative_root_is_named_absolutely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with LocalStorage.create("runs/a") as storage:
        assert storage.root == str(tmp_path / "runs" / "a")
        assert str(tmp_path) in repr(storage)


def test_create_surfaces_a_parent_that_cannot_be_synced(tmp_path: Path, calls: FakeCalls) -> None:
    calls.fsync_dir_error = calls.error(errno.EIO)
    with pytest.raises(StorageUnavailable) as caught:
        LocalStorage.create(tmp_path / "a", calls=calls)
    assert (caught.value.errno, caught.value.path) == (errno.EIO, str(tmp_path / "a"))


def test_a_root_stays_the_same_directory_when_its_path_changes(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with LocalStorage.open(link) as storage:
        link.unlink()
        link.symlink_to(tmp_path / "other")
        create_durable(storage, "a", b"1")
        (tmp_path / "real").rename(tmp_path / "moved")
        create_durable(storage, "b", b"2")
    assert sorted(os.listdir(tmp_path / "moved")) == ["a", "b"]
    assert os.listdir(tmp_path / "other") == []


def test_a_closed_storage_refuses(root: Path) -> None:
    storage = LocalStorage.open(root)
    storage.close()
    storage.close()
    with pytest.raises(StorageUnavailable) as caught:
        storage.list_dir("")
    assert caught.value.errno == errno.EBADF


def test_no_descriptor_is_left_open(storage: LocalStorage, root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to(root)
    before = os.listdir("/proc/self/fd")
    make_dirs(storage, "a/b")
    put_if_absent(storage, "a/b/c", b"1")
    replace_durable(storage, "a/d", b"2")
    for verb in (storage.open_read, storage.create_file, storage.list_dir):
        for key in ("no", "no/x", "fifo", "link", "link/x", "a"):
            try:
                handle = verb(key)
            except (StorageUnavailable, Corrupt):
                continue
            if not isinstance(handle, tuple):
                handle.close()
    remove_tree(storage, "a")
    assert os.listdir("/proc/self/fd") == before


def test_a_refused_root_is_named_by_its_path(tmp_path: Path, calls: FakeCalls) -> None:
    path = tmp_path / "root"
    with LocalStorage.create(path) as storage:
        make_dirs(storage, "a")
    calls.fsync_dir_error = calls.error(errno.EIO)
    with LocalStorage.open(path, calls=calls) as storage:
        with pytest.raises(StorageUnavailable) as alone:
            storage.sync_dir("")
        with pytest.raises(StorageUnavailable) as under:
            storage.sync_dir("a")
    assert f"cannot sync directory '{path}': expected success" in str(alone.value)
    assert alone.value.path == ""
    assert f"cannot sync directory 'a' under {path}: expected success" in str(under.value)


class FailingClose:
    """`os.close` that closes, and fails for the n-th directory of this process."""

    def __init__(self, at: int) -> None:
        self.left = at
        self._close = os.close
        self._process = os.getpid()

    def __call__(self, fd: int) -> None:
        counts = stat.S_ISDIR(os.fstat(fd).st_mode) and os.getpid() == self._process
        self._close(fd)
        self.left -= counts
        if counts and self.left == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failing_close_is_told_as_what_storage_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for at in range(1000):
        failing = FailingClose(at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "close", failing)
            try:
                with LocalStorage.create(tmp_path / f"{at}" / "root") as storage:
                    make_dirs(storage, "a/b/c")
                    storage.stat("a/b/c")
            except StorageUnavailable as error:
                told.append(error.errno)
        if failing.left >= 0:
            break
    assert len(told) >= 10
    assert set(told) == {errno.EIO}  # not EBADF: nothing is closed twice


def test_a_root_takes_over_what_its_path_leads_to(root: Path, tmp_path: Path) -> None:
    with LocalStorage.open(root) as storage:
        create_durable(storage, "old", b"1")
        with storage.open_read("old") as handle:
            root.rename(tmp_path / "moved")
            root.mkdir()
            (root / "new").mkdir()
            with LocalStorage.open(root) as found:
                storage.take_over(found)
            assert [entry.name for entry in storage.list_dir("")] == ["new"]
            handle.read_into(bytearray(1), 0)
        descriptor = storage._root_fd
        assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)
    with LocalStorage.open(root) as found, pytest.raises(StorageUnavailable, match="EBADF"):
        storage.take_over(found)
