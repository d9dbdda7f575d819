"""Whatever the storage refuses, each call ends, all participants are told the same with its errno,
nothing is committed that is not whole, and the job goes on once the storage is sound again; see
`run`."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.errno import run as _errno
from tests.campaigns.errno._job import WORKLOADS, Trial
from tests.campaigns.errno._strike import KINDS
from tests.campaigns.errno._told import Call, check_told
from tests.campaigns.harness._apart import run_apart

from stepseal.storage import LocalStorage, create_durable, read_bytes
from stepseal.storage._syscalls import Syscalls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns.harness._sizes import Row
    from typing_extensions import Buffer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]


def check(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert not row.violations, "\n".join(row.violations)
    assert not row.missed


@pytest.mark.serial
def test_every_kind_of_error_at_some_operations(capsys: pytest.CaptureFixture[str]) -> None:
    row = run_apart("tests.campaigns.errno.run", "fast")
    check(row, capsys)
    assert row.cases >= 70


@pytest.mark.nightly
def test_every_kind_of_error_at_every_operation_of_two_workloads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    check(run_apart("tests.campaigns.errno.run", "nightly"), capsys)


def test_the_sizes_strike_what_they_say() -> None:
    strides = {size: scale.strides for size, scale in _errno._SCALES.items()}
    on_disk = {size: scale.stride_on_disk for size, scale in _errno._SCALES.items()}
    nightly, release = strides["nightly"], strides["release"]
    assert nightly == {"fresh": 1, "pruning": 4, "resumed": 7, "superseding": 7}
    assert release == dict.fromkeys(WORKLOADS, 1)
    assert (on_disk["nightly"], on_disk["release"]) == (31, 3)
    calls = {size: scale.stride_of_calls for size, scale in _errno._SCALES.items()}
    assert (calls["nightly"], calls["release"]) == (31, 3)
    assert [_errno._SCALES[size].most for size in ("nightly", "release")] == [None, None]


def test_the_fast_size_strikes_each_kind_in_each_way_everywhere() -> None:
    shares = _errno._shares(_errno._SCALES["fast"])
    in_memory = {(s.workload, s.kind, s.sticky) for s in shares if s.where == "memory"}
    assert len(in_memory) == 3 * len(KINDS) * 2
    local = {(s.kind, s.sticky, s.where) for s in shares if s.where != "memory"}
    assert len(local) == len(KINDS) * 2 * 2
    assert len(shares) == len(in_memory) + len(local)
    workloads = Counter((s.workload, s.where) for s in shares if s.where != "memory")
    assert len(workloads) == 3 * 2
    assert min(workloads.values()) >= 5


@pytest.mark.parametrize("where", ["disk", "calls"])
def test_the_fast_size_begins_all_over_the_stride(where: str) -> None:
    scale = _errno._SCALES["fast"]
    stride = {"disk": scale.stride_on_disk, "calls": scale.stride_of_calls}[where]
    starts = [s.start for s in _errno._shares(scale) if s.where == where]
    assert min(sum(start * 4 // stride == n for start in starts) for n in range(4)) >= 3


def test_what_no_index_hit_is_struck_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = [s for s in _errno._shares(_errno._SCALES["nightly"]) if s.workload == "fresh"]
    walk = [s for s in walks if (s.kind, s.sticky, s.where) == ("EIO", False, "memory")]
    performed = _errno._performed("fresh")
    missed = "sync_dir #3"
    assert missed in performed
    # a run of its own may move `latest` once more, or once less, before the fault is lifted
    monkeypatch.setattr(_errno, "_apart", lambda *_: set(performed))
    reports = [_errno._Report(struck=performed - {missed}) for _ in walk]
    (left,) = _errno._left_over(walk, reports)
    assert (left.at, left.workload, left.kind) == ((missed,), "fresh", "EIO")
    other = [s for s in walks if (s.kind, s.sticky, s.where) == ("ENOSPC", False, "memory")]
    reports += [_errno._Report(struck=performed | {"sync_dir #99"}) for _ in other]
    (left,) = _errno._left_over([*walk, *other], reports)
    assert (left.at, left.kind) == ((missed, "sync_dir #99"), "EIO")


TOLD = Call("wait 10", "ParticipantFailed of step 10", "no space [ENOSPC]", errno.ENOSPC, "a")


def judged(*told: Call, kind: int = errno.ENOSPC, interruptible: bool = False) -> set[str]:
    calls = [[Call("world", "ok"), told[0]], *([call] for call in told[1:])]
    found = check_told(calls, kind, interruptible=interruptible, deadline_s=1.0)
    return {text.partition(":")[0] for text in found}


def test_each_participant_is_told_the_same_reason() -> None:
    assert judged(TOLD, TOLD) == set()
    assert judged(TOLD, replace(TOLD, path="b")) == {"differ"}
    assert judged(TOLD, replace(TOLD, errno=errno.EIO)) == {"differ"}
    assert judged(TOLD, replace(TOLD, outcome="CommitTimeout of step 10")) == {"differ"}
    nothing = replace(TOLD, text="it failed", errno=None, path=None)
    assert judged(TOLD, nothing) == {"differ", "no errno"}
    assert judged(nothing, nothing) == {"no errno"}


def test_calls_end_in_time_with_a_typed_error_and_without_an_interruption() -> None:
    assert judged(replace(TOLD, seconds=9.0), TOLD) == {"slow"}
    untyped = replace(TOLD, outcome="KeyError of step None")
    assert judged(untyped, untyped) == {"untyped"}
    again = replace(TOLD, name="again wait 40")
    assert judged(again, again) == {"stuck"}
    assert judged(TOLD, TOLD, kind=errno.EINTR, interruptible=True) == {"interrupted"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_meets_no_error_is_told_of_none(kind: str) -> None:
    trial = Trial(
        "superseding", kind, 10**9, sticky=True, where="calls", wrap=lambda s: s, deadline_s=20.0
    )
    assert trial.run() == []
    assert not trial.struck
    assert all(": ok [" in line for line in trial.told()), trial.told()


class _OneByOne(Syscalls):
    """A kernel that takes and gives few bytes at a time, and is interrupted before each call."""

    def __init__(self) -> None:
        self.num_short = 0
        self._interrupts = True

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at most 3 bytes."""
        self._interrupt()
        return super().pwrite(fd, memoryview(data)[:3], offset)

    def pwrite_uncached(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at most 3 bytes."""
        self._interrupt()
        return super().pwrite_uncached(fd, memoryview(data)[:3], offset)

    def pread_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Read at most 3 bytes."""
        self._interrupt()
        return super().pread_into(fd, buffer[:3], offset)

    def _interrupt(self) -> None:
        self.num_short += 1
        self._interrupts = not self._interrupts
        if self._interrupts:
            raise InterruptedError


def test_short_writes_and_reads_are_continued_where_they_stopped(tmp_path: Path) -> None:
    calls = _OneByOne()
    data = bytes(range(256))
    with LocalStorage.create(tmp_path / "root", calls=calls) as storage:
        create_durable(storage, "file", data)
        assert read_bytes(storage, "file", len(data)) == data
    assert (tmp_path / "root" / "file").read_bytes() == data
    assert calls.num_short > 2 * len(data) / 3
