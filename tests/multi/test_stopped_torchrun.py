"""torchrun jobs that are stopped: as a whole they go on, a rank that alone is stopped is lost.

A scheduler that suspends a job, the cgroup freezer and a paused machine stop it as SIGSTOP does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.multi.stopped_job import LIMITS, STOPPED_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.serial]

_JOB = Path(__file__).with_name("stopped_job.py")
_SAVED = ["saved", "saved"]


class Running:
    """A job of two ranks under torchrun."""

    def __init__(self, job: subprocess.Popen[str], folder: Path) -> None:
        self.job = job
        self.folder = folder

    def pids(self) -> list[int]:
        """Wait until both ranks have saved once; return their process ids."""
        return [int(self._read(f"pid.{rank}")) for rank in (0, 1)]

    def outcomes(self) -> list[list[str]]:
        """Let both ranks go on; return what became of their next saves."""
        (self.folder / "go").touch()
        return [json.loads(self._read(f"out.{rank}")) for rank in (0, 1)]

    def _read(self, name: str) -> str:
        path = self.folder / name
        while not (path.exists() and path.stat().st_size):
            code = self.job.poll()
            assert code in (None, 0) or path.exists(), (self.folder / "log").read_text()[-4000:]
            time.sleep(0.05)
        return path.read_text()


@contextmanager
def running(tmp_path: Path, *options: str) -> Iterator[Running]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(_JOB), str(tmp_path / "root"), str(tmp_path), *options,
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            yield Running(job, tmp_path)
        finally:
            for path in tmp_path.glob("pid.[01]"):
                with suppress(ProcessLookupError):  # it has ended
                    os.kill(int(path.read_text()), signal.SIGKILL)
            job.kill()
            job.wait(60)


def pause() -> None:
    """Let more time pass than a rank may be silent."""
    time.sleep(STOPPED_S)  # real time is what is tested here


@pytest.mark.parametrize("naive", [False, True])
def test_a_job_that_was_suspended_saves_on(naive: bool, tmp_path: Path) -> None:
    with running(tmp_path, *["naive"] * naive) as found:
        everybody = [found.job.pid, *found.pids()]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        pause()
        for pid in reversed(everybody):
            os.kill(pid, signal.SIGCONT)
        assert (found.outcomes() == [_SAVED, _SAVED]) is not naive


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_alone_is_stopped_is_lost(stopped: int, tmp_path: Path) -> None:
    with running(tmp_path) as found:
        pid = found.pids()[stopped]
        os.kill(pid, signal.SIGSTOP)
        pause()
        os.kill(pid, signal.SIGCONT)
        other = found.outcomes()[1 - stopped]
        for text in other:
            assert "no sign of life" in text
            assert "next save" not in text
        assert LIMITS.lost_s < STOPPED_S


def test_a_call_that_holds_the_gil_on_all_ranks_costs_nobody(tmp_path: Path) -> None:
    with running(tmp_path, "hold", "0", "1") as found:
        found.pids()
        assert found.outcomes() == [_SAVED, _SAVED]


def test_a_call_that_holds_the_gil_on_one_rank_alone_is_a_loss(tmp_path: Path) -> None:
    with running(tmp_path, "hold", "1") as found:
        found.pids()
        pause()
        assert all("no sign of life" in text for text in found.outcomes()[0])
