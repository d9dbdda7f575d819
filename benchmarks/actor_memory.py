"""Memory and start of a participant that owns only trees, with and without torch in its process.

Each process saves a small tree once, beside the coordinator in this process. Order is random.

    python benchmarks/actor_memory.py --repetitions 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection

import stepseal as ss

KINDS = ("bare", "trees", "trees and torch")
"""`bare` is Python with NumPy, and nothing of stepseal."""


def member(descriptor: int, kind: str) -> None:
    """Be one process: import, serve until the pipe is closed, and print what it took."""
    start = time.perf_counter()
    import numpy as np

    own: ss.Participant | None = None
    if kind == "trees and torch":
        import torch  # noqa: F401
    if kind != "bare":
        own = ss.Participant("buffer")
        own.add("buffer", {"samples": list(range(1000)), "rewards": np.zeros(1000)})
    seconds = time.perf_counter() - start
    with Connection(descriptor) as pipe:
        if own is None:
            pipe.close()
        else:
            while ss.serve(own, pipe, timeout_s=0.05):
                pass
            own.close()
    with open("/proc/self/status", encoding="utf-8") as lines:
        (rss,) = (line for line in lines if line.startswith("VmRSS"))
    print(json.dumps({"seconds": seconds, "mb": int(rss.split()[1]) * 1024 / 1e6}))


def measure(kind: str) -> dict[str, float]:
    """Return what one process of a kind took."""
    ours, theirs = multiprocessing.Pipe()
    root = tempfile.mkdtemp(prefix="stepseal-bench-")
    process = subprocess.Popen(
        [sys.executable, __file__, "--member", str(theirs.fileno()), kind],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    )
    theirs.close()

    async def life() -> None:
        async with ss.Coordinator(root) as coord:
            await coord.admit(*ss.processes("buffer", [ours]))
            await coord.save(1)

    try:
        if kind != "bare":
            asyncio.run(life())
        ours.close()
        out, _ = process.communicate(timeout=60)
        found: dict[str, float] = json.loads(out)
        return found
    finally:
        process.kill()
        shutil.rmtree(root)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--member", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.member:
        member(int(arguments.member[0]), arguments.member[1])
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.repetitions):
        for kind in random.sample(KINDS, len(KINDS)):
            found[kind].append(measure(kind))
    for kind, runs in found.items():
        megabytes, seconds = ([run[what] for run in runs] for what in ("mb", "seconds"))
        print(
            f"{kind:>16}: {statistics.median(megabytes):6.1f} MB "
            f"({min(megabytes):.1f}-{max(megabytes):.1f}), start "
            f"{statistics.median(seconds):.2f} s ({min(seconds):.2f}-{max(seconds):.2f})"
        )


if __name__ == "__main__":
    main()
