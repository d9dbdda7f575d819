"""The power-loss campaign: after each operation of a job the power goes, in many ways; then what
a reader or the next incarnation sees must be as the job was promised.

    python -m tests.campaigns.power_loss.run --size fast

A job runs once over a recorded storage in memory. Its operations are then applied one by one to a
model of a disk (`_disk`). After each, the disk is asked for images of what may be left: nothing,
all, a prefix of the journal, all changes but one, one alone, random ones, with torn or zeroed
bytes. Only images that differ are counted, and each is checked. Broken protocols are the same
record without the calls that they would leave out, or with these later.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tests.campaigns.harness import _lives
from tests.campaigns.harness._lives import Life
from tests.campaigns.harness._sizes import Row, Size, main
from tests.campaigns.power_loss._check import Checker
from tests.campaigns.power_loss._disk import Disk, Operation, RecordedLog, Recorder
from tests.campaigns.power_loss._variants import VARIANTS

from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.campaigns.harness._log import Event
    from tests.campaigns.harness._recovery import Violation
    from tests.campaigns.power_loss._disk import Image, Kept

__all__ = ["Outcome", "Recording", "load", "record", "run", "store", "try_all"]

_MODULE = "tests.campaigns.power_loss.run"


class _Scale(NamedTuple):
    workloads: tuple[str, ...]
    num_recordings: int
    """Runs of each workload; threads take turns differently."""
    num_random: int
    """Random images after each operation."""


_EVERY = (
    "mixed", "async", "sync", "alone", "three", "superseding", "pruning",
    "after-loss-in-part", "after-loss-at-commit", "after-loss-in-exchange",
)  # fmt: skip
_SCALES: dict[Size, _Scale] = {
    "fast": _Scale(("mixed", "superseding", "pruning", "after-loss-in-exchange"), 1, 50),
    "nightly": _Scale(_EVERY, 3, 200),
    "release": _Scale(_EVERY, 12, 400),
}
_SAVE_EVERY = 100
"""After one of so many images the job goes on and saves."""
_VARIANT_IMAGES = 6
_AFTER_LOSS = {
    "after-loss-in-part": "after-crash-in-part",
    "after-loss-at-commit": "after-crash-at-commit",
    "after-loss-in-exchange": "after-crash-in-exchange",
}


@dataclass(frozen=True)
class Recording:
    """All that a job did, and what it was told."""

    operations: list[Operation]
    start: MemoryStorage | None = None
    """What the disk held when it began."""
    told: list[Event] = field(default_factory=list)
    """What an earlier job was told, which lost its power."""
    num_participants: int = 2
    keep: int | None = None
    """How many of the newest steps the job keeps."""


@dataclass
class Outcome:
    """What came of the images of one recording."""

    num_images: int = 0
    num_saves: int = 0
    """Of those images, on how many the job went on."""
    violations: list[tuple[int, int, Violation]] = field(default_factory=list)
    """Operation and image, and what was wrong."""


def record(name: str) -> Recording:
    """Run a workload once, on a new storage or on what a power loss left of an earlier job's."""
    workload = _lives.WORKLOADS[_AFTER_LOSS.get(name, name)]
    if workload.prelude is None:
        return _recorded(workload.run, 1, MemoryStorage(), [], workload)
    assert workload.crash is not None
    earlier = _recorded(workload.prelude, 1, MemoryStorage(), [], workload)
    disk, told = Disk(), []
    for operation in earlier.operations:
        verb, _, key = operation.text.partition(" ")
        if workload.crash(verb, key):
            break
        disk.apply(operation)
        told += [operation.event] if operation.event is not None else []
    chance = random.Random(name)
    kept = disk.image(lambda _: chance.random() < 0.5, lambda _: ("zeros", 0.5)).storage
    return _recorded(workload.run, 3, kept, told, workload)


def _recorded(
    work: Callable[[Life], None],
    number: int,
    storage: MemoryStorage,
    told: list[Event],
    workload: _lives.Workload,
) -> Recording:
    start = storage.after_power_loss(lambda *_: 1.0)
    recorder = Recorder(storage)
    num_participants, keep = workload.num_participants, workload.keep
    log = RecordedLog(recorder)
    life = Life(number, Path(), log, lambda _: recorder, num_participants, keep)
    work(life)
    recording = Recording(recorder.operations, start, told, num_participants, keep)
    _check_model(recording, storage)
    return recording


def _check_model(recording: Recording, storage: MemoryStorage) -> None:
    """The model of the disk, losing nothing, holds what the storage holds."""
    disk = _disk_of(recording)
    for operation in recording.operations:
        disk.apply(operation)
    found = disk.image(lambda _: True, lambda _: ("written", 1.0))
    wanted = Disk.holding(storage).image(lambda _: True, lambda _: ("written", 1.0))
    assert found.signature == wanted.signature, "the model of the disk is wrong"


def _disk_of(recording: Recording) -> Disk:
    return Disk() if recording.start is None else Disk.holding(recording.start)


