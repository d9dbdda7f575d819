"""What the scripts share: a small network, its data, the loop, and how a script starts."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BATCH", "WIDTH", "Mlp", "Parallel", "batch_of", "optimizer_of", "start", "train"]

WIDTH, HIDDEN, BATCH = 8, 24, 4


class Mlp(nn.Module):
    """Two layers and a norm; every dim divides by 1, 2, 3 and 4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # the same weights on all ranks
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, width) to (batch, width)."""
        result: torch.Tensor = self.down(torch.relu(self.up(self.norm(x))))
        return result


@dataclass(frozen=True)
class Parallel:
    """A model that is spread over ranks."""

    model: nn.Module
    data_rank: int = 0
    """Which data this rank trains on; ranks that hold parts of one replica share it."""
    num_data_ranks: int = 1
    """How many replicas there are."""
    sharing: Any = None
    """What the ranks hold of model and optimizer; None where stepseal finds it out."""
    loss: Callable[[torch.Tensor], float] | None = None
    """Runs a batch forward and backward where the model does not do so by itself."""
    reduce: Callable[[], None] | None = None
    """Combines gradients over ranks where the model does not do so by itself."""
    rng: Any = ss.PER_RANK
    """Which ranks have equal random streams: those that hold parts of one replica must."""


def seed_all(seed: int) -> None:
    """Begin every global stream: ranks that hold parts of one replica must agree in all of them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch_of(first: int) -> torch.Tensor:
    """Return the samples from a position on; shape (batch, width)."""
    generator = torch.Generator().manual_seed(first)
    noise = torch.rand(BATCH, WIDTH)  # from the global stream, as augmentation would be
    return torch.rand(BATCH, WIDTH, generator=generator) + 0.1 * noise


def loss_of(model: nn.Module, batch: torch.Tensor) -> float:
    """Run a batch forward and backward."""
    loss = model(batch).square().mean()
    loss.backward()
    return float(loss.item())


def optimizer_of(parallel: Parallel) -> torch.optim.Optimizer:
    """Return a new optimizer; a group may be empty, where a rank holds no parameters."""
    return torch.optim.AdamW([{"params": list(parallel.model.parameters())}], lr=0.01)


def train(
    root: str, num_steps: int, parallel: Parallel, optimizer: torch.optim.Optimizer | None = None
) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step."""
    model, losses, data = parallel.model, [], {"sample": 0}
    optimizer = optimizer or optimizer_of(parallel)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    seed_all(parallel.data_rank)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model, sharing=parallel.sharing)
        ckpt.add("optimizer", optimizer, sharing=parallel.sharing)
        ckpt.add("lr_scheduler", scheduler)
        ckpt.add("data", data, sharing=ss.GLOBAL)
        ckpt.add("rng", ss.RNG(), sharing=parallel.rng, on_world_change="fresh")
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            batch = batch_of(data["sample"] + BATCH * parallel.data_rank)
            losses.append(parallel.loss(batch) if parallel.loss else loss_of(model, batch))
            if parallel.reduce is not None:
                parallel.reduce()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            data["sample"] += BATCH * parallel.num_data_ranks  # one position for the whole job
            ckpt.step(step)
    return losses


def start(build: Callable[[], Parallel]) -> None:
    """Train what a script builds: `torchrun --nproc-per-node 4 -m SCRIPT ROOT 10`."""
    dist.init_process_group("gloo")
    losses = train(sys.argv[1], int(sys.argv[2]), build())
    if dist.get_rank() == 0:
        print(*(f"{loss:.6f}" for loss in losses), sep="\n", flush=True)
    dist.destroy_process_group()
