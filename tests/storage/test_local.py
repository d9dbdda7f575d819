from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from stepseal.errors import Corrupt
from stepseal.storage import (
    KeyExists,
    LocalStorage,
    Storage,
    create_durable,
    make_dirs,
    put_if_absent,
    read_bytes,
    remove_tree,
    replace_durable,
    walk_files,
)
from stepseal.testing import StorageSuite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from stepseal.storage import Entry


class TestLocalStorage(StorageSuite):
    def make_storage(self, tmp_path: Path) -> Storage:
        return LocalStorage.create(tmp_path / "root")


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_symlink_at_any_level_is_never_followed(
    storage: LocalStorage, root: Path, tmp_path: Path, level: int
) -> None:
    outside = tmp_path / "outside"
    (outside / "b" / "c").mkdir(parents=True)
    (outside / "b" / "c" / "f").write_bytes(b"secret")
    segments = ["a", "b", "c", "f"]
    make_dirs(storage, "/".join(segments[:level]))
    target = outside.joinpath(*segments[1 : level + 1])
    root.joinpath(*segments[: level + 1]).symlink_to(target)
    before = sorted(outside.rglob("*"))
    link = "/".join(segments[: level + 1])
    with pytest.raises(Corrupt) as caught:
        storage.open_read("a/b/c/f")
    assert (caught.value.path, caught.value.found) == (link, "symlink")
    if level < 3:
        verbs: list[Callable[[str], object]] = [
            storage.create_file,
            storage.make_dir,
            storage.remove_file,
            storage.remove_dir,
            storage.stat,
            lambda key: storage.rename(key, "out"),
            lambda key: storage.rename("in", key),
            lambda key: storage.link(key, "out"),
            lambda key: storage.exchange("in", key),
        ]
        create_durable(storage, "in", b"1")
        for verb in verbs:
            with pytest.raises(Corrupt):
                verb("a/b/c/f")
        for verb in (storage.list_dir, storage.sync_dir):
            with pytest.raises(Corrupt):
                verb(link)
    assert storage.stat(link).kind == "symlink"
    with pytest.raises(KeyExists):
        storage.create_file(link)
    assert sorted(outside.rglob("*")) == before


def test_a_link_target_that_is_a_symlink_is_not_written_through(
    storage: LocalStorage, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"old")
    (root / "latest").symlink_to(outside)
    replace_durable(storage, "latest", b"new")
    assert outside.read_bytes() == b"old"
    assert read_bytes(storage, "latest", 10) == b"new"
    (root / "claim").symlink_to(tmp_path / "nowhere")
    assert not put_if_absent(storage, "claim", b"x")
    assert not (tmp_path / "nowhere").exists()


def test_a_fifo_never_blocks_a_reader(storage: LocalStorage, root: Path) -> None:
    os.mkfifo(root / "f")
    with pytest.raises(Corrupt) as caught:
        storage.open_read("f")
    assert caught.value.found == "FIFO"
    assert storage.stat("f").kind == "other"
    with pytest.raises(Corrupt):
        storage.list_dir("f")


def test_a_socket_is_named(
    storage: LocalStorage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(Corrupt) as caught:
            storage.open_read("s")
    assert caught.value.found == "socket"


def test_a_device_is_named(storage: LocalStorage, root: Path) -> None:
    try:
        os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device node needs CAP_MKNOD")
    try:
        with pytest.raises(Corrupt) as caught:
            storage.open_read("null")
    except PermissionError:  # pragma: no cover
        pytest.skip("this file system is mounted nodev")
    assert caught.value.found == "character device"


def test_a_hard_linked_file_is_readable(storage: LocalStorage, root: Path) -> None:
    create_durable(storage, "a", b"1")
    os.link(root / "a", root / "b")
    assert read_bytes(storage, "b", 10) == b"1"


def test_a_swap_after_opening_does_not_change_what_is_read(
    storage: LocalStorage, root: Path
) -> None:
    create_durable(storage, "a", b"good")
    with storage.open_read("a") as handle:
        (root / "evil").write_bytes(b"evil")
        os.replace(root / "evil", root / "a")
        found = bytearray(4)
        handle.read_into(found, 0)
    assert found == b"good"


def test_remove_tree_does_not_follow_symlinks(
    storage: LocalStorage, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"1")
    make_dirs(storage, "step-1/d")
    for place in (root / "step-1" / "link", root / "step-1" / "d" / "link", root / "step-2"):
        place.symlink_to(outside)
    (root / "step-1" / "file-link").symlink_to(outside / "f")
    os.mkfifo(root / "step-1" / "fifo")
    remove_tree(storage, "step-1")
    remove_tree(storage, "step-2")
    assert storage.list_dir("") == ()
    assert (outside / "f").read_bytes() == b"1"


def test_remove_tree_stops_when_a_directory_becomes_a_symlink(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"1")
    (root / "step-1" / "d").mkdir(parents=True)

    class Swapping(LocalStorage):
        def list_dir(self, key: str) -> tuple[Entry, ...]:
            if key == "step-1/d":
                (root / "step-1" / "d").rmdir()
                (root / "step-1" / "d").symlink_to(outside)
            return super().list_dir(key)

    with Swapping.open(root) as storage, pytest.raises(Corrupt):
        remove_tree(storage, "step-1")
    assert (outside / "f").read_bytes() == b"1"


def test_remove_tree_takes_a_very_deep_tree(storage: LocalStorage) -> None:
    key = "/".join(["d"] * 60)
    make_deep(storage, key)
    remove_tree(storage, "d")
    assert storage.list_dir("") == ()


def make_deep(storage: LocalStorage, key: str) -> None:
    segments = key.split("/")
    for depth in range(len(segments)):
        storage.make_dir("/".join(segments[: depth + 1]))


def test_walk_files_lists_symlinks_and_special_files(storage: LocalStorage, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "link").symlink_to("/")
    os.mkfifo(root / "d" / "fifo")
    found = {path: entry.kind for path, entry in walk_files(storage, "")}
    assert found == {"d/fifo": "other", "d/link": "symlink"}


def test_a_name_that_is_not_utf8_is_listed_and_removed(storage: LocalStorage, root: Path) -> None:
    with open(os.path.join(os.fsencode(root), b"\xff\xfe"), "wb"):
        pass
    (entry,) = storage.list_dir("")
    remove_tree(storage, entry.name)
    assert storage.list_dir("") == ()
