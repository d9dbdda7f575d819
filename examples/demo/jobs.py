"""Starts the training job under torchrun, follows it, and kills it at the worst moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.demo.settings import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DemoFailed", "Life", "Torn", "check", "find_torn", "run_job"]

_JOB_LIMIT_S = 300.0
_FOLLOW_S = 0.02
_WATCH_S = 0.0002
"""Between two looks while a save is near: a small save is over in milliseconds."""
_REPOSITORY = Path(__file__).resolve().parents[2]


class DemoFailed(Exception):
    """Something that this demo claims did not hold."""


def check(holds: bool, claim: str) -> None:
    """Stop the demo unless `claim` holds."""
    if not holds:
        raise DemoFailed(claim)


@dataclass(frozen=True, slots=True)
class Torn:
    """A save that was caught in the middle: payload bytes on disk, and no manifest."""

    step: int
    folder: Path
    size_bytes: int


@dataclass(slots=True)
class Life:
    """One start of the job, and what became of it."""

    pid: int | None = None
    """Process of rank 0, which hosts the coordinator."""
    resumed: int | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    restore_s: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    step_s: list[float] = field(default_factory=list)
    blocked_s: list[float] = field(default_factory=list)
    """How long each save kept the training loop waiting."""
    killed_in: Torn | None = None
    exit_code: int | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Learn from one line of the job's history."""
        if "pid" in event:
            self.pid, self.resumed = event["pid"], event["resumed"]
            self.skipped, self.restore_s = event["skipped"], event["restore_s"]
            return
        self.losses[event["step"]] = event["loss"]
        self.step_s.append(event["step_s"])
        if event["blocked_s"] is not None:
            self.blocked_s.append(event["blocked_s"])


def find_torn(root: Path, from_step: int) -> Torn | None:
    """Return a save of `from_step` or later that is being written just now, or None.

    Cheap enough to be called thousands of times a second, and looks at names and sizes only.
    """
    staging = root / ".stepseal" / "staging"
    try:
        for name in os.listdir(staging):
            step = int(name.partition(".")[0].removeprefix("step-"))
            size_bytes = sum(one.stat().st_size for one in (staging / name).glob("*.distcp"))
            decided = (staging / name / "manifest.json").exists()
            if step >= from_step and size_bytes > 0 and not decided:
                return Torn(step, staging / name, size_bytes)
    except FileNotFoundError:
        return None  # not there yet, or committed between two looks
    return None


def run_job(
    root: Path,
    history: Path,
    size: str,
    on_step: Callable[[int, float], None],
    *,
    kill_from: int | None = None,
) -> Life:
    """Run the job on `root` until it ends; return what it did.

    Args:
        root: where it saves.
        history: where it writes its JSON lines; its output goes beside it.
        size: `full` or `small`.
        on_step: called with each step and its loss.
        kill_from: SIGKILL rank 0 in the middle of the first save of this step or a later one.

    Raises:
        DemoFailed: the job failed by itself, or takes too long.
    """
    output = history.with_suffix(".output")
    with output.open("w") as sink:
        process = subprocess.Popen(
            _command(root, history, size),
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=_REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        life = _follow(process, root, history, on_step, kill_from)
    finally:
        _end(process)
    if kill_from is None and life.exit_code != 0:
        text = _first_failure(output)
        raise DemoFailed(f"the job ended with exit code {life.exit_code}; {output}:\n{text}")
    return life


def _command(root: Path, history: Path, size: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = ["--nproc-per-node", str(SIZES[size].num_ranks)]
    job = ["-m", "examples.demo.train", "--root", str(root.resolve()), "--size", size]
    return [*torchrun, *ranks, *job, "--history", str(history.resolve())]


def _follow(
    process: subprocess.Popen[bytes],
    root: Path,
    history: Path,
    on_step: Callable[[int, float], None],
    kill_from: int | None,
) -> Life:
    life = Life()
    num_read = 0
    deadline = time.monotonic() + _JOB_LIMIT_S
    while life.exit_code is None:
        check(time.monotonic() < deadline, f"the job took longer than {_JOB_LIMIT_S:g} s")
        life.exit_code = process.poll()  # before the last look at the history
        lines = _whole_lines(history)
        for line in lines[num_read:]:
            life.take(json.loads(line))
            if life.losses:
                on_step(*list(life.losses.items())[-1])
        num_read = len(lines)
        near = kill_from is not None and life.killed_in is None
        near = near and max(life.losses, default=0) + 1 >= (kill_from or 0)
        if near and kill_from is not None and life.pid is not None:
            life.killed_in = find_torn(root, kill_from)
            if life.killed_in is not None:
                os.kill(life.pid, signal.SIGKILL)
        time.sleep(_WATCH_S if near else _FOLLOW_S)
    return life


def _whole_lines(history: Path) -> list[str]:
    if not history.exists():
        return []
    return history.read_text().rpartition("\n")[0].splitlines()


def _first_failure(output: Path) -> str:
    lines = output.read_text(errors="replace").splitlines()
    by_ranks = [line for line in lines if line.startswith("[rank")]
    return "\n".join(by_ranks or lines[-40:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind when the demo is interrupted: torchrun ends its ranks on SIGTERM."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(40.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
