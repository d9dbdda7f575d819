from __future__ import annotations

import dataclasses
import errno
import os
from typing import TYPE_CHECKING, Protocol

import pytest
from tests._work import num_calls
from tests.transfer._steps import (
    KEY,
    contents,
    copy_of,
    flip,
    random_bytes,
    read_file,
    replace_file,
    small_parts,
    tensor,
    write_step,
)

from stepseal.errors import StorageUnavailable
from stepseal.layout import Box, FileEntry, Frame, chunk_digests, encode_manifest, hex_digests
from stepseal.storage import create_durable, make_dirs, walk_files
from stepseal.testing import MemoryStorage
from stepseal.transfer import check_coverage, check_files, verify_step

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.layout import Manifest
    from stepseal.storage import LocalStorage, ReadHandle, Storage
    from stepseal.transfer import Finding


class Check(Protocol):
    def __call__(
        self, storage: Storage, step_key: str, manifest: Manifest
    ) -> tuple[Finding, ...]: ...


CHECKS: list[Check] = [check_files, verify_step]
PAYLOAD = "__0_0.distcp"


def damaged_paths(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.path for finding in findings if finding.severity == "damage"}


def test_whole_step_has_no_findings(storage: Storage) -> None:
    manifest = write_step(storage, small_parts())
    assert check_files(storage, KEY, manifest) == ()
    assert check_coverage(storage, KEY, manifest) == ()
    assert verify_step(storage, KEY, manifest) == ()


def test_progress_counts_every_byte_but_the_manifest() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    seen: list[int] = []
    verify_step(storage, KEY, manifest, progress=seen.append)
    files = dict(walk_files(storage, KEY))
    total = sum(e.size_bytes for path, e in files.items() if path != "manifest.json")
    assert sum(seen) == total


