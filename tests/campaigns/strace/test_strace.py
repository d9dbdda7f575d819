"""A real job that is killed from outside before a system call leaves what it was promised, and
nothing of it writes past our own storage layer; see `run`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.campaigns.harness._apart import run_apart
from tests.campaigns.strace import run as _strace
from tests.campaigns.strace._calls import why_not

if TYPE_CHECKING:
    from tests.campaigns.harness._sizes import Row

_HOUSE = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(14400)]


@pytest.fixture(autouse=True)
def needs_strace() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


def check(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{row.text()}")
    assert not row.violations, "\n".join(row.violations)
    assert not row.missed
    writes = {"pwrite64", "pwritev2"}  # the second where the kernel takes RWF_DONTCACHE
    struck = {note.partition(",")[0] for note in row.notes if ": 0 struck" not in note}
    assert struck & writes
    for call in set(_strace.CALLS) - {"mkdir"} - writes:
        assert call in struck


def test_killed_before_some_system_calls(capsys: pytest.CaptureFixture[str]) -> None:
    check(run_apart("tests.campaigns.strace.run", "fast"), capsys)


@pytest.mark.parametrize(
    "options",
    ["--call openat --inject error=EIO --at 1", "--workload back --call renameat2 --at 2"],
    ids=["the first file of a thread", "while it supersedes"],
)
def test_one_call_is_struck(options: str) -> None:
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    command = [sys.executable, "-m", "tests.campaigns.strace.run", *options.split()]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=_HOUSE, env=environment, stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith("struck: True")
    assert done.returncode == 0, done.stdout


@pytest.mark.nightly
def test_killed_before_every_system_call(capsys: pytest.CaptureFixture[str]) -> None:
    check(run_apart("tests.campaigns.strace.run", "nightly"), capsys)
