"""What sshfs does to a directory that is read twice by one descriptor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from tests._mounts import sshfs_mount

from stepseal.storage import LocalStorage
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


class _Scanning(Syscalls):
    """The naive variant scans the descriptor itself."""

    def names(self, fd: int) -> list[str]:
        with os.scandir(fd) as found:
            return [entry.name for entry in found]


@pytest.mark.parametrize("naive", [False, True])
def test_a_directory_that_changes_while_it_is_listed_never_looks_empty(
    tmp_path: Path, naive: bool
) -> None:
    class Changing(_Scanning if naive else Syscalls):  # type: ignore[misc]
        """Somebody makes an entry right after the first scan."""

        num_scans = 0

        def names(self, fd: int) -> list[str]:
            found: list[str] = super().names(fd)
            self.num_scans += 1
            if self.num_scans == 1:
                os.mkdir(served.mountpoint / "root" / "step-2")
            return found

    with sshfs_mount(tmp_path) as served:
        (tmp_path / "source" / "root" / "step-1").mkdir(parents=True)
        with LocalStorage.open(served.mountpoint / "root", calls=Changing()) as storage:
            found = [entry.name for entry in storage.list_dir("")]
    assert found == ([] if naive else ["step-1", "step-2"])
