"""Pipeline: each rank holds a stage of its own, so stages are PER_RANK; rank 0 reads the data.

Such a step fits the same number of ranks and the same split into stages. Keys of the whole model
with `ss.SHARDED` state do not have this limit; use PER_RANK where stages have no common names.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

import stepseal as ss
from examples.trainers.common import BATCH, WIDTH, Samples, network, optimizing, seed_all, start

__all__ = ["pass_through", "train"]


def train(root: str, num_steps: int) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step.

    Two ranks; the last one knows the loss, the first one returns 0 for each step.
    """
    rank, losses = dist.get_rank(), []
    stage, samples, counts = network()[rank], Samples(seed=0), {"samples": 0}
    optimizer, scheduler = optimizing(stage)
    seed_all(rank)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", stage, sharing=ss.PER_RANK)
        ckpt.add("optimizer", optimizer, sharing=ss.PER_RANK)
        ckpt.add("scheduler", scheduler, sharing=ss.REPLICATED)
        ckpt.add("trainer", counts, sharing=ss.REPLICATED)
        ckpt.add("dataset", samples, sharing=ss.GLOBAL)
        ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            batch = samples.read(BATCH) if rank == 0 else None
            losses.append(pass_through(stage, batch, peer=1 - rank))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            counts["samples"] += BATCH
            ckpt.step(step)
    return losses


def pass_through(stage: torch.nn.Module, batch: torch.Tensor | None, *, peer: int) -> float:
    """Take a batch forward and its gradient back through two stages; return the loss.

    Args:
        stage: the half of this rank.
        batch: what the first stage begins with; None on the last stage.
        peer: rank of the other stage.
    """
    if batch is not None:
        sent = stage(batch)
        dist.send(sent.detach(), peer)
        gradient = torch.empty_like(sent)
        dist.recv(gradient, peer)
        sent.backward(gradient)
        return 0.0
    received = torch.empty(BATCH, WIDTH)
    dist.recv(received, peer)
    loss = stage(received.requires_grad_()).square().mean()
    loss.backward()
    assert received.grad is not None, "it was part of the loss"
    dist.send(received.grad, peer)
    return float(loss)


if __name__ == "__main__":
    start(train)
