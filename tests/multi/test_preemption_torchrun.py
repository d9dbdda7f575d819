"""Signals in a torchrun job: all ranks save at one common step, and end within the grace.

`python -m tests.multi.test_preemption_torchrun` runs every moment with every signal, and prints how
long each end took.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.slow, pytest.mark.serial]

_JOB = Path(__file__).with_name("preemption_job.py")
_MOMENTS = ("training", "save", "capture", "collective")
_GRACE_S = 60.0


class PreemptedJob:
    """A job of some ranks that a test sends signals to.

    Args:
        folder: empty.
        size: number of ranks.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.root, self.folder, self.size = folder / "root", folder / "job", size
        self.folder.mkdir()
        self._num_rounds = 0

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """Run it under torchrun; it must end well."""
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
            str(self.size), str(_JOB), str(self.root), str(self.folder),
        ]  # fmt: skip
        with (self.folder / "log").open("w") as log:
            job = subprocess.Popen(command, stdout=log, stderr=log, text=True)
            try:
                for rank in range(self.size):
                    self.wait_for(f"pid-{rank}")
                yield job
            finally:
                job.kill()
                job.wait(60)
        assert not (self.folder / "not-noticed").exists(), "the signal was noticed too late"

    def wait_for(self, name: str) -> Path:
        """Wait for a file of the job."""
        for _ in range(30_000):
            if (self.folder / name).exists():
                return self.folder / name
            time.sleep(0.01)
        raise AssertionError(f"no {name}: {(self.folder / 'log').read_text()[-4000:]}")

    def signal(self, moment: str, number: signal.Signals, ranks: Sequence[int]) -> None:
        """Send a signal to some ranks once rank 0 is at a moment of this kind."""
        self._num_rounds += 1
        (self.folder / "new").write_text(moment)
        os.rename(self.folder / "new", self.folder / f"round-{self._num_rounds}")
        self.wait_for(f"at-{self._num_rounds}")
        for rank in ranks:
            os.kill(int((self.folder / f"pid-{rank}").read_text()), number)

    def histories(self) -> list[list[object]]:
        """Return the steps that each rank saved, and where it stopped."""
        paths = [self.folder / f"history-{rank}" for rank in range(self.size)]
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]

    def check_end(self, job: subprocess.Popen[str]) -> int:
        """Check that all stopped at one step, which is committed; return it."""
        assert job.wait(_GRACE_S) == 0, (self.folder / "log").read_text()[-4000:]
        (history, *others) = self.histories()
        assert all(other == history for other in others)
        assert history[-1] == {"stopped": history[-2], "size": self.size}
        found = ss.open(self.root).latest()
        assert found is not None
        assert found.step == history[-2]
        return found.step


@pytest.mark.parametrize(
    ("size", "last", "ranks"), [(2, "collective", [1]), (4, "save", [0, 1, 2, 3])]
)
def test_every_signal_saves_at_one_common_step(
    tmp_path: Path, size: int, last: str, ranks: list[int]
) -> None:
    """SIGUSR1 at each moment, to one rank and to all, then SIGTERM."""
    found = PreemptedJob(tmp_path, size)
    with found.running() as job:
        for moment in _MOMENTS:
            found.signal(moment, signal.SIGUSR1, [size - 1])
            found.signal(moment, signal.SIGUSR1, range(size))
        found.signal(last, signal.SIGTERM, ranks)
        found.check_end(job)
    unplanned = [step for step in found.histories()[0][:-2] if int(str(step)) % 20]
    assert len(unplanned) > len(_MOMENTS), "saves at steps that no rule names"


def main() -> None:
    """Send SIGTERM at each moment to one rank and to all, with 2 and 4 ranks."""
    for size in (2, 4):
        for moment in _MOMENTS:
            for ranks in ([0], [size - 1], [*range(size)]):
                with tempfile.TemporaryDirectory() as folder:
                    found = PreemptedJob(Path(folder), size)
                    with found.running() as job:
                        start = time.monotonic()
                        found.signal(moment, signal.SIGTERM, ranks)
                        sent = time.monotonic()
                        step = found.check_end(job)
                        end = time.monotonic()
                print(
                    f"{size} ranks, SIGTERM to {ranks} in {moment}: all stopped and saved at step "
                    f"{step}, {end - sent:.1f} s after the signal ({end - start:.1f} s in all)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
