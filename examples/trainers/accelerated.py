"""Accelerate: what `prepare` returns is added as it is; needs `pip install accelerate torchdata`.

The loader must know its position and draw its order from a seed: `use_stateful_dataloader` and
`use_seedable_sampler`. It is GLOBAL where rank 0 dispatches the batches, else PER_RANK: the
default. With mixed precision, also add `accelerator.scaler`.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stepseal as ss
from examples.trainers.common import BATCH, WIDTH, network, optimizing, seed_all, start

__all__ = ["train"]


def train(root: str, num_steps: int, *, dispatches: bool = False) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step.

    Args:
        root: where the steps are.
        num_steps: number of the last step.
        dispatches: whether rank 0 reads the data of all ranks, and sends each its part.
    """
    theirs = importlib.import_module("accelerate")  # optional: this project does without
    options = theirs.utils.DataLoaderConfiguration(
        use_stateful_dataloader=True, use_seedable_sampler=True, dispatch_batches=dispatches
    )
    accelerator = theirs.Accelerator(cpu=True, dataloader_config=options)
    torch.manual_seed(0)  # of the order of the samples, too
    samples = TensorDataset(torch.rand(40, WIDTH))
    model = nn.Sequential(*network())
    optimizer, scheduler = optimizing(model)
    loader: Any = DataLoader(samples, batch_size=BATCH, shuffle=True)
    prepared = accelerator.prepare(model, optimizer, scheduler, loader)
    model, optimizer, scheduler, loader = prepared
    seed_all(accelerator.process_index)
    losses: list[float] = []
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model, sharing=ss.REPLICATED)
        ckpt.add("optimizer", optimizer, sharing=ss.REPLICATED)
        ckpt.add("scheduler", scheduler, sharing=ss.REPLICATED)
        ckpt.add("dataset", loader)
        ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
        resumed = ckpt.restore()
        step = resumed.step if resumed else 0
        while step < num_steps:
            for (batch,) in ckpt.batches(loader):
                step += 1
                loss = model(batch).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                ckpt.step(step)
                if step == num_steps:
                    break
    return losses


if __name__ == "__main__":
    start(train)
