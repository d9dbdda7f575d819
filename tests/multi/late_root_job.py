"""One of two ranks; rank 1 sees the root only after it has looked for it three times.

    python late_root_job.py SHARED REAL [never]

SHARED is where the ranks expect shared storage, an empty file system of its own for rank 1. REAL is
what rank 1 mounts there, unless it does so `never`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist

import stepseal as ss
from stepseal.session import _late_root
from stepseal.steps import open_store


def mount_after_three_looks(shared: str, real: str) -> None:
    """Let the volume appear late, as a volume that is attached late does."""
    looks: list[str] = []

    def look(root: str, **settings: Any) -> Any:  # noqa: ANN401 - as the real one
        looks.append(root)
        if len(looks) == 4:
            subprocess.run(["mount", "--bind", real, shared], check=True)
        return open_store(root, **settings)

    _late_root.open_store = look  # type: ignore[assignment, attr-defined]


def main(shared: str, real: str, *never: str) -> None:
    """Save one step, or say why there is no job."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 1 and not never:
        mount_after_three_looks(shared, real)
    limits = ss.Deadlines(connect_s=3.0 if never else 60.0)
    try:
        with ss.Checkpointer(f"{shared}/run", deadlines=limits) as checkpointer:
            checkpointer.add("state", {"w": torch.zeros(2)})
            checkpointer.restore()
            checkpointer.save(1).wait()
        print("saved", flush=True)
    except ss.errors.CheckpointError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.umask(0o077)
    main(*sys.argv[1:])
