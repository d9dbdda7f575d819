"""What each level of validation costs a job of two ranks: the stall of a save, and the whole save.

Each rank holds the same tensors. All levels are timed in one run, in random order, each with a
checkpointer of its own, and ratios are taken repetition by repetition.

    python benchmarks/validation.py --megabytes 256 --repetitions 5 --root <folder on the disk>
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

import stepseal as ss
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from stepseal.components import Validation

LEVELS: tuple[Validation, ...] = ("none", "quick", "tensor", "full")
NUM_TENSORS = 64


def measure(rank: int, root: str, megabytes: int, repetitions: int) -> dict[str, list[float]]:
    """Return the stall and the whole time of the saves of each level; the first is not counted."""
    size = megabytes * (1 << 20) // 4 // NUM_TENSORS
    state = {f"layer.{number}": torch.rand(size) for number in range(NUM_TENSORS)}
    for tensor in state.values():
        dist.broadcast(tensor, 0)
    found: dict[str, list[float]] = {
        f"{lvl} {what}": [] for lvl in LEVELS for what in ("stall", "save")
    }
    found["memcpy"] = []
    copy = torch.empty(size * NUM_TENSORS)
    jobs = {level: ss.Checkpointer(f"{root}/{level}", keep=ss.latest(1)) for level in LEVELS}
    for level, ckpt in jobs.items():
        ckpt.add("model", state, kind="tensors", validate=level)
    draw = random.Random(0)
    for step in range(1, repetitions + 2):
        for level in draw.sample(LEVELS, len(LEVELS)):
            dist.barrier()
            start = time.perf_counter()
            pending = jobs[level].save(step)
            found[f"{level} stall"].append(time.perf_counter() - start)
            pending.wait()
            found[f"{level} save"].append(time.perf_counter() - start)
        dist.barrier()
        start = time.perf_counter()
        torch.cat(list(state.values()), out=copy)
        found["memcpy"].append(time.perf_counter() - start)
    for ckpt in jobs.values():
        ckpt.close()
    return {name: times[1:] for name, times in found.items()}


def main() -> None:
    """Print the medians of the slower rank, and the ratio of each level to `none`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--root", default=None)
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="stepseal-bench-", dir=options.root)
    ranks = run_ranks(2, measure, root, options.megabytes, options.repetitions, timeout_s=1800.0)
    slower = {
        name: [max(pair) for pair in zip(*(rank[name] for rank in ranks), strict=True)]
        for name in ranks[0]
    }
    for name, times in slower.items():
        base = slower[f"none {name.split()[-1]}"] if " " in name else slower["none stall"]
        ratios = [one / other for one, other in zip(times, base, strict=True)]
        print(
            f"{name:<14}{statistics.median(times) * 1e3:10.0f} ms"
            f"{statistics.median(ratios):8.2f} x none  ({min(ratios):.2f}-{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
