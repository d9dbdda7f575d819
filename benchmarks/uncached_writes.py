"""Durable saves with and without `RWF_DONTCACHE`, alternating in one run.

    python benchmarks/uncached_writes.py --gigabytes 2 --repetitions 5 --root <folder on the disk>

Both save the same state with `mode="sync"`; ratios are taken repetition by repetition. Where the
kernel or the file system lacks the flag, both do the same.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

import stepseal as ss
from stepseal.storage import Syscalls

if TYPE_CHECKING:
    from typing_extensions import Buffer


def refuse(_calls: Syscalls, _fd: int, _data: Buffer, _offset: int) -> int:
    """Answer as a kernel before 6.14."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def save(root: Path, state: dict[str, torch.Tensor], *, uncached: bool) -> float:
    """Return the seconds of one durable save into a new root."""
    with ss.Checkpointer(root, mode="sync") as checkpointer:
        checkpointer.add("model", state)
        answer = Syscalls.pwrite_uncached if uncached else refuse
        with mock.patch.object(Syscalls, "pwrite_uncached", answer):
            started = time.perf_counter()
            checkpointer.save(1)
            seconds = time.perf_counter() - started
    shutil.rmtree(root)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--root", type=Path, help="folder on the disk to measure")
    options = parser.parse_args()
    number = max(1, round(options.gigabytes * 1e9 / 25.6e6))
    state = {f"tensor.{index}": torch.randn(6_400_000) for index in range(number)}
    rows: dict[str, list[float]] = {"cached": [], "uncached": []}
    with tempfile.TemporaryDirectory(dir=options.root, prefix="stepseal-bench-") as folder:
        for repetition in range(options.repetitions + 1):
            for name in sorted(rows, reverse=bool(repetition % 2)):
                seconds = save(Path(folder) / name, state, uncached=name == "uncached")
                if repetition:  # the first round warms memory, and is not counted
                    rows[name].append(seconds)
    ratios = sorted(a / b for a, b in zip(rows["cached"], rows["uncached"], strict=True))
    for name, all_s in rows.items():
        low, high = min(all_s), max(all_s)
        print(f"{name:10} {statistics.median(all_s):7.3f} s  {low:.3f}-{high:.3f}")
    print(f"ratio      {statistics.median(ratios):7.2f} x  {ratios[0]:.2f}-{ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
