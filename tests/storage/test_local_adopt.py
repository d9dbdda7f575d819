"""Files that another program made under the root: taken over with own modes, and synced."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import Corrupt, StorageUnavailable
from stepseal.storage import Access, LocalStorage, Syscalls
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("access", [Access(), Access(file_mode=0o640, dir_mode=0o750)])
def test_modes_become_those_of_own_entries(tmp_path: Path, access: Access) -> None:
    with LocalStorage.create(tmp_path / "root", access=access) as storage:
        storage.make_dir("engine")
        inside = tmp_path / "root" / "engine" / "a"
        inside.mkdir(mode=0o777)
        (inside / "f").write_bytes(b"1")
        (inside / "f").chmod(0o777)
        assert storage.adopt("engine/a").kind == "directory"
        assert storage.adopt("engine/a/f").size_bytes == 1
        assert (mode_of(inside), mode_of(inside / "f")) == (access.dir_mode, access.file_mode)


def test_a_path_is_that_of_the_root(storage: LocalStorage, root: Path) -> None:
    assert storage.local_path("a/b") == str(root / "a" / "b")
    assert storage.local_path("") == str(root)
    assert MemoryStorage().local_path("a") is None


def test_names_and_times_are_told(storage: LocalStorage, root: Path) -> None:
    (root / "f").write_bytes(b"1")
    os.utime(root / "f", ns=(5, 7_000))
    os.link(root / "f", root / "g")
    found = storage.adopt("f")
    assert (found.num_names, found.modified_ns) == (2, 7_000)


@pytest.mark.parametrize("kind", ["symlink", "FIFO"])
def test_other_kinds_are_refused_and_untouched(
    storage: LocalStorage, root: Path, tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"1")
    outside.chmod(0o644)
    if kind == "symlink":
        (root / "f").symlink_to(outside)
    else:
        os.mkfifo(root / "f")
    with pytest.raises(Corrupt) as caught:
        storage.adopt("f")
    assert caught.value.found == kind
    assert mode_of(outside) == 0o644


@pytest.mark.parametrize("name", ["f", "d"])
def test_a_sync_that_fails_is_told(root: Path, name: str) -> None:
    class Failing(Syscalls):
        def fsync(self, fd: int) -> None:
            raise OSError(5, "no")

        fsync_dir = fsync

    LocalStorage.create(root).close()
    (root / "f").write_bytes(b"1")
    (root / "d").mkdir()
    with (
        LocalStorage.open(root, calls=Failing()) as storage,
        pytest.raises(StorageUnavailable) as caught,
    ):
        storage.adopt(name)
    assert (caught.value.errno, caught.value.path) == (5, name)


def test_what_is_adopted_survives_power_loss() -> None:
    storage = MemoryStorage()
    storage.make_dir("d")
    with storage.create_file("d/f") as handle:
        handle.write(b"1", 0)
    storage.sync_dir("")
    assert storage.after_power_loss(lambda *_: 0.0).list_dir("d") == ()
    storage.adopt("d/f")
    storage.adopt("d")
    left = storage.after_power_loss(lambda *_: 0.0)
    assert left.stat("d/f").size_bytes == 1
