"""Inventories of what engines wrote: good and bad folders, and files that still change."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.transfer._engine_folder import take, write_parts
from tests.transfer._steps import KEY

from stepseal.errors import InvalidInput
from stepseal.layout import (
    CHUNK_BYTES,
    chunk_digests,
    hex_digests,
)
from stepseal.storage import LocalStorage, Storage, make_dirs
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage
from stepseal.transfer import _external, verify_step
from stepseal.transfer._external import MAX_EXTERNAL_FILES, Inventory

if TYPE_CHECKING:
    from collections.abc import Callable


def refusal(storage: Storage) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        take(storage)
    assert caught.value.component == "engine"
    return caught.value


def test_every_file_is_listed_with_its_digests_by_one_share(
    local: LocalStorage, engine: Path
) -> None:
    sizes = {"a.pt": 0, "b/c/d.pt": 5, "b/.metadata": CHUNK_BYTES, "z": 9 * CHUNK_BYTES + 1}
    for name, size in sizes.items():
        (engine / name).parent.mkdir(parents=True, exist_ok=True)
        (engine / name).write_bytes(os.urandom(size))
    shares = [take(local, (number, 3)) for number in range(3)]
    assert [len(share) for share in shares] == [2, 1, 1]
    found = {entry.path: entry for share in shares for entry in share}
    assert found.keys() == {f"external/engine/{name}" for name in sizes}
    for name, size in sizes.items():
        entry = found[f"external/engine/{name}"]
        digests = hex_digests(chunk_digests((engine / name).read_bytes()))
        assert (entry.size_bytes, entry.digests, entry.role) == (size, digests, "external")


def test_files_and_directories_get_own_modes_and_are_synced(
    local: LocalStorage, engine: Path
) -> None:
    (engine / "a" / "b").mkdir(parents=True, mode=0o777)
    (engine / "a" / "b" / "f").write_bytes(b"1")
    (engine / "a" / "b" / "f").chmod(0o666)
    faulty = FaultyStorage(local)
    take(faulty)
    done = [op.key.removeprefix(f"{KEY}/") for op in faulty.count.operations()]
    assert done == [
        "external", "external/engine", "external/engine/a", "external/engine/a/b",
        "external/engine/a/b/f",
    ]  # fmt: skip
    assert (engine / "a" / "b" / "f").stat().st_mode & 0o777 == 0o600
    assert (engine / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_what_an_inventory_lists_survives_power_loss() -> None:
    storage = MemoryStorage()
    make_dirs(storage, f"{KEY}/external/engine")
    storage.make_dir(f"{KEY}/external/engine/a")
    for name in ("a/f", "g"):
        with storage.create_file(f"{KEY}/external/engine/{name}") as handle:
            handle.write(b"engine", 0)
    for number in range(2):
        take(storage, (number, 2))
    left = storage.after_power_loss(lambda *_: 0.0)
    for name in ("a/f", "g"):
        assert left.stat(f"{KEY}/external/engine/{name}").size_bytes == 6


def test_a_sync_that_fails_fails_the_part(local: LocalStorage, engine: Path) -> None:
    (engine / "f").write_bytes(b"1")
    faulty = FaultyStorage(local, [Fault(lambda verb, _: verb == "adopt", Fail(5))])
    with pytest.raises(OSError, match="failed on purpose"):
        take(faulty)


# -- what is refused -----------------------------------------------------------------------------


def test_an_engine_that_wrote_nothing_is_told_where_to_write(
    local: LocalStorage, engine: Path
) -> None:
    (engine / "empty").mkdir()
    found = refusal(local)
    assert f"expected files below {engine}, found none" in str(found)
    assert "must write into the folder whose path it is given" in str(found)


def test_a_folder_that_is_gone_counts_as_empty(local: LocalStorage, engine: Path) -> None:
    engine.rmdir()
    assert "found none" in str(refusal(local))


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _hard_link(path: Path) -> None:
    outside = path.parents[6] / "outside"
    outside.write_bytes(b"1")
    os.link(outside, path)


def _hard_link_inside(path: Path) -> None:
    (path.parent / "one").write_bytes(b"1")
    os.link(path.parent / "one", path)


def _deep(path: Path) -> None:
    here = path
    for _ in range(6):
        here = here / ("d" * 200)
    here.mkdir(parents=True)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "symlink": (lambda path: path.symlink_to("/etc/passwd"), "found a symlink"),
    "symlink to a folder": (lambda path: path.symlink_to("/etc"), "found a symlink"),
    "dangling symlink": (lambda path: path.symlink_to("nowhere"), "found a symlink"),
    "fifo": (os.mkfifo, "found a FIFO, socket or device"),
    "socket": (_socket, "found a FIFO, socket or device"),
    "hard link": (_hard_link, "expected a file with one name, found 2"),
    "hard link inside": (_hard_link_inside, "expected a file with one name, found 2"),
    "too deep": (_deep, "a directory whose path is too long"),
}


@pytest.mark.parametrize("kind", BAD)
def test_other_kinds_of_entries_are_refused(local: LocalStorage, engine: Path, kind: str) -> None:
    make, text = BAD[kind]
    (engine / "good").write_bytes(b"1")
    make(engine / "bad")
    found = refusal(local)
    assert text in str(found)
    assert "regular files that have one name each" in str(found)


NAMES = (b"with space", b"a=b", b"\xff", "é".encode(), b".hidden", b"dot.", b"a\nb", b"\x1b[2J")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_step_can_hold_are_refused(
    local: LocalStorage, engine: Path, name: bytes
) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(engine), name))).write_bytes(b"1")
    found = refusal(local)
    assert str(found).isprintable()
    assert len(found.problems) == 1


def test_names_that_differ_in_case_only_are_refused(local: LocalStorage, engine: Path) -> None:
    (engine / "a").write_bytes(b"1")
    (engine / "A").write_bytes(b"1")
    assert "are the same file" in str(refusal(local))


def test_metadata_of_dcp_is_a_name_at_any_depth(local: LocalStorage, engine: Path) -> None:
    (engine / "d").mkdir()
    (engine / "d" / ".metadata").write_bytes(b"1")
    assert len(take(local)) == 1


def test_the_number_of_files_is_bounded(
    local: LocalStorage, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_EXTERNAL_FILES == 50_000
    monkeypatch.setattr(_external, "MAX_EXTERNAL_FILES", 3)
    for number in range(3):
        (engine / str(number)).write_bytes(b"1")
    assert len(take(local)) == 3
    (engine / "3").write_bytes(b"1")
    assert "expected at most 3 files, found 4" in str(refusal(local))


def test_all_problems_are_listed_once(local: LocalStorage, engine: Path) -> None:
    for number in range(12):
        (engine / f"link {number}").symlink_to("x")
    found = refusal(local)
    assert len(found.problems) == 12
    assert "and 2 more" in str(found)


# -- files that still change ---------------------------------------------------------------------


def _at(storage: Storage, when: str, engine: Path, act: Callable[[Path], object]) -> FaultyStorage:
    """Return a storage on which `act` happens before the first operation of a kind on the file."""
    ended: set[str] = set()

    def before(_index: int, operation: str, key: str) -> None:
        if operation == when and key.endswith("/f") and not ended:
            ended.add(key)
            act(engine / "f")

    return FaultyStorage(storage, before=before, reads=True)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwrite(path: Path) -> None:
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def _replace(path: Path) -> None:
    before = path.stat()
    other = path.with_name("tmp")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "grows": _append,
    "is overwritten": _overwrite,
    "is replaced": _replace,
    "is removed": Path.unlink,
    "is truncated": lambda path: os.truncate(path, 1),
}
LOOKS = {"sync": "adopt", "read": "open_read", "second look": "stat"}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_after_the_listing_is_told(
    local: LocalStorage, engine: Path, change: str, look: str
) -> None:
    (engine / "f").write_bytes(b"engine")
    storage = _at(local, LOOKS[look], engine, CHANGES[change])
    text = str(refusal(storage))
    assert "external/engine/f: expected that it stays as it was" in text
    assert "Let `save` return only when all files are complete" in text


def test_the_second_look_is_what_sees_a_late_change(local: LocalStorage, engine: Path) -> None:
    """Variant: without it, bytes are committed that no digest matches."""
    (engine / "f").write_bytes(b"engine")
    storage = _at(local, "stat", engine, _overwrite)
    with mock.patch.object(Inventory, "_require_same"):
        (entry,) = take(storage)
    assert entry.digests != hex_digests(chunk_digests((engine / "f").read_bytes()))


def test_a_file_that_appears_after_the_listing_is_found_by_the_comparison_of_the_set(
    local: LocalStorage, engine: Path
) -> None:
    (engine / "a").write_bytes(b"1")
    manifest = write_parts(local, 1)
    (engine / "b").write_bytes(b"2")
    (finding,) = verify_step(local, KEY, manifest)
    assert (finding.severity, finding.path) == ("extra", "external/engine/b")


def test_it_can_be_cancelled(local: LocalStorage, engine: Path) -> None:
    (engine / "f").write_bytes(b"engine")

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(local, check_cancelled=cancel)
