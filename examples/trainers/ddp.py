"""DDP: one of the equal copies is stored; the data is read by rank 0 for all, or by each rank.

Which of the two is a setting of the job, so the sharing of the data is a function: each save
records what it returned, and a restore goes by the record. A job may change the setting when it
resumes: its next save records the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stepseal as ss
from examples.trainers.common import BATCH, Samples, network, optimizing, scattered, seed_all, start

if TYPE_CHECKING:
    from stepseal.components import DeclaredSharing

__all__ = ["train"]


def train(
    root: str,
    num_steps: int,
    *,
    dispatches: bool = True,
    data_sharing: DeclaredSharing | None = None,
) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step.

    Args:
        root: where the steps are.
        num_steps: number of the last step.
        dispatches: whether rank 0 reads the data of all ranks, and sends each its part.
        data_sharing: sharing of the data; None lets `dispatches` decide.
    """
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    model, losses = DistributedDataParallel(nn.Sequential(*network())), []
    optimizer, scheduler = optimizing(model)
    samples, counts = Samples(seed=0 if dispatches else 1 + rank), {"samples": 0}

    def sharing() -> ss.Sharing:
        return ss.GLOBAL if dispatches else ss.PER_RANK

    seed_all(rank)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model, sharing=ss.REPLICATED)
        ckpt.add("optimizer", optimizer, sharing=ss.REPLICATED)
        ckpt.add("scheduler", scheduler, sharing=ss.REPLICATED)
        ckpt.add("trainer", counts, sharing=ss.REPLICATED)
        ckpt.add("dataset", samples, sharing=data_sharing or sharing)
        ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            # a rank that reads for itself reads at a pace of its own
            batch = scattered(samples) if dispatches else samples.read(BATCH + rank)
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            counts["samples"] += BATCH * num_ranks
            losses.append(loss.item())
            ckpt.step(step)
    return losses


if __name__ == "__main__":
    start(train)
