"""A training job for torchrun; rank 1 of its first life kills itself in the middle of a save.

Arguments: root, folder for its histories, step whose save is interrupted (0 for none).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss

NUM_STEPS = 9


class Bomb:
    """A component that ends its process when its state is taken at one step."""

    def __init__(self) -> None:
        self.armed = False

    def state_dict(self) -> dict[str, int]:
        if self.armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {}


def main() -> None:
    root, folder, bad_step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, life = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    fully_shard(model)
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    bomb = Bomb()
    deadlines = ss.Deadlines(
        connect_s=60, capture_s=10, write_s=10, commit_s=10, close_s=2, heartbeat_s=0.5, lost_s=5
    )
    ckpt = ss.Checkpointer(root, save=ss.every(steps=2), deadlines=deadlines)
    ckpt.add("model", model)
    ckpt.add("optimizer", optimizer)
    ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
    ckpt.add("bomb", bomb, sharing=ss.PER_RANK)
    history = (folder / f"history.{life}.{rank}").open("w", buffering=1)
    with ckpt:
        resumed = ckpt.restore()
        start = 0 if resumed is None else resumed.step
        print(json.dumps({"resumed": start}), file=history)
        for step in range(start + 1, NUM_STEPS + 1):
            loss = train(model, optimizer)
            print(json.dumps({"step": step, "loss": loss}), file=history)
            bomb.armed = life == 0 and rank == 1 and step == bad_step
            ckpt.step(step)
    digest = [parameter.detach() for parameter in model.parameters()]
    weights = [p.to_local().flatten() if isinstance(p, DTensor) else p.flatten() for p in digest]
    print(json.dumps({"weights": torch.cat(weights).tolist()}), file=history)
    dist.destroy_process_group()


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Train one step on data that the RNG gives."""
    features = torch.randn(4, 6)
    loss = (model(features) - features[:, :2]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


if __name__ == "__main__":
    main()
