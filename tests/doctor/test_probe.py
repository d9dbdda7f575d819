"""The probe says of each ability whether it is really there, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.doctor._lies import LIES, REFUSALS, Refusing

from stepseal.doctor import ABILITIES, _checks, probe
from stepseal.errors import InvalidInput, RootNotFound, StorageUnavailable
from stepseal.storage import Syscalls

if TYPE_CHECKING:
    from pathlib import Path

LACKS = [*REFUSALS, *LIES]
IDS = [f"{type(calls).__name__.strip('_')}-{min(lacking)}" for calls, lacking, _ in LACKS]


def test_a_good_disk_has_every_ability(root: Path) -> None:
    found = probe(str(root))
    assert found.missing == {}
    assert found.mount is not None
    assert found.free_bytes
    assert abs(found.clock_off_s) < 1


@pytest.mark.parametrize(("calls", "lacking", "detail"), LACKS, ids=IDS)
def test_what_is_missing_is_found_and_nothing_else(
    root: Path, calls: Syscalls, lacking: set[str], detail: str
) -> None:
    found = probe(str(root), calls=calls)
    assert found.missing.keys() == lacking
    assert all(detail in found.missing[ability] for ability in lacking)
    assert os.listdir(root) == []


def test_each_ability_has_a_kernel_that_lacks_it() -> None:
    assert set().union(*(lacking for _, lacking, _ in LACKS)) == set(ABILITIES)


@pytest.mark.parametrize(("calls", "lacking", "detail"), LIES, ids=IDS[len(REFUSALS) :])
def test_a_probe_that_trusts_without_looking_is_caught(
    root: Path,
    calls: Syscalls,
    lacking: set[str],
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant believes each answer of success; the test above must then fail."""

    def trust(condition: object, detail: str) -> None:
        pass

    monkeypatch.setattr(_checks, "require", trust)
    missing = probe(str(root), calls=calls).missing
    assert missing.keys() != lacking or all(detail not in told for told in missing.values())


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTEMPTY, errno.EEXIST, errno.EACCES])
def test_a_full_folder_that_stands_is_kept_whatever_the_error(root: Path, number: int) -> None:
    """As sshfs does, which answers EPERM."""

    class Refuses(Syscalls):
        def rename(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            if target in os.listdir(target_fd):
                raise OSError(number, os.strerror(number))
            super().rename(source, source_fd, target, target_fd)

    assert probe(str(root), calls=Refuses()).missing == {}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_an_error_that_says_nothing_of_an_ability_ends_the_probe(root: Path, number: int) -> None:
    with pytest.raises(StorageUnavailable) as caught:
        probe(str(root), calls=Refusing("fsync", number))
    assert caught.value.errno == number
    assert os.listdir(root) == []


def test_directories_that_cannot_be_synced_are_a_doubt(root: Path) -> None:
    found = probe(str(root), calls=Refusing("fsync_dir", errno.EINVAL))
    assert any("directories cannot be synced" in doubt for doubt in found.sync_doubts)
    assert found.missing == {}


def test_a_file_system_whose_clock_differs_is_measured(root: Path) -> None:
    found = probe(str(root), clock=lambda: time.time() + 100)
    assert -101 < found.clock_off_s < -99


def test_a_root_is_probed_in_a_folder_of_its_own_and_left_as_it_was(root: Path) -> None:
    (root / ".stepseal").mkdir()
    (root / "step-1").mkdir()
    seen: set[str] = set()

    class Watching(Syscalls):
        def fsync_dir(self, fd: int) -> None:
            seen.update(str(path.relative_to(root)) for path in root.glob("*"))
            seen.update(path.name.partition("-")[0] for path in root.glob(".stepseal/*"))
            super().fsync_dir(fd)

    probe(str(root), calls=Watching())
    assert seen == {".stepseal", "step-1", "doctor"}
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [
        ".stepseal", "step-1",
    ]  # fmt: skip


@pytest.mark.parametrize("is_root", [True, False])
def test_nothing_is_left_behind_by_a_probe_that_breaks(root: Path, *, is_root: bool) -> None:
    class Broken(Syscalls):
        def fsync_dir(self, fd: int) -> None:
            raise KeyboardInterrupt

    if is_root:
        (root / ".stepseal").mkdir()
    with pytest.raises(KeyboardInterrupt):
        probe(str(root), calls=Broken())
    assert [path.name for path in root.rglob("*")] == ([".stepseal"] if is_root else [])


def test_a_place_that_is_none_is_a_typed_error(root: Path) -> None:
    with pytest.raises(RootNotFound):
        probe(str(root / "none"))
    (root / "file").write_bytes(b"")
    with pytest.raises(InvalidInput):
        probe(str(root / "file"))
    with pytest.raises(StorageUnavailable):
        probe("/proc/self")