def _images(disk: Disk, chance: random.Random, num_random: int) -> Iterator[Image]:
    """Return what a power loss now may leave; the first six are always the same."""
    for names, kept in (
        (False, "synced"), (True, "written"), (True, "synced"), (False, "written"),
        (True, "zeros"), (True, "prefix"),
    ):  # fmt: skip
        yield disk.image(lambda _, n=names: n, lambda _, k=kept: (k, 0.5 * (k == "prefix")))  # type: ignore[misc]
    if not disk.pending and not disk.dirty:
        return
    num_names = max(1, len(disk.pending))
    for number in range(num_random):
        one = chance.randrange(num_names)
        share = chance.random()
        rules: tuple[Callable[[int], bool], ...] = (
            lambda n, one=one: n <= one,  # type: ignore[misc]
            lambda n, one=one: n != one,  # type: ignore[misc]
            lambda n, one=one: n == one,  # type: ignore[misc]
            lambda _, share=share: chance.random() < share,  # type: ignore[misc]
        )
        yield disk.image(rules[min(number % 5, 3)], lambda _: _torn(chance))


def _torn(chance: random.Random) -> tuple[Kept, float]:
    kinds: tuple[Kept, ...] = ("synced", "written", "prefix", "zeros", "hole")
    return chance.choice(kinds), chance.random()


def try_all(
    recording: Recording,
    num_random: int,
    *,
    save_every: int = 0,
    stop_at_first: bool = False,
    only: tuple[int, int] | None = None,
) -> Outcome:
    """Check images after each operation.

    Args:
        recording: of the job.
        num_random: images after each operation, besides six that are always tried.
        save_every: let the job go on after one of so many images; 0 for never.
        stop_at_first: one violation is enough.
        only: operation and image.
    """
    outcome = Outcome()
    disk = _disk_of(recording)
    checker = Checker(recording.num_participants, recording.keep)
    events = list(recording.told)
    for at, operation in enumerate(recording.operations):
        disk.apply(operation)
        if operation.event is not None:
            events.append(operation.event)
        if only is not None and only[0] != at:
            continue
        for number, image in enumerate(_images(disk, random.Random(at), num_random)):
            if only is not None and only[1] != number:
                continue
            if not checker.is_new(image, events):
                continue
            outcome.num_images += 1
            found = checker.check(image, events)
            if not found and (only or (save_every and outcome.num_images % save_every == 0)):
                outcome.num_saves += 1
                found = checker.go_on(image, events)
            outcome.violations += [(at, number, violation) for violation in found]
            if found and stop_at_first:
                return outcome
    return outcome


def _reproductions(recording: Recording, outcome: Outcome, num_random: int) -> list[str]:
    if not outcome.violations:
        return []
    path = store(recording)
    return [
        f"python -m {_MODULE} --recording {path} --image {at} {number} {num_random}  # {v.kind}"
        for at, number, v in outcome.violations
    ]


def store(recording: Recording) -> Path:
    """Store a recording, because threads take turns differently in the next one."""
    with tempfile.NamedTemporaryFile(prefix="power-loss-", suffix=".pickle", delete=False) as file:
        start = None if recording.start is None else Disk.holding(recording.start)
        pickle.dump({**vars(recording), "start": start}, file)
    return Path(file.name)


def load(path: Path) -> Recording:
    """Read a stored recording."""
    with path.open("rb") as file:
        found = pickle.load(file)
    disk = found.pop("start")
    start = None if disk is None else disk.image(lambda _: True, lambda _: ("written", 1.0)).storage
    return Recording(**found, start=start)


def run(size: Size) -> Row:
    """Try every workload of this size, then every broken protocol."""
    torch.set_num_threads(1)
    started = time.monotonic()
    scale = _SCALES[size]
    violations: list[str] = []
    notes = []
    num_images = 0
    for name in scale.workloads:
        whole = Outcome()
        for _ in range(scale.num_recordings):
            recording = record(name)
            outcome = try_all(recording, scale.num_random, save_every=_SAVE_EVERY)
            whole.num_images += outcome.num_images
            whole.num_saves += outcome.num_saves
            violations += _reproductions(recording, outcome, scale.num_random)
        num_images += whole.num_images
        notes.append(f"{name}: {whole.num_images:,} images, {whole.num_saves} saved again")
    seconds = time.monotonic() - started
    caught: list[str] = []
    missed: list[str] = []
    recordings = {name: record(name) for name in {v.workload for v in VARIANTS.values()}}
    for name, variant in VARIANTS.items():
        recording = recordings[variant.workload]
        broken = replace(recording, operations=variant.change(recording.operations))
        found = try_all(broken, _VARIANT_IMAGES, stop_at_first=True).violations
        (caught if found else missed).append(name)
    return Row(
        "power loss", "images", num_images, tuple(violations), tuple(caught), tuple(missed),
        seconds, tuple(notes),
    )  # fmt: skip


def _again(path: Path, at: int, number: int, num_random: int) -> int:
    recording = load(path)
    outcome = try_all(recording, num_random, only=(at, number))
    print(f"after {recording.operations[at].text}:")
    for *_, violation in outcome.violations:
        print(f"  {violation.kind}: {violation.text}")
    return 1 if outcome.violations else 0


if __name__ == "__main__":
    if "--recording" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--recording", type=Path)
        parser.add_argument("--image", type=int, nargs=3)
        arguments = parser.parse_args()
        sys.exit(_again(arguments.recording, *arguments.image))
    sys.exit(main(run))
