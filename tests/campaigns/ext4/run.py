"""Power loss on a real file system: no step is half there, and none that was promised is gone.

A small job saves on ext4, on a disk that keeps a diary of all writes and flushes. Images of what
the disk may hold after power was lost at any entry are then mounted, the kernel replays the
journal, and everything that a reader can see is compared with what the job had been told.

    python -m tests.campaigns.ext4.run --size fast|nightly|release [--filesystem xfs]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from tests.campaigns.ext4._check import Found, Task
from tests.campaigns.ext4._mounts import why_not
from tests.campaigns.ext4._record import Job
from tests.campaigns.ext4._variants import LYING_DISK, VARIANTS
from tests.campaigns.harness._sizes import Row, Size, main

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["FILESYSTEMS", "OPTIONS", "row_of", "run"]

OPTIONS = {
    "ext4": (
        "data=ordered",
        "data=ordered,noauto_da_alloc",
        "data=writeback,noauto_da_alloc",
        "data=journal",
    ),
    "xfs": ("nouuid",),
}
FILESYSTEMS = tuple(OPTIONS)
_NUM_IMAGES = {"fast": 300, "nightly": 2_000, "release": 100_000}
_PER_RECORDING = {"fast": 50, "nightly": 80, "release": 250}
_FOR_A_VARIANT = 200
_WORKLOADS = ("superseding", "pruning", "mixed", "async", "sync", "three", "alone")
_HOUSE = Path(__file__).resolve().parents[3]


def run(size: Size, filesystem: str = "ext4") -> Row:
    """Record jobs, check images of their disks, and check that broken savers are caught."""
    started = time.monotonic()
    options = OPTIONS[filesystem]
    broken = list(_broken(filesystem, options[:1] if size == "fast" else options))
    found = _perform([*_sound(size, filesystem), *broken])
    return row_of(filesystem, found, time.monotonic() - started)


def row_of(filesystem: str, found: Sequence[Found], seconds: float) -> Row:
    """Return what came of the recordings of the real saver, and of those that are broken."""
    sound = [each for each in found if each.variant == "none"]
    caught = {each.variant for each in found if each.caught}
    named = {LYING_DISK, *VARIANTS} - {"none"}
    return Row(
        campaign=f"power loss, {filesystem}",
        unit="images",
        cases=sum(each.num_images for each in sound),
        violations=tuple(text for each in sound for text in each.violations),
        caught=tuple(sorted(caught)),
        missed=tuple(sorted(named - caught)),
        seconds=seconds,
        notes=(
            f"{len(sound)} recordings; {sum(each.num_resumed for each in sound)} images were also "
            "restored from and saved to",
            *(
                f"{each.variant} is not seen on {each.name}"
                for each in found
                if each.variant != "none" and not each.caught
            ),
        ),
    )


def _sound(size: Size, filesystem: str) -> Iterator[Task]:
    """Return recordings of the real saver, as different as can be, for so many images in all."""
    kinds = cycle(product(_WORKLOADS, OPTIONS[filesystem]))
    num_images, per_recording = _NUM_IMAGES[size], _PER_RECORDING[size]
    for number, (workload, options) in enumerate(islice(kinds, num_images // per_recording)):
        neighbour = None if number % 3 == 2 else number
        yield Task(Job(workload, filesystem, options, neighbour=neighbour), per_recording)


def _broken(filesystem: str, all_options: Iterable[str]) -> Iterator[Task]:
    for options, name in product(all_options, [*VARIANTS, LYING_DISK]):
        if name == "none":
            continue
        lying = name == LYING_DISK
        variant = "none" if lying else name
        job = Job(VARIANTS[variant].workload, filesystem, options, variant)
        yield Task(job, _FOR_A_VARIANT, until_caught=True, lying=lying)


def _perform(tasks: Iterable[Task]) -> list[Found]:
    """Share tasks between one process per core."""
    waiting: SimpleQueue[Task] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    num_processes = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(num_processes) as pool:
        shares = [pool.submit(_serve, waiting) for _ in range(num_processes)]
    return [found for share in shares for found in share.result()]


def _serve(waiting: SimpleQueue[Task]) -> list[Found]:
    path = os.pathsep.join([str(_HOUSE / "src"), str(_HOUSE)])
    found = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.campaigns.ext4._check"],
        cwd=_HOUSE,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            while True:
                print(json.dumps(asdict(waiting.get_nowait())), file=program.stdin, flush=True)
                line = program.stdout.readline()
                if not line:
                    raise RuntimeError(f"the program that mounts images ended: {program.wait()}")
                found.append(Found(**json.loads(line)))
        except Empty:
            return found
        finally:
            program.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--filesystem", choices=FILESYSTEMS, default="ext4")
    arguments, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    filesystem = arguments.filesystem
    sys.exit(main(partial(run, filesystem=filesystem), partial(why_not, filesystem)))
