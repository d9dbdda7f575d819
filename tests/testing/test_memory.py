from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stepseal.storage import KeyNotFound, Storage, create_durable, read_bytes
from stepseal.testing import MemoryStorage, StorageSuite

if TYPE_CHECKING:
    from pathlib import Path


class TestMemoryStorage(StorageSuite):
    def make_storage(self, tmp_path: Path) -> Storage:
        return MemoryStorage()


def _nothing(what: str, key: str) -> float:
    return 0


def _everything(what: str, key: str) -> float:
    return 1


def test_power_loss_keeps_what_was_synced() -> None:
    storage = MemoryStorage()
    storage.make_dir("d")
    create_durable(storage, "d/a", b"1234")
    assert storage.after_power_loss(_nothing).list_dir("") == ()
    storage.sync_dir("")
    assert storage.after_power_loss(_nothing).list_dir("d") == ()
    storage.sync_dir("d")
    assert read_bytes(storage.after_power_loss(_nothing), "d/a", 10) == b"1234"


def test_power_loss_takes_bytes_that_were_not_synced() -> None:
    storage = MemoryStorage()
    with storage.create_file("a") as handle:
        handle.write(b"1234", 0)
    storage.sync_dir("")
    assert read_bytes(storage.after_power_loss(_nothing), "a", 10) == b""
    assert read_bytes(storage.after_power_loss(_everything), "a", 10) == b"1234"
    torn = storage.after_power_loss(lambda what, key: 0.5)
    assert read_bytes(torn, "a", 10) == b"12\0\0"
    assert read_bytes(storage, "a", 10) == b"1234"


def test_power_loss_undoes_a_rename_that_was_not_synced() -> None:
    storage = MemoryStorage()
    storage.make_dir("staging")
    create_durable(storage, "staging/f", b"1")
    storage.sync_dir("staging")
    storage.sync_dir("")
    storage.rename("staging", "step-1")
    before = storage.after_power_loss(_nothing)
    assert read_bytes(before, "staging/f", 10) == b"1"
    with pytest.raises(KeyNotFound):
        before.stat("step-1")
    storage.sync_dir("")
    assert read_bytes(storage.after_power_loss(_nothing), "step-1/f", 10) == b"1"


@pytest.mark.parametrize("half_synced", [None, "", "away"])
def test_power_loss_leaves_a_moved_directory_one_of_its_names(half_synced: str | None) -> None:
    storage = MemoryStorage()
    for name in ("step-1", "step-2", "away"):
        storage.make_dir(name)
    create_durable(storage, "step-1/f", b"1")
    create_durable(storage, "step-2/f", b"2")
    for name in ("", "step-1", "step-2"):
        storage.sync_dir(name)
    storage.rename("step-1", "away/step-1")
    if half_synced is not None:
        storage.sync_dir(half_synced)
    # the removal survives, the new name alone would not
    moved = storage.after_power_loss(lambda what, key: float(what == "data" or key == "step-1"))
    assert [entry.name for entry in moved.list_dir("")] == ["away", "step-2"]
    assert read_bytes(moved, "away/step-1/f", 10) == b"1"
    assert read_bytes(moved.after_power_loss(_nothing), "away/step-1/f", 10) == b"1"


@pytest.mark.parametrize("kept", ["a", "away/b"])
def test_power_loss_never_loses_a_side_of_an_exchange(kept: str) -> None:
    storage = MemoryStorage()
    storage.make_dir("away")
    create_durable(storage, "a", b"1")
    create_durable(storage, "away/b", b"2")
    for name in ("", "away"):
        storage.sync_dir(name)
    storage.exchange("a", "away/b")
    left = storage.after_power_loss(lambda what, key: float(key == kept))
    assert {read_bytes(left, key, 10) for key in ("a", "away/b")} == {b"1", b"2"}


def test_power_loss_keeps_hard_links_one_file_and_ends_on_cycles() -> None:
    storage = MemoryStorage()
    create_durable(storage, "a", b"1")
    storage.link("a", "b")
    image = storage.after_power_loss(_everything)
    assert image.stat("a").inode == image.stat("b").inode
    storage.make_dir("d")
    storage.make_dir("d/e")
    storage.sync_dir("d")
    storage.sync_dir("")
    storage.rename("d/e", "e")
    storage.rename("d", "e/d")
    torn = storage.after_power_loss(lambda what, key: float(key.count("/") % 2))
    assert torn.stat("d").kind == "directory"
