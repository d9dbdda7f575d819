"""How long a replay buffer blocks an asynchronous save, beside two copies that people make by hand.

The buffer is a list of transitions: dicts of small tensors, arrays and floats. All are timed in one
run, in random order, and ratios are taken repetition by repetition.

    python benchmarks/big_tree.py --transitions 50000 --repetitions 5
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import random
import shutil
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable


def transitions(number: int) -> list[dict[str, Any]]:
    """Return a buffer of transitions that are alike: 2 tensors, an array, a float and a bool."""
    return [
        {
            "obs": torch.rand(8),
            "next_obs": torch.rand(8),
            "action": np.random.rand(2).astype(np.float32),
            "reward": random.random(),
            "done": index % 200 == 199,
        }
        for index in range(number)
    ]


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(number: int, repetitions: int) -> dict[str, list[float]]:
    """Time each way; the first round warms up and is not counted."""
    buffer, root = transitions(number), tempfile.mkdtemp(prefix="stepseal-bench-")
    found: dict[str, list[float]] = {"stall": [], "whole save": [], "deepcopy": [], "pickle": []}
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("replay", buffer)
        for step in range(repetitions + 1):
            for way in random.sample(["save", "deepcopy", "pickle"], 3):
                if way == "save":
                    gc.collect()
                    start = time.perf_counter()
                    pending = ckpt.save(step)
                    found["stall"].append(time.perf_counter() - start)
                    pending.wait()
                    found["whole save"].append(time.perf_counter() - start)
                elif way == "deepcopy":
                    found[way].append(seconds(lambda: copy.deepcopy(buffer)))
                else:
                    found[way].append(seconds(lambda: torch.save(buffer, io.BytesIO())))
    shutil.rmtree(root)
    return {way: times[1:] for way, times in found.items()}


def main() -> None:
    """Print medians, and the ratio of each copy by hand to the stall."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=50_000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    found = measure(options.transitions, options.repetitions)
    for way, times in found.items():
        ratios = [one / stall for one, stall in zip(times, found["stall"], strict=True)]
        print(
            f"{way:<12}{statistics.median(times) * 1e3:10.0f} ms"
            f"{statistics.median(ratios):10.2f} x stall  ({min(ratios):.2f}-{max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
