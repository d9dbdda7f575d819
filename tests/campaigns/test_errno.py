"""Whatever the storage refuses, each call ends, all participants are told the same with its errno,
nothing is committed that is not whole, and the job goes on once the storage is sound again; see
`_errno`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.campaigns import _errno
from tests.campaigns._errno_job import Trial
from tests.campaigns._errno_strike import KINDS

from stepseal.storage import LocalStorage, create_durable, read_bytes
from stepseal.storage._calls import Calls

if TYPE_CHECKING:
    from pathlib import Path

    from tests.campaigns._sizes import Row
    from typing_extensions import Buffer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]


def check(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert not row.violations, "\n".join(row.violations)
    assert not row.missed


def test_every_kind_of_error_at_some_operations(capsys: pytest.CaptureFixture[str]) -> None:
    row = _errno.run("fast")
    check(row, capsys)
    assert row.cases >= 200


@pytest.mark.nightly
def test_every_kind_of_error_at_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    check(_errno.run("nightly"), capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_meets_no_error_is_told_of_none(kind: str) -> None:
    trial = Trial(
        "superseding", kind, 10**9, sticky=True, where="calls", wrap=lambda s: s, deadline_s=20.0
    )
    assert trial.run() == []
    assert not trial.struck
    assert all(": ok [" in line for line in trial.told()), trial.told()


class _OneByOne(Calls):
    """A kernel that takes and gives few bytes at a time, and is interrupted before each call."""

    def __init__(self) -> None:
        self.num_short = 0
        self._interrupts = True

    def pwrite(self, fd: int, data: Buffer, offset: int) -> int:
        """Write at most 3 bytes."""
        self._interrupt()
        return super().pwrite(fd, memoryview(data)[:3], offset)

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
