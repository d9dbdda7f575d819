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

__all__ = ["Mlp", "Parallel", "batch_of", "start", "train"]

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
    data_rank: int
    """Which data this rank trains on; ranks that hold parts of one replica share it."""
    reduce: Callable[[], None] | None = None
    """Combines gradients over ranks where the model does not do so by itself."""
    rng: Any = ss.PER_RANK
    """Which ranks have equal random streams: those that hold parts of one replica must."""


def seed_all(seed: int) -> None:
    """Begin every global stream: ranks that hold parts of one replica must agree in all of them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def batch_of(step: int, data_rank: int) -> torch.Tensor:
    """Return what one data parallel rank trains on at a step; shape (batch, width)."""
    generator = torch.Generator().manual_seed(1000 * step + data_rank)
    noise = torch.rand(BATCH, WIDTH)  # from the global stream, as augmentation would be
    return torch.rand(BATCH, WIDTH, generator=generator) + 0.1 * noise


def train(root: str, num_steps: int, parallel: Parallel) -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step."""
    model, losses = parallel.model, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    seed_all(parallel.data_rank)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model)
        ckpt.add("optimizer", optimizer)
        ckpt.add("rng", ss.RNG(), sharing=parallel.rng, on_world_change="fresh")
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            loss = model(batch_of(step, parallel.data_rank)).square().mean()
            loss.backward()
            if parallel.reduce is not None:
                parallel.reduce()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            ckpt.step(step)
    return losses


def start(build: Callable[[], Parallel]) -> None:
    """Train what a script builds: `torchrun --nproc-per-node 4 -m SCRIPT ROOT 10`."""
    dist.init_process_group("gloo")
    losses = train(sys.argv[1], int(sys.argv[2]), build())
    if dist.get_rank() == 0:
        print(*(f"{loss:.6f}" for loss in losses), sep="\n", flush=True)
    dist.destroy_process_group()
