"""Real processes for the few tests that need them: gloo over a file store."""

from __future__ import annotations

import dataclasses
import pickle
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore
from torch.multiprocessing.spawn import spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components._types import CapturedComponent


def run_ranks(world_size: int, work: Callable[[int, Path], None], folder: Path) -> None:
    """Run `work(rank, folder)` in processes of its own; any failure fails the test."""
    spawn(_start, (world_size, work, str(folder)), nprocs=world_size)  # type: ignore[no-untyped-call]


def _start(rank: int, world_size: int, work: Callable[[int, Path], None], folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = FileStore(f"{folder}/store", world_size)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        work(rank, Path(folder))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def put(path: Path, capture: CapturedComponent) -> None:
    """Store a capture with its bytes copied."""
    tensors = tuple(dataclasses.replace(item, data=bytes(item.data)) for item in capture.tensors)  # type: ignore[arg-type]
    trees = tuple(
        dataclasses.replace(
            tree,
            arrays=tuple(
                dataclasses.replace(array, data=bytes(array.data))  # type: ignore[arg-type]
                for array in tree.arrays
            ),
        )
        for tree in capture.trees
    )
    path.write_bytes(pickle.dumps(dataclasses.replace(capture, tensors=tensors, trees=trees)))


def get(path: Path) -> Any:  # noqa: ANN401 - what was put
    """Return a capture that any rank stored."""
    return pickle.loads(path.read_bytes())
