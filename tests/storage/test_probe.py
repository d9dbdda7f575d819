"""The probe says of each ability whether it is really there, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

import pytest
from tests.storage._lies import LIES, REFUSALS, Refusing

from stepseal.errors import InvalidInput, RootNotFound, StorageUnavailable
from stepseal.storage import ABILITIES, probe
from stepseal.storage import _probe_checks as checks
from stepseal.storage import _probe_processes as processes
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.storage import Ability, Probe

LACKS = [*REFUSALS, *LIES]
IDS = [f"{type(calls).__name__.strip('_')}-{min(lacking)}" for calls, lacking, _ in LACKS]


def missing(found: Probe) -> set[Ability]:
    return {finding.ability for finding in found.findings if finding.honoured is not True}


def test_a_good_disk_has_every_ability(root: Path) -> None:
    found = probe(str(root))
    assert tuple(finding.ability for finding in found.findings) == tuple(ABILITIES)
    assert missing(found) == set()
    assert found.fsync_s is not None
    assert found.mount is not None
    assert found.free_bytes > 0
    assert abs(found.clock_skew_s) < 1


@pytest.mark.parametrize(("calls", "lacking", "detail"), LACKS, ids=IDS)
def test_what_is_missing_is_found_and_nothing_else(
    root: Path, calls: Syscalls, lacking: set[Ability], detail: str
) -> None:
    found = probe(str(root), calls=calls)
    assert missing(found) == lacking
    assert any(detail in finding.detail for finding in found.findings)
    assert all(found.finding(ability).honoured is False for ability in lacking)
    assert os.listdir(root) == []


def test_each_ability_has_a_kernel_that_lacks_it() -> None:
    assert set().union(*(lacking for _, lacking, _ in LACKS)) == set(ABILITIES)


@pytest.mark.parametrize(("calls", "lacking", "detail"), LIES, ids=IDS[len(REFUSALS) :])
def test_a_probe_that_trusts_without_looking_is_caught(
    root: Path,
    calls: Syscalls,
    lacking: set[Ability],
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broken variant believes each answer of success; the test above must then fail."""

    def trust(condition: object, detail: str) -> None:
        pass

    monkeypatch.setattr(checks, "require", trust)
    monkeypatch.setattr(processes, "require", trust)
    found = probe(str(root), calls=calls)
    told = any(detail in finding.detail for finding in found.findings)
    assert not told or missing(found) != lacking


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_an_error_that_says_nothing_of_an_ability_is_no_answer(root: Path, number: int) -> None:
    found = probe(str(root), calls=Refusing("fsync_dir", number))
    assert found.finding("fsync_dir").honoured is None
    assert found.finding("fsync_dir").detail == errno.errorcode[number]


def test_a_file_system_whose_clock_differs_is_measured(root: Path) -> None:
    found = probe(str(root), clock=lambda: time.time() + 100)
    assert -101 < found.clock_skew_s < -99
    assert found.clock_skew_error_s < 1


def test_latency_is_that_of_the_file_system(root: Path) -> None:
    class Slow(Syscalls):
        def fsync(self, fd: int) -> None:
            time.sleep(0.01)

    found = probe(str(root), calls=Slow())
    assert found.fsync_s is not None
    assert found.fsync_s >= 0.01


def test_a_root_is_probed_in_the_named_folder_and_left_as_it_was(root: Path) -> None:
    (root / ".stepseal").mkdir()
    (root / "step-1").mkdir()
    seen: set[tuple[str, ...]] = set()

    class Watching(Syscalls):
        def fsync_dir(self, fd: int) -> None:
            seen.update(path.relative_to(root).parts[:2] for path in root.rglob("*"))
            super().fsync_dir(fd)

    probe(str(root), home=".stepseal/doctor", calls=Watching())
    assert seen >= {(".stepseal", "doctor"), ("step-1",)}
    assert {parts[0] for parts in seen} == {".stepseal", "step-1"}
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
        probe(str(root), home=".stepseal/doctor", calls=Broken())
    assert [path.name for path in root.rglob("*")] == ([".stepseal"] if is_root else [])


def test_a_process_that_dies_is_no_answer_and_hangs_nobody(root: Path) -> None:
    home = os.getpid()

    class Deadly(Syscalls):
        def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            if os.getpid() != home:
                os._exit(1)
            super().link(source, source_fd, target, target_fd)

    found = probe(str(root), calls=Deadly())
    assert found.finding("one_winner").honoured is None
    assert missing(found) == {"one_winner"}


def test_a_process_that_hangs_is_no_answer_and_is_ended(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = os.getpid()

    class Hanging(Syscalls):
        def link(self, source: str, source_fd: int, target: str, target_fd: int) -> None:
            while os.getpid() != home:
                time.sleep(1)
            super().link(source, source_fd, target, target_fd)

    monkeypatch.setattr(processes, "ANSWER_S", 0.3)
    found = probe(str(root), calls=Hanging())
    assert found.finding("one_winner").honoured is None
    assert found.finding("one_winner").detail == "ETIMEDOUT"


def test_a_place_that_is_none_is_a_typed_error(root: Path) -> None:
    with pytest.raises(RootNotFound):
        probe(str(root / "none"))
    (root / "file").write_bytes(b"")
    with pytest.raises(InvalidInput):
        probe(str(root / "file"))
    with pytest.raises(StorageUnavailable):
        probe("/proc/self")
