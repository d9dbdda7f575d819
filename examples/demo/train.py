r"""The training job, as you would write it: a GPT under FSDP2, and a few lines of stepseal.

    torchrun --standalone --nproc-per-node 2 \
        -m examples.demo.train --root runs/mine --history mine.jsonl

Start it again with the same root, and it goes on from the newest committed step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import stepseal as ss
from examples.demo.data import ByteLoader, read_library
from examples.demo.model import GPT
from examples.demo.settings import SIZES, Settings

if TYPE_CHECKING:
    from typing_extensions import Self


def main() -> None:
    """Train to the last step, from wherever the root stands."""
    arguments = parse_arguments()
    settings = SIZES[arguments.size]
    dist.init_process_group("gloo")
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    torch.use_deterministic_algorithms(True)

    seed_everything(settings.seed)  # the same weights on all ranks ...
    model = shard(GPT(settings.model), num_ranks)
    seed_everything(settings.seed + 1 + rank)  # ... but not the same dropout
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    scheduler = cosine_with_warmup(optimizer, settings)
    loader = ByteLoader(
        read_library(),
        settings.model.context,
        settings.batch,
        rank=rank,
        num_ranks=num_ranks,
        seed=settings.seed,
    )
    counters: dict[str, Any] = {"tokens": 0, "losses": []}

    ckpt = ss.Checkpointer(arguments.root, save=ss.every(steps=settings.save_every), mode="async")
    ckpt.add("model", model)
    ckpt.add("optimizer", optimizer)
    ckpt.add("lr_scheduler", scheduler)
    ckpt.add("dataloader", loader, sharing=ss.PER_RANK)
    ckpt.add("counters", counters, sharing=ss.REPLICATED)
    ckpt.add("rng", ss.RNG())

    with Log(arguments.history if rank == 0 else None) as log, ckpt:
        started = time.perf_counter()
        resumed = ckpt.restore()
        log.write(pid=os.getpid(), **facts_of(resumed, time.perf_counter() - started))
        for step in ckpt.steps(settings.num_steps):
            started = time.perf_counter()
            loss = train_step(model, optimizer, scheduler, loader.next_batch())
            counters["tokens"] += settings.batch * settings.model.context * num_ranks
            counters["losses"].append(loss)
            trained = time.perf_counter()
            saving = ckpt.step(step, metrics={"loss": loss})
            blocked_s = time.perf_counter() - trained if saving else None
            log.write(step=step, loss=loss, step_s=trained - started, blocked_s=blocked_s)
    dist.destroy_process_group()


def train_step(
    model: GPT, optimizer: torch.optim.Optimizer, scheduler: SequentialLR, batch: torch.Tensor
) -> float:
    """Make one step; return the mean loss of all ranks."""
    loss = model(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    mean = loss.detach()
    dist.all_reduce(mean)
    return float(mean) / dist.get_world_size()


def seed_everything(seed: int) -> None:
    """Seed every global stream of this process."""
    random.seed(seed)
    torch.manual_seed(seed)
    with contextlib.suppress(ImportError):  # torch works without NumPy
        import numpy as np

        np.random.seed(seed)


def shard(model: GPT, num_ranks: int) -> GPT:
    """Split every parameter over the ranks."""
    mesh = init_device_mesh("cpu", (num_ranks,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def cosine_with_warmup(optimizer: torch.optim.Optimizer, settings: Settings) -> SequentialLR:
    """Return the schedule: linear up, then half a cosine down."""
    warmup = settings.warmup_steps
    up = LinearLR(optimizer, start_factor=0.1, total_iters=warmup)
    down = CosineAnnealingLR(optimizer, T_max=settings.num_steps - warmup)
    return SequentialLR(optimizer, [up, down], milestones=[warmup])


def facts_of(resumed: ss.Restored | None, restore_s: float) -> dict[str, Any]:
    """Return what the log says about the start."""
    if resumed is None:
        return {"resumed": None, "skipped": {}, "restore_s": restore_s}
    skipped = dict(resumed.skipped)
    return {"resumed": resumed.step, "skipped": skipped, "restore_s": restore_s}


class Log:
    """Writes one JSON line per event, at once; a float comes back as the same float."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("w", buffering=1)

    def write(self, **facts: object) -> None:
        """Append one line."""
        if self._file is not None:
            self._file.write(json.dumps(facts) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, required=True, help="where the steps are saved")
    parser.add_argument("--history", type=Path, required=True, help="JSON lines, written by rank 0")
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    return parser.parse_args()


if __name__ == "__main__":
    main()