def test_each_flipped_byte_is_found_and_its_file_named() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    for path, entry in walk_files(storage, KEY):
        data = read_file(storage, path)
        for position in {*range(0, entry.size_bytes, entry.size_bytes // 12), len(data) - 1}:
            replace_file(storage, path, flip(data, position, 1 << position % 8))
            found = verify_step(storage, KEY, manifest)
            assert damaged_paths(found) == {path}, (path, position)
        replace_file(storage, path, data)
    assert verify_step(storage, KEY, manifest) == ()


@pytest.mark.slow
def test_every_single_flipped_byte_of_a_payload_is_found() -> None:
    storage = MemoryStorage()
    frame = Frame(random_bytes(64, 1), random_bytes(37, 2))
    tensors = [
        tensor("w", random_bytes(400), (100,), frame=frame),
        tensor("e", b"", (0,), frame=frame),
        tensor("v", random_bytes(4), (1,), frame=frame),
    ]
    parts = {"a": contents(tensors, [copy_of("lr", b"pickled"), copy_of("nothing", b"")])}
    manifest = write_step(storage, parts)
    data = read_file(storage, PAYLOAD)
    for position in range(len(data)):
        replace_file(storage, PAYLOAD, flip(data, position, 1 << position % 8))
        assert damaged_paths(verify_step(storage, KEY, manifest)) == {PAYLOAD}, position


@pytest.mark.parametrize("check", CHECKS)
def test_each_truncated_file_is_named(storage: Storage, check: Check) -> None:
    manifest = write_step(storage, small_parts())
    for path, _ in walk_files(storage, KEY):
        data = read_file(storage, path)
        for changed in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            replace_file(storage, path, changed)
            assert damaged_paths(check(storage, KEY, manifest)) == {path}
        replace_file(storage, path, data)


@pytest.mark.parametrize("check", CHECKS)
def test_each_missing_file_is_named_once(storage: Storage, check: Check) -> None:
    manifest = write_step(storage, small_parts())
    for path, _ in walk_files(storage, KEY):
        data = read_file(storage, path)
        storage.remove_file(f"{KEY}/{path}")
        found = check(storage, KEY, manifest)
        if path == "manifest.json" and check is check_files:
            assert found == ()
        else:
            assert [(f.severity, f.path) for f in found] == [("damage", path)]
            assert "found nothing" in found[0].message
        create_durable(storage, f"{KEY}/{path}", data)


def test_what_an_unreadable_part_may_list_is_not_extra(storage: Storage) -> None:
    parts = small_parts()
    manifest = write_step(storage, parts)
    first = manifest.participants[0]
    replace_file(storage, f"parts/{first}.json", b"")
    found = {f.path for f in check_files(storage, KEY, manifest)}
    assert found == {f"parts/{first}.json"}
    others = ["external/a/b", f"components/x.y/{first}.7.safetensors"]
    extra = [f"components/{first}.json", f"x/{first}.json", "components/x/y.json", "__9_0.distcp"]
    for path in (*others, *extra):
        make_dirs(storage, f"{KEY}/{path}".rpartition("/")[0])
        create_durable(storage, f"{KEY}/{path}", b"x")
    found = {f.path for f in check_files(storage, KEY, manifest)}
    assert found == {f"parts/{first}.json", *extra}


def crowded(num_parts: int) -> tuple[MemoryStorage, Manifest]:
    """Return a step of many parts that cannot be read, and with half as many extra files."""
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    names = [f"t/{number}" for number in range(num_parts)]
    part = manifest.parts[0]
    parts = tuple(
        dataclasses.replace(
            part,
            participant=name,
            document=dataclasses.replace(part.document, path=f"parts/{name}.json"),
        )
        for name in names
    )
    for number in range(num_parts // 2):
        create_durable(storage, f"{KEY}/x{number}", b"")
    many = dataclasses.replace(manifest, participants=tuple(names), parts=parts, components=())
    return storage, many


def test_the_work_on_unreadable_parts_and_extras_grows_with_their_number() -> None:
    (storage, manifest), (larger, twice) = crowded(50), crowded(100)
    found = check_files(larger, KEY, twice)
    assert sum(f.severity == "extra" for f in found) >= 50
    few = num_calls(lambda: check_files(storage, KEY, manifest))
    assert num_calls(lambda: check_files(larger, KEY, twice)) < 2.2 * few


@pytest.mark.parametrize("check", CHECKS)
def test_extra_files_are_named_as_extra(storage: Storage, check: Check) -> None:
    manifest = write_step(storage, small_parts())
    make_dirs(storage, f"{KEY}/components/rng/other")
    extra = ["components/rng/other/0.json", "evil.py", "__0_1.distcp", "parts/trainer/2.json"]
    for path in extra:
        create_durable(storage, f"{KEY}/{path}", b"x")
    found = check(storage, KEY, manifest)
    assert {(f.severity, f.path) for f in found} == {("extra", path) for path in extra}


@pytest.mark.parametrize("check", CHECKS)
def test_files_of_an_unreadable_part_are_not_called_extra(check: Check) -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    document = "parts/trainer/0.json"
    replace_file(storage, document, flip(read_file(storage, document), 9))
    found = check(storage, KEY, manifest)
    assert {(f.severity, f.path) for f in found} == {("damage", document)}


@pytest.mark.parametrize("check", CHECKS)
def test_symlink_fifo_and_directory_are_named(
    local: LocalStorage, root: Path, check: Check
) -> None:
    manifest = write_step(local, small_parts())
    folder = root / KEY
    for path, kind in {
        PAYLOAD: "symlink",
        "parts/trainer/0.json": "FIFO",
        "components/rng/trainer/1.json": "directory",
    }.items():
        target = folder / path
        saved = target.with_name(f"saved-{target.name}")
        target.rename(saved)
        if kind == "symlink":
            target.symlink_to(saved.name)
        elif kind == "FIFO":
            os.mkfifo(target)
        else:
            target.mkdir()
        found = check(local, KEY, manifest)
        assert path in damaged_paths(found)
        messages = [f.message for f in found if f.path == path and f.severity == "damage"]
        assert any(kind.lower() in message.lower() for message in messages), messages
        target.rmdir() if kind == "directory" else target.unlink()
        saved.rename(target)
    assert check(local, KEY, manifest) == ()


@pytest.mark.parametrize("check", CHECKS)
def test_linked_folder_is_not_followed(local: LocalStorage, root: Path, check: Check) -> None:
    manifest = write_step(local, small_parts())
    (root / KEY / "components").rename(root / "elsewhere")
    (root / KEY / "components").symlink_to(root / "elsewhere")
    found = check(local, KEY, manifest)
    assert {p for p in damaged_paths(found) if p.startswith("components/")} == {
        "components/rng/trainer/0.json",
        "components/rng/trainer/0.safetensors",
        "components/rng/trainer/1.json",
    }


def test_swapped_files_of_equal_size_are_found(storage: Storage) -> None:
    parts = {
        name: contents([tensor("w", random_bytes(64, n), (32,), Box((n * 16,), (16,)))])
        for n, name in enumerate(("a", "b"))
    }
    manifest = write_step(storage, parts)
    storage.exchange(f"{KEY}/__0_0.distcp", f"{KEY}/__1_0.distcp")
    assert check_files(storage, KEY, manifest) == ()
    found = verify_step(storage, KEY, manifest)
    assert damaged_paths(found) == {"__0_0.distcp", "__1_0.distcp"}
    assert all("model.w: expected digest" in f.message for f in found)


def test_missing_step_is_a_finding(storage: Storage) -> None:
    manifest = write_step(storage, small_parts())
    for check in (check_files, verify_step):
        found = check(storage, "step-9", manifest)
        assert "" in damaged_paths(found)


def test_manifest_of_another_commit_is_found() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    other = dataclasses.replace(manifest, run_id="ef" * 16)
    assert damaged_paths(verify_step(storage, KEY, other)) == {"manifest.json"}


def test_files_of_the_coordinator_are_checked() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    data = random_bytes(3000)
    entry = FileEntry(".metadata", 3000, "dcp-index", hex_digests(chunk_digests(data)))
    storage.remove_file(f"{KEY}/manifest.json")
    with_file = with_manifest(storage, dataclasses.replace(manifest, files=(entry,)))
    create_durable(storage, f"{KEY}/.metadata", data)
    assert verify_step(storage, KEY, with_file) == ()
    replace_file(storage, ".metadata", flip(data, 2999))
    assert check_files(storage, KEY, with_file) == ()
    assert damaged_paths(verify_step(storage, KEY, with_file)) == {".metadata"}


def with_manifest(storage: Storage, manifest: Manifest) -> Manifest:
    create_durable(storage, f"{KEY}/manifest.json", encode_manifest(manifest))
    return manifest


def bad_cover(*boxes: Box) -> tuple[Finding, ...]:
    storage = MemoryStorage()
    parts = {
        f"p{n}": contents([tensor("w", bytes([n]) * 4 * box.num_elements, (4,), box)])
        for n, box in enumerate(boxes)
    }
    manifest = write_step(storage, parts)
    found = check_coverage(storage, KEY, manifest)
    assert verify_step(storage, KEY, manifest) == found
    return found


def test_holes_overlaps_and_differing_replicas_are_found() -> None:
    assert "no box" in bad_cover(Box((0,), (3,)))[0].message
    assert "both hold" in bad_cover(Box((0,), (3,)), Box((1,), (3,)))[0].message
    assert "same bytes" in bad_cover(Box((0,), (4,)), Box((0,), (4,)))[0].message


def test_tensors_and_trees_must_match_the_manifest() -> None:
    storage = MemoryStorage()
    manifest = write_step(storage, small_parts())
    without = tuple(c for c in manifest.components if c.name != "model")
    found = check_coverage(storage, KEY, dataclasses.replace(manifest, components=without))
    assert [f.message for f in found] == ["expected components of the manifest, found 'model'"] * 2
    tree = next(c for c in manifest.components if c.kind == "tree")
    other = dataclasses.replace(tree, name="dataloader")
    changed = dataclasses.replace(manifest, components=(*manifest.components, other))
    found = check_coverage(storage, KEY, changed)
    assert {"components/dataloader"} == damaged_paths(found)


class BadSectors:
    """Storage whose disk cannot read one file."""

    def __init__(self, inner: MemoryStorage, path: str) -> None:
        self._inner = inner
        self._key = f"{KEY}/{path}"

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def open_read(self, key: str) -> ReadHandle:
        if key == self._key:
            raise StorageUnavailable(f"cannot read {key}", errno=errno.EIO, path=key)
        return self._inner.open_read(key)


def test_refusal_of_the_storage_is_a_finding_with_errno() -> None:
    inner = MemoryStorage()
    manifest = write_step(inner, small_parts())
    for path, _ in walk_files(inner, KEY):
        storage = BadSectors(inner, path)
        found = verify_step(storage, KEY, manifest)  # type: ignore[arg-type]
        assert damaged_paths(found) == {path}
        assert "EIO" in found[0].message
