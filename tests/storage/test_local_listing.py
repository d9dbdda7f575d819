"""A listing beside changes: what of the directory's names was read when is the kernel's choice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests.storage.conftest import FakeCalls

from stepseal.errors import StorageUnavailable
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Meanwhile(FakeCalls):
    """Something happens right after each reading of a directory's names."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__()
        self.happens = happens

    def names(self, fd: int) -> list[str]:
        found = super().names(fd)
        self.happens()
        return found


def listing(root: Path, happens: Callable[[], object]) -> list[str]:
    with LocalStorage.open(root, calls=Meanwhile(happens)) as storage:
        return [entry.name for entry in storage.list_dir("")]


def test_a_name_that_replaced_another_is_not_missed(root: Path) -> None:
    (root / "old").mkdir()

    def replace() -> None:
        if (root / "old").exists():
            (root / "new").mkdir()
            (root / "old").rmdir()

    assert listing(root, replace) == ["new"]


def test_a_name_that_changes_is_listed_once(root: Path) -> None:
    (root / "0").touch()
    ahead = [1, 1, 0]  # renamed after two readings, in peace at the third

    def rename() -> None:
        number = int(next(root.iterdir()).name)
        (root / str(number)).rename(root / str(number + (ahead.pop(0) if ahead else 0)))

    assert listing(root, rename) == ["2"]


def test_a_change_that_both_readings_missed_is_noticed(root: Path) -> None:
    """The kernel passed the place of the new name before it came, and met the old one no more."""
    (root / "0").touch()
    os.utime(root, (0, 0))  # clocks of file systems are coarse

    class Blind(FakeCalls):
        num_readings = 0

        def names(self, fd: int) -> list[str]:
            self.num_readings += 1
            if self.num_readings > 2:
                return super().names(fd)
            (root / f"{self.num_readings - 1}").rename(root / f"{self.num_readings}")
            return []

    with LocalStorage.open(root, calls=Blind()) as storage:
        assert [entry.name for entry in storage.list_dir("")] == ["2"]


def test_a_directory_that_never_stays_as_it_is_is_an_error(root: Path) -> None:
    (root / "0").touch()

    def rename() -> None:
        found = next(root.iterdir())
        found.rename(root / f"{int(found.name) + 1}")

    with pytest.raises(StorageUnavailable, match="found changes") as caught:
        listing(root, rename)
    assert caught.value.path == ""
