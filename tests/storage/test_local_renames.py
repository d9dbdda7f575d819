"""Storage on a file system without the flags of renameat2: same promises, no exchange."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from tests._flagless import FlaglessCalls

from stepseal.errors import StorageUnavailable
from stepseal.storage import (
    KeyExists,
    LocalStorage,
    NotSupported,
    create_durable,
    make_dirs,
    read_bytes,
)
from stepseal.testing import StorageSuite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepseal.storage import Storage

NUMBERS = [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP]


class TestStorageWithoutRenameFlags(StorageSuite):
    def make_storage(self, tmp_path: Path) -> Storage:
        return LocalStorage.create(tmp_path / "root", calls=FlaglessCalls())


@pytest.fixture(params=NUMBERS)
def flagless(request: pytest.FixtureRequest) -> FlaglessCalls:
    return FlaglessCalls(request.param)


@pytest.fixture
def fallen_back(root: Path, flagless: FlaglessCalls) -> Iterator[LocalStorage]:
    with LocalStorage.open(root, calls=flagless) as storage:
        yield storage


def test_what_is_missing_is_asked_for_once(
    fallen_back: LocalStorage, flagless: FlaglessCalls
) -> None:
    create_durable(fallen_back, "e1", b"")
    for number in range(5):
        make_dirs(fallen_back, "d")
        fallen_back.rename("d", f"moved-{number}")
        create_durable(fallen_back, "f", b"1")
        fallen_back.rename("f", f"g{number}")
        create_durable(fallen_back, "e0", b"")
        with pytest.raises(NotSupported) as caught:
            fallen_back.exchange("e0", "e1")
        fallen_back.remove_file("e0")
        assert (caught.value.errno, caught.value.path) == (flagless.number, "e1")
    assert flagless.num_asked == 2


def test_a_flag_that_is_there_is_used_beside_one_that_is_not(root: Path) -> None:
    class NoExchange(FlaglessCalls):
        def renameat2(
            self, source: str, source_fd: int, target: str, target_fd: int, flags: int
        ) -> None:
            if flags == 2:
                super().renameat2(source, source_fd, target, target_fd, flags)
            super(FlaglessCalls, self).renameat2(source, source_fd, target, target_fd, flags)

        def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            raise AssertionError("the substitute was used")

    with LocalStorage.open(root, calls=NoExchange()) as storage:
        make_dirs(storage, "a")
        storage.rename("a", "b")
        make_dirs(storage, "a")
        with pytest.raises(NotSupported):
            storage.exchange("a", "b")


def test_an_error_that_is_no_lack_of_the_call_is_told(root: Path) -> None:
    class Broken(FlaglessCalls):
        def __init__(self) -> None:
            super().__init__(errno.EIO)

    with LocalStorage.open(root, calls=Broken()) as storage:
        create_durable(storage, "a", b"1")
        for verb in (storage.rename, storage.exchange):
            with pytest.raises(StorageUnavailable) as caught:
                verb("a", "b")
            assert caught.value.errno == errno.EIO
            assert not isinstance(caught.value, NotSupported)
        assert os.listdir(root) == ["a"]


class _Rival(FlaglessCalls):
    """Somebody takes the target between the look and the rename."""

    def __init__(self, root: Path, what: str) -> None:
        super().__init__()
        self._place = root / "step"
        self._what = what

    def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
        if self._what == "file":
            self._place.write_bytes(b"rival")
        else:
            self._place.mkdir()
            if self._what == "full":
                (self._place / "manifest.json").write_bytes(b"rival")
        super().rename(source, source_fd, target, target_fd)


@pytest.mark.parametrize("what", ["full", "file"])
def test_what_appears_after_the_look_is_not_replaced(root: Path, what: str) -> None:
    with LocalStorage.open(root, calls=_Rival(root, what)) as storage:
        make_dirs(storage, "staging")
        create_durable(storage, "staging/manifest.json", b"ours")
        with pytest.raises(KeyExists):
            storage.rename("staging", "step")
        key = "step" if what == "file" else "step/manifest.json"
        assert read_bytes(storage, key, 10) == b"rival"
        assert read_bytes(storage, "staging/manifest.json", 10) == b"ours"


def test_only_an_empty_directory_that_appears_after_the_look_gives_way(root: Path) -> None:
    with LocalStorage.open(root, calls=_Rival(root, "empty")) as storage:
        make_dirs(storage, "staging")
        create_durable(storage, "staging/manifest.json", b"ours")
        storage.rename("staging", "step")
        assert read_bytes(storage, "step/manifest.json", 10) == b"ours"


def test_a_sandbox_that_does_not_know_the_call_is_no_lack_of_permissions(root: Path) -> None:
    calls = FlaglessCalls(errno.EPERM)
    with LocalStorage.open(root, calls=calls) as storage:
        make_dirs(storage, "a")
        create_durable(storage, "f", b"1")
        storage.rename("a", "b")
        storage.rename("f", "b/f")
        assert calls.num_asked == 1
        make_dirs(storage, "c")
        with pytest.raises(NotSupported):
            storage.exchange("b", "c")
        assert read_bytes(storage, "b/f", 10) == b"1"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_permissions_that_are_missing_are_told_and_not_taken_for_the_flag(
    root: Path, number: int
) -> None:
    class Forbidden(FlaglessCalls):
        def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            raise OSError(number, os.strerror(number))

        def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            raise OSError(number, os.strerror(number))

    calls = Forbidden(number)
    with LocalStorage.open(root, calls=calls) as storage:
        make_dirs(storage, "a")
        create_durable(storage, "f", b"1")
        for source in ("a", "f", "a"):
            with pytest.raises(StorageUnavailable, match="Check the permissions") as caught:
                storage.rename(source, "b")
            assert caught.value.errno == number
        assert calls.num_asked == 3  # nothing was learned about the flag
        assert sorted(os.listdir(root)) == ["a", "f"]


def test_a_file_system_without_links_is_named_with_what_to_do(root: Path) -> None:
    class NoLinks(FlaglessCalls):
        def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with LocalStorage.open(root, calls=NoLinks()) as storage:
        create_durable(storage, "a", b"1")
        with pytest.raises(StorageUnavailable, match="stepseal doctor") as caught:
            storage.link("a", "b")
        assert caught.value.errno == errno.EPERM
