"""A toy job that uses everything a resume can forget: dropout, AdamW, a cosine schedule, a shuffled
data position, and the three random streams."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Collection

_NUM_BATCHES = 6


class Loader:
    """Batches in an order that is shuffled anew in every epoch, with the global stream."""

    def __init__(self, rank: int) -> None:
        generator = torch.Generator().manual_seed(100 + rank)
        self._batches = torch.rand(_NUM_BATCHES, 4, 5, generator=generator)
        self._order: list[int] = []
        self._position = 0

    def next_batch(self) -> torch.Tensor:
        if self._position >= len(self._order):
            self._order = random.sample(range(_NUM_BATCHES), _NUM_BATCHES)
            self._position = 0
        self._position += 1
        return self._batches[self._order[self._position - 1]]

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self._order), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._position = state["order"], state["position"]


class Job:
    """One life of the job; `forget` names components that it fails to add."""

    def __init__(
        self, forget: Collection[str] = (), *, rank: int = 0, sharded: bool = False
    ) -> None:
        torch.manual_seed(7)
        self.model: nn.Module = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.3), nn.Linear(7, 3))
        if sharded:
            fully_shard(self.model[0])
            fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=20)
        self.loader = Loader(rank)
        self._forget = forget
        torch.manual_seed(11 + rank)
        random.seed(12 + rank)
        np.random.seed(13 + rank)

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        parts: dict[str, tuple[object, ss.Sharing | None]] = {
            "model": (self.model, None),
            "optimizer": (self.optimizer, None),
            "lr_scheduler": (self.scheduler, None),
            "loader": (self.loader, ss.PER_RANK),
            "rng": (ss.RNG(), None),
        }
        for name, (part, sharing) in parts.items():
            if name not in self._forget:
                checkpointer.add(name, part, sharing=sharing)

    def train(self, step: int) -> float:
        noise = torch.from_numpy(np.random.standard_normal(5).astype(np.float32))
        batch = self.loader.next_batch() + 0.1 * noise + random.random()
        self.optimizer.zero_grad()
        loss: torch.Tensor = self.model(batch).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        return loss.item()

    def state(self) -> dict[str, Any]:
        state = [dict(self.optimizer.state[p]) for p in self.model.parameters()]
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": {"state": state, "groups": groups},
            "lr_scheduler": self.scheduler.state_dict(),
            "loader": self.loader.state_dict(),
        }


def make_job(*forget: str) -> Job:
    return Job(forget)


def make_sharded_job(*forget: str) -> Job:
    return Job(forget, rank=dist.get_rank(), sharded=True)
