"""Records what a job's disk was told: a file system on a disk that keeps a diary.

A recording is a folder with the diary of the disk, what the job was told, each with how long the
diary was at that moment, and the job. It is kept when an image of it violates a promise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from tests.campaigns.ext4._disk import DISK, read_diary
from tests.campaigns.ext4._mounts import LoopDevice, die_with_parent, mounted, unmount
from tests.campaigns.ext4._variants import VARIANTS
from tests.campaigns.harness._lives import WORKLOADS, Life
from tests.campaigns.harness._log import Event, Log

from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepseal.storage import Storage

__all__ = ["ROOT", "Job", "Recording", "record"]

ROOT = "run"
"""The root's folder in the file system."""
_MIB = 1 << 20
_MKFS = {
    "ext4": ("-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("-f", "--unsupported", "-l", "size=6m"),  # far smaller than it is meant to be used
}
_SIZE_BYTES = {"ext4": 24 * _MIB, "xfs": 40 * _MIB}
_START_S = 30.0
_WORKLOAD_S = 120.0
_PAUSE_S = 0.008


@dataclass(frozen=True)
class Job:
    """What runs on the disk."""

    workload: str
    filesystem: str = "ext4"
    options: str = "data=ordered"
    """Of the mount; also when an image is mounted."""
    variant: str = "none"
    neighbour: int | None = None
    """Seed of somebody who writes and syncs in the same file system at random times, so that
    its journal is committed between any two operations of ours."""

    @property
    def name(self) -> str:
        """For people."""
        beside = "" if self.neighbour is None else f", neighbour {self.neighbour}"
        return f"{self.workload} on {self.filesystem} ({self.options}{beside})"


@dataclass(frozen=True)
class Recording:
    """What happened, in the order in which the disk saw it."""

    job: Job
    size_bytes: int
    entries: list[tuple[int, bytes, int, bytes]]
    """Position, kind, offset and data."""
    mounted_at: int
    """Position of the first entry after the file system was made."""
    events: list[tuple[int, Event]]
    """What the job was told, and the position in the diary before which that was."""

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Read a recording from its folder."""
        about = json.loads((folder / "about.json").read_text())
        entries = list(read_diary((folder / "diary").read_bytes()))
        lines = (folder / "events").read_text().splitlines()
        events = [(at, Event(*rest)) for at, *rest in map(json.loads, lines)]
        job = Job(**about["job"])
        return cls(job, about["size_bytes"], entries, about["mounted_at"], events)


class _DiaryLog(Log):
    """A log outside the disk, each line with the length of the disk's diary."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "events")
        self._diary = folder / "diary"

    def add(self, event: Event) -> None:
        line = [self._diary.stat().st_size, event.kind, event.life, event.step, event.digest]
        data = json.dumps(line).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)


def record(folder: Path, job: Job) -> Recording:
    """Run a job on a new disk; the process has mounts of its own.

    Args:
        folder: empty, not on the disk.
        job: what to run.
    """
    size_bytes = _SIZE_BYTES[job.filesystem]
    diary = folder / "diary"
    with _disk(folder, size_bytes) as disk, LoopDevice(disk) as loop:
        subprocess.run(
            [f"mkfs.{job.filesystem}", "-q", *_MKFS[job.filesystem], loop.path],
            check=True,
            capture_output=True,
        )
        mounted_at = diary.stat().st_size
        about = {"job": asdict(job), "size_bytes": size_bytes, "mounted_at": mounted_at}
        (folder / "about.json").write_text(json.dumps(about))
        point = folder / "mount"
        point.mkdir()
        with mounted(loop.path, point, job.filesystem, job.options):
            _work(folder, point, job)
    return Recording.load(folder)


@contextlib.contextmanager
def _disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Run the program that is the disk."""
    point = folder / "fuse"
    point.mkdir()
    command = [sys.executable, "-m", "tests.campaigns.ext4._disk", str(point)]
    with subprocess.Popen([*command, str(folder / "diary"), str(size_bytes)]) as program:
        try:
            started = time.monotonic()
            while not (point / DISK).exists():
                assert program.poll() is None, "the disk did not start"
                assert time.monotonic() - started < _START_S, "the disk did not come up"
                time.sleep(0.005)
            yield point / DISK
            unmount(point)  # refused while the loop device is not quite gone
        finally:
            program.kill()


def _work(folder: Path, point: Path, job: Job) -> None:
    """Run the workload in a child, so that nothing of it is open when the disk is unmounted."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            die_with_parent()
            _live(folder, point, job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    watchdog = threading.Timer(_WORKLOAD_S, os.kill, (child, 9))
    watchdog.start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    watchdog.cancel()
    assert status == 0, f"{job.name}, {job.variant}: the workload ended with {status}"


def _live(folder: Path, point: Path, job: Job) -> None:
    variant, workload = VARIANTS[job.variant], WORKLOADS[job.workload]
    variant.patch()
    root = point / ROOT

    def storage(_rank: int) -> Storage:
        return variant.wrap(LocalStorage.create(root))

    over = threading.Event()
    log = _DiaryLog(folder)
    life = Life(1, root, log, storage, workload.num_participants, workload.keep)
    beside = threading.Thread(target=_be_neighbour, args=(point / "neighbour", job.neighbour, over))
    beside.start()
    try:
        workload.run(life)
    finally:
        over.set()
        beside.join()


def _be_neighbour(path: Path, seed: int | None, over: threading.Event) -> None:
    """Write and sync a file of one's own until the job is over."""
    if seed is None:
        return
    chance = random.Random(seed)
    with path.open("wb", buffering=0) as file:
        while not over.wait(chance.uniform(0, _PAUSE_S)):
            file.write(chance.randbytes(100))
            os.fsync(file.fileno())
