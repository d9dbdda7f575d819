"""One rank under torchrun that is stopped after its first save, alone or with all others.

python -m torch.distributed.run ... stopped_job.py ROOT FOLDER [hold RANK...] [naive]
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import stepseal as ss
from stepseal.process import OwnTime
from stepseal.protocol import _socket_hub, _socket_link

LIMITS = ss.Deadlines(lost_s=4.0, heartbeat_s=1.0, capture_s=60.0, close_s=5.0)
STOPPED_S = 9
"""Above what counts as lost."""


def hold_gil(seconds: int) -> None:
    """Sleep in a C call that keeps the GIL: no thread of this process runs meanwhile."""
    ctypes.PyDLL(None).sleep(seconds)


def count_all(_: float) -> OwnTime:
    """Return a clock that goes on while this process is stopped."""
    return OwnTime(float("inf"))


def main(root: str, folder: Path, options: list[str]) -> None:
    """Save, be stopped or hold the GIL, and save twice more; write what came of it."""
    if "naive" in options:
        for module in (_socket_hub, _socket_link):
            setattr(module, "OwnTime", count_all)  # noqa: B010 - a name that it imports
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    ckpt = ss.Checkpointer(root, deadlines=LIMITS)
    ckpt.add("weights", {"w": torch.zeros(8)})
    ckpt.restore()
    ckpt.save(1).wait()
    dist.barrier()  # each has heard of it
    (folder / f"pid.{rank}.new").write_text(str(os.getpid()))
    os.rename(folder / f"pid.{rank}.new", folder / f"pid.{rank}")
    if str(rank) in options:
        hold_gil(STOPPED_S)
    while not (folder / "go").exists():
        time.sleep(0.05)
    outcomes = []
    for step in (2, 3):
        try:
            ckpt.save(step).wait()
            outcomes.append("saved")
        except ss.errors.CheckpointError as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    (folder / f"out.{rank}").write_text(json.dumps(outcomes))
    os._exit(0)  # without the goodbye that nobody may be there to hear


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
