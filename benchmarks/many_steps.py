"""What 5,000 kept steps cost: saves, prunes and the command line, against a root of two steps.

All steps are copies of one real step, with numbers, attempts and digests of their own. Both roots
are measured in one run, in turn. A save counts as pruned when the step that it pushed out is gone,
also from the trash.

    python benchmarks/many_steps.py --steps 5000 --repetitions 15 --root <folder on the disk>
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import torch

import stepseal as ss
from stepseal.layout import (
    MANIFEST,
    StepRef,
    decode_manifest,
    decode_part,
    encode_manifest,
    encode_part,
    manifest_digest,
    sha256_hex,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.layout import Manifest

SMALL = 2
STATE = {"weight": torch.zeros(16), "bias": torch.zeros(4)}


def fill(root: str, num_steps: int) -> None:
    """Make a root with steps 1 to `num_steps`: one saved, the others copied from it."""
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("model", STATE, kind="tensors")
        ckpt.save(1, metrics={"loss": 0.5}).wait()
    first = read(f"{root}/step-1/{MANIFEST}")
    manifest = decode_manifest(first)
    ref = StepRef(1, manifest_digest(first), manifest.incarnation)
    for step in range(2, num_steps + 1):
        ref = copy_step(root, manifest, step, ref)


def copy_step(root: str, first: Manifest, step: int, parent: StepRef) -> StepRef:
    """Copy step 1 under another number; return its reference."""
    attempt = secrets.token_hex(16)
    source, target = f"{root}/step-1", f"{root}/step-{step}"
    shutil.copytree(source, target)
    parts = []
    for part in first.parts:
        path = part.document.path
        old = decode_part(read(f"{source}/{path}"))
        data = encode_part(dataclasses.replace(old, step=step, attempt=attempt))
        write(f"{target}/{path}", data)
        document = dataclasses.replace(part.document, size_bytes=len(data), sha256=sha256_hex(data))
        parts.append(dataclasses.replace(part, document=document))
    data = encode_manifest(
        dataclasses.replace(first, step=step, attempt=attempt, parent=parent, parts=tuple(parts))
    )
    write(f"{target}/{MANIFEST}", data)
    return StepRef(step, manifest_digest(data), first.incarnation)


def read(path: str) -> bytes:
    """Return all bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


def write(path: str, data: bytes) -> None:
    """Replace a file."""
    with open(path, "wb") as file:
        file.write(data)


class Job:
    """A job on one root, which saves and waits for its prune."""

    def __init__(self, root: str, num_kept: int, *, prunes: bool) -> None:
        self._root = root
        self._num_kept = num_kept if prunes else 0
        steps = [int(name[5:]) for name in os.listdir(root) if name.startswith("step-")]
        self._step = self._resumed = max(steps)
        keep = ss.latest(num_kept) if prunes else None
        self.ckpt = ss.Checkpointer(root, keep=keep)
        self.ckpt.add("model", STATE, kind="tensors")
        self.ckpt.restore()
        self.save()

    def save(self) -> None:
        """Return once a save is committed and the step that it pushed out is gone."""
        self._step += 1
        self.ckpt.save(self._step).wait()
        self._settle()

    def _settle(self) -> None:
        gone = self._step - self._num_kept
        if gone in (self._step, self._resumed):  # the step that was resumed from stays
            return
        folder, trash = f"{self._root}/step-{gone}", f"{self._root}/.stepseal/trash"
        limit = time.monotonic() + 60
        while os.path.exists(folder) or os.listdir(trash):
            assert time.monotonic() < limit, f"step {gone} was not pruned"
            time.sleep(0.0005)


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that something takes, and its seconds of processor time."""
    start, before = time.perf_counter(), os.times()
    act()
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def compare(
    what: str, large: Callable[[], object], small: Callable[[], object], repetitions: int
) -> None:
    """Print, for time and for processor time, both medians and the median ratio."""
    pairs = [(timed(small), timed(large)) for _ in range(repetitions + 1)][1:]
    cells = []
    for clock in (0, 1):
        times = [(few[clock], many[clock]) for few, many in pairs]
        few, many = (1e3 * statistics.median(side) for side in zip(*times, strict=True))
        cells.append(f"{few:9.1f} ms{many:9.1f} ms{many / few:7.2f}x")
    print(f"{what:<18}{'  |'.join(cells)}", flush=True)


def command(*arguments: str) -> None:
    """Run one command, and discard what it prints."""
    subprocess.run(
        [sys.executable, "-m", "stepseal.cli", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def main() -> None:
    """Print a table: what, root of two steps, root of many steps, ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--root", default=None)
    options = parser.parse_args()
    place = tempfile.mkdtemp(prefix="stepseal-many-", dir=options.root)
    large, small = f"{place}/large", f"{place}/small"
    try:
        fill(large, options.steps)
        fill(small, SMALL)
        heads = f"{SMALL} steps", f"{options.steps} steps", "ratio"
        row = "{:>12}{:>12}{:>8}".format(*heads)
        print(f"{'':<18}{row}  |{row} (processor)")
        for verb in ("ls", "show"):
            compare(
                f"stepseal {verb}",
                functools.partial(command, verb, large),
                functools.partial(command, verb, small),
                min(options.repetitions, 5),
            )
        for prunes in (True, False):
            many = Job(large, options.steps, prunes=prunes)
            few = Job(small, SMALL, prunes=prunes)
            what = "save and prune" if prunes else "save"
            compare(what, many.save, few.save, options.repetitions)
            many.ckpt.close()
            few.ckpt.close()
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
