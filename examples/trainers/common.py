"""What the trainers share: a network in two halves, a stream of samples, and the start."""

from __future__ import annotations

import random
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BATCH",
    "WIDTH",
    "Samples",
    "Scheduler",
    "network",
    "optimizing",
    "scattered",
    "seed_all",
    "start",
]

WIDTH, BATCH = 8, 4
Scheduler = torch.optim.lr_scheduler.StepLR


class Samples:
    """A stream of samples that knows how many were read; each seed is a stream of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.num_read = 0

    def read(self, count: int) -> torch.Tensor:
        """Return the next samples; shape (count, width)."""
        generator = torch.Generator().manual_seed(10_000 * self._seed + self.num_read)
        self.num_read += count
        return torch.rand(count, WIDTH, generator=generator)

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"num_read": self.num_read}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a saved position."""
        self.num_read = state["num_read"]


def scattered(samples: Samples) -> torch.Tensor:
    """Return this rank's part of what rank 0 reads; the position of other ranks stays."""
    mine, num_ranks = torch.empty(BATCH, WIDTH), dist.get_world_size()
    parts = None
    if dist.get_rank() == 0:
        parts = list(samples.read(BATCH * num_ranks).chunk(num_ranks))
    dist.scatter(mine, parts)
    return mine


def network() -> list[nn.Sequential]:
    """Return two halves, with the same weights on all ranks; dropout draws from global streams."""
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
    ]


def optimizing(model: nn.Module) -> tuple[torch.optim.Optimizer, Scheduler]:
    """Return an optimizer, and a schedule that changes its learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    return optimizer, Scheduler(optimizer, step_size=3, gamma=0.5)


def seed_all(seed: int) -> None:
    """Begin every global stream."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def start(train: Callable[[str, int], list[float]]) -> None:
    """Run a trainer: `torchrun --nproc-per-node 4 -m SCRIPT ROOT 10`."""
    dist.init_process_group("gloo")
    losses = train(sys.argv[1], int(sys.argv[2]))
    if dist.get_rank() == 0:
        print(*(f"{loss:.6f}" for loss in losses), sep="\n", flush=True)
    dist.destroy_process_group()
