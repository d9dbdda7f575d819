from __future__ import annotations

import errno
import os
import pickle
import stat
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import StorageUnavailable
from stepseal.storage import (
    KeyExists,
    LocalStorage,
    create_durable,
    make_dirs,
    put_if_absent,
    read_bytes,
    replace_durable,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage.conftest import FakeCalls


@pytest.mark.parametrize(
    "results", [[1, 2, 3], [1] * 9, [InterruptedError(errno.EINTR, "x"), 4, 1]]
)
def test_short_writes_and_reads_are_continued(
    faked: LocalStorage, calls: FakeCalls, results: list[int | OSError]
) -> None:
    calls.write_results = list(results)
    create_durable(faked, "a", b"0123456789")
    calls.read_results = list(results)
    assert read_bytes(faked, "a", 100) == b"0123456789"
    assert not calls.write_results
    assert not calls.read_results


def test_a_write_that_accepts_nothing_is_an_error_not_a_loop(
    faked: LocalStorage, calls: FakeCalls
) -> None:
    calls.write_results = [3, 0]
    with pytest.raises(StorageUnavailable):
        create_durable(faked, "a", b"0123456789")


LARGE = bytes(range(256)) * 8192


def test_large_writes_pass_the_page_cache_and_small_ones_do_not(
    faked: LocalStorage, calls: FakeCalls
) -> None:
    with faked.create_file("a") as handle:
        handle.write(LARGE[:100], 0)
        assert calls.num_uncached == 0
        handle.write(LARGE, 100)
    assert calls.num_uncached == 1
    assert read_bytes(faked, "a", 1 << 22) == LARGE[:100] + LARGE


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_file_system_without_the_flag_is_asked_once(
    faked: LocalStorage, calls: FakeCalls, number: int
) -> None:
    calls.uncached_error = calls.error(number)
    create_durable(faked, "a", LARGE)
    calls.uncached_error = None
    create_durable(faked, "b", LARGE)
    assert calls.num_uncached == 0
    assert read_bytes(faked, "a", 1 << 22) == read_bytes(faked, "b", 1 << 22) == LARGE


def test_a_refusal_that_is_not_about_the_flag_is_reported_and_not_remembered(
    faked: LocalStorage, calls: FakeCalls
) -> None:
    calls.uncached_error = calls.error(errno.ENOSPC)
    with pytest.raises(StorageUnavailable) as caught:
        create_durable(faked, "a", LARGE)
    assert caught.value.errno == errno.ENOSPC
    calls.uncached_error = calls.error(errno.EPERM)
    calls.write_results = [calls.error(errno.EPERM)]  # it is not the flag
    with pytest.raises(StorageUnavailable):
        create_durable(faked, "b", LARGE)
    calls.uncached_error = None
    create_durable(faked, "c", LARGE)
    assert calls.num_uncached == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_refused_write_names_errno_key_and_root(
    faked: LocalStorage, calls: FakeCalls, root: Path, number: int
) -> None:
    calls.write_results = [4, calls.error(number)]
    handle = faked.create_file("a")
    with pytest.raises(StorageUnavailable) as caught:
        handle.write(b"0123456789", 0)
    assert (caught.value.errno, caught.value.path) == (number, "a")
    assert str(root) in str(caught.value)
    assert errno.errorcode[number] in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.errno, copy.path, str(copy)) == (number, "a", str(caught.value))
    with pytest.raises(StorageUnavailable):
        handle.sync()
    assert calls.num_fsyncs == 0
    handle.close()


def test_a_failed_fsync_surfaces_and_is_never_retried(
    faked: LocalStorage, calls: FakeCalls
) -> None:
    calls.fsync_error = calls.error(errno.EIO)
    handle = faked.create_file("a")
    handle.write(b"1", 0)
    with pytest.raises(StorageUnavailable) as caught:
        handle.sync()
    assert caught.value.errno == errno.EIO
    calls.fsync_error = None
    for change in (handle.sync, lambda: handle.write(b"2", 1)):
        with pytest.raises(StorageUnavailable):
            change()
    assert calls.num_fsyncs == 1
    handle.close()
    assert len(calls.closed) == 1


def test_a_failed_close_surfaces_and_closes_once(faked: LocalStorage, calls: FakeCalls) -> None:
    calls.close_error = calls.error(errno.EDQUOT)
    with pytest.raises(StorageUnavailable) as caught:
        create_durable(faked, "a", b"1")
    assert caught.value.errno == errno.EDQUOT
    assert len(calls.closed) == 1


def test_an_interrupted_close_has_closed(faked: LocalStorage, calls: FakeCalls) -> None:
    calls.close_error = InterruptedError(errno.EINTR, "interrupted")
    create_durable(faked, "a", b"1")
    assert len(calls.closed) == 1


def test_the_first_error_is_reported_not_that_of_close(
    faked: LocalStorage, calls: FakeCalls
) -> None:
    calls.fsync_error, calls.close_error = calls.error(errno.EIO), calls.error(errno.EDQUOT)
    with pytest.raises(StorageUnavailable) as caught:
        create_durable(faked, "a", b"1")
    assert caught.value.errno == errno.EIO


def test_a_directory_sync_that_fails_surfaces(faked: LocalStorage, calls: FakeCalls) -> None:
    faked.sync_support()
    calls.fsync_dir_error = calls.error(errno.EIO)
    with pytest.raises(StorageUnavailable) as caught:
        make_dirs(faked, "a")
    assert (caught.value.errno, caught.value.path) == (errno.EIO, "")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_files_are_0600_and_directories_0700_under_any_umask(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        with LocalStorage.create(tmp_path / "root") as storage:
            make_dirs(storage, "a/b")
            put_if_absent(storage, "a/f", b"")
            replace_durable(storage, "a/g", b"")
    finally:
        os.umask(previous)
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "root").rglob("*")
    }
    assert found == {"a": 0o700, "b": 0o700, "f": 0o600, "g": 0o600}
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o700


def test_what_cannot_have_its_mode_leaves_no_name(
    storage: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _mode: int) -> None:
        raise OSError(errno.EIO, "x")

    previous = os.umask(0o777)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fchmod", refuse)
            for make in (storage.create_file, storage.make_dir):
                with pytest.raises(StorageUnavailable) as caught:
                    make("a")
                assert caught.value.errno == errno.EIO
    finally:
        os.umask(previous)
    assert list(root.iterdir()) == []


def test_an_interrupted_rename_is_continued(faked: LocalStorage, calls: FakeCalls) -> None:
    create_durable(faked, "a", b"1")
    calls.rename_errors = [InterruptedError(errno.EINTR, "x")] * 2
    faked.rename("a", "b")
    assert faked.stat("b").kind == "file"


def test_a_rename_onto_a_symlink_is_a_conflict_not_a_walk(
    storage: LocalStorage, root: Path, tmp_path: Path
) -> None:
    storage.make_dir("staging")
    (root / "step-1").symlink_to(tmp_path)
    with pytest.raises(KeyExists):
        storage.rename("staging", "step-1")
    storage.exchange("staging", "step-1")
    assert (storage.stat("staging").kind, storage.stat("step-1").kind) == ("symlink", "directory")


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EIO, errno.ENOENT])
def test_a_lost_answer_of_link_is_resolved_by_looking(
    faked: LocalStorage, calls: FakeCalls, root: Path, number: int
) -> None:
    calls.link_error = calls.error(number)
    assert put_if_absent(faked, "a", b"1")
    assert os.listdir(root) == ["a"]
