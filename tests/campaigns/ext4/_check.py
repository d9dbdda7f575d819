"""Mounts images of a recording, lets the kernel replay the journal, and checks every promise.

A program of its own, because it takes mounts of its own; `run` starts one per core:

    python -m tests.campaigns.ext4._check FOLDER --image N      again, one image of a kept recording
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tests.campaigns.ext4._images import Image, build, choose
from tests.campaigns.ext4._mounts import MEMORY, LoopDevice, die_with_parent, mounted, own_namespace
from tests.campaigns.ext4._record import ROOT, Job, Recording, record
from tests.campaigns.ext4._variants import LYING_DISK, caught_as
from tests.campaigns.harness._lives import WORKLOADS, Life
from tests.campaigns.harness._log import Event, Log
from tests.campaigns.harness._recovery import Violation, recover, survey

from stepseal.errors import CheckpointError
from stepseal.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Found", "Task"]

RESUME_EVERY = 16
"""Of so many images one is also restored from, and saved to again."""


@dataclass(frozen=True)
class Task:
    """A recording to make, and how many images of it to check."""

    job: Job
    num_images: int
    until_caught: bool = False
    """Stop at the first violation of a kind that must show, and do not keep the recording."""
    lying: bool = False
    """The disk answers to a flush before it has carried it out."""


@dataclass
class Found:
    """What came out of a task."""

    name: str
    variant: str
    num_images: int = 0
    num_resumed: int = 0
    violations: list[str] = field(default_factory=list)
    """Each begins with its kind and a colon."""
    record_s: float = 0.0
    seconds: float = 0.0

    @property
    def caught(self) -> bool:
        """A violation of a kind that must show is among them."""
        kinds = {text.partition(":")[0] for text in self.violations}
        return self.variant != "none" and bool(kinds & caught_as(self.variant))


class _Told(Log):
    """A log in memory that begins with what the job was told before power was lost."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def add(self, event: Event) -> None:
        self._events.append(event)

    def events(self) -> list[Event]:
        return list(self._events)


def perform(task: Task) -> Found:
    """Record, and check images until there are enough."""
    started = time.monotonic()
    job = task.job
    found = Found(job.name, LYING_DISK if task.lying else job.variant)
    folder = Path(tempfile.mkdtemp(prefix="stepseal-ext4-", dir=MEMORY))
    try:
        recording = record(folder, job)
        found.record_s = time.monotonic() - started
        numbers = range(8 * task.num_images)
        images = list(choose(recording, numbers, lying=task.lying))[: task.num_images]
        for image, violations in check(recording, images, folder):
            found.num_images += 1
            found.num_resumed += image.number % RESUME_EVERY == 0
            again = f"python -m tests.campaigns.ext4._check {_kept(folder)} --image {image.number}"
            found.violations += [f"{v.kind}: {v.text}: {again}" for v in violations]
            if task.until_caught and found.caught:
                break
        if found.violations and not task.until_caught:
            shutil.copytree(folder, _kept(folder), ignore=shutil.ignore_patterns("image", "mount"))
    finally:
        shutil.rmtree(folder)
    found.seconds = time.monotonic() - started
    return found


def _kept(folder: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"{folder.name}-kept"


def check(
    recording: Recording, images: Iterable[Image], folder: Path
) -> Iterator[tuple[Image, list[Violation]]]:
    """Mount every image and say what is wrong with it."""
    path, point = folder / "image", folder / "mount"
    point.mkdir(exist_ok=True)
    path.write_bytes(bytes(recording.size_bytes))
    compared: set[str] = set()
    with LoopDevice(path) as loop:
        for image in build(recording, images, path):
            loop.reread()
            yield image, _check(recording, image, loop.path, point, compared)


def _check(
    recording: Recording, image: Image, device: str, point: Path, compared: set[str]
) -> list[Violation]:
    log = _Told(image.events(recording))
    root = point / ROOT
    with _mounted(device, point, recording.job) as problem:
        if problem is not None:
            return [problem]
        found = _survey(recording.job, root, log, compared)
        if not found and image.number % RESUME_EVERY == 0:
            found = _in_child(recording.job, root, log)
        gc.collect()  # errors on the way may hold storages in cycles
    return found


@contextlib.contextmanager
def _mounted(device: str, point: Path, job: Job) -> Iterator[Violation | None]:
    with contextlib.ExitStack() as stack:
        problem = None
        try:
            stack.enter_context(mounted(device, point, job.filesystem, job.options))
        except OSError as error:
            problem = Violation("damaged", f"the file system itself is lost: {error}")
        yield problem


def _survey(job: Job, root: Path, log: Log, compared: set[str]) -> list[Violation]:
    try:
        return survey(root, log, compared, WORKLOADS[job.workload].keep)
    except (CheckpointError, OSError) as error:
        return [Violation("damaged", f"{type(error).__name__}: {error}")]


def _in_child(job: Job, root: Path, log: Log) -> list[Violation]:
    """Resume and save again in another process, so that nothing of it stays open."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            die_with_parent()
            workload = WORKLOADS[job.workload]

            def storage(_rank: int) -> LocalStorage:
                return LocalStorage.create(root)

            life = Life(6, root, log, storage, workload.num_participants, workload.keep)
            found = recover(life)
        except BaseException as error:
            found = [Violation("workload", f"{type(error).__name__}: {error}")]
        with open(writing, "w") as pipe:
            json.dump([(v.kind, v.text) for v in found], pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return [Violation(*each) for each in json.loads(text)]


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?")
    parser.add_argument("--image", type=int, default=0)
    arguments = parser.parse_args()
    die_with_parent()
    own_namespace()
    torch.set_num_threads(1)
    if arguments.recording is None:
        gc.freeze()  # what is there now stays: to look at it after every image takes longer than it
        for line in sys.stdin:
            task: dict[str, Any] = json.loads(line)
            found = perform(Task(Job(**task.pop("job")), **task))
            print(json.dumps(asdict(found)), flush=True)
        return 0
    recording = Recording.load(arguments.recording)
    folder = Path(tempfile.mkdtemp(prefix="stepseal-ext4-", dir=MEMORY))
    try:
        images = choose(recording, [arguments.image])
        results = [found for _, each in check(recording, images, folder) for found in each]
    finally:
        shutil.rmtree(folder)
    print("\n".join(f"{found.kind}: {found.text}" for found in results) or "no violation")
    return 1 if results else 0


if __name__ == "__main__":
    sys.exit(_main())
