"""A training job of two ranks on each of two hosts; the link between them goes down in a save.

Each host keeps a cache, which scales the data of its ranks: one payload per node.

Arguments: root, folder for its histories, name of this life, step in whose save each rank waits
until the link is down (0 for none).
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal import errors

NUM_STEPS = 7
DEADLINES = ss.Deadlines(
    connect_s=60, capture_s=120, write_s=120, commit_s=120, check_s=120, apply_s=120, close_s=5,
    heartbeat_s=0.5, lost_s=4,
)  # fmt: skip
"""Only the silence of a host that was cut off ends anything here."""


class Gate:
    """A component whose state is taken once the link is down."""

    def __init__(self, here: Path, is_down: Path) -> None:
        self.here, self.is_down = here, is_down
        self.armed = False
        self.opened_at = 0.0

    def state_dict(self) -> dict[str, int]:
        if self.armed:
            self.here.touch()
            while not self.is_down.exists():
                time.sleep(0.01)
            self.opened_at = time.monotonic()
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {}


class Cache:
    """What the ranks of a host keep together; every step changes it, on each host otherwise."""

    def __init__(self, host: int) -> None:
        self._stream = torch.Generator().manual_seed(100 + host)
        self.scales = torch.rand(6, generator=self._stream)

    def turn(self) -> torch.Tensor:
        self.scales = 0.5 * self.scales + torch.rand(6, generator=self._stream)
        return self.scales

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"scales": self.scales, "stream": self._stream.get_state()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.scales = state["scales"]
        self._stream.set_state(state["stream"])


def main() -> None:
    root, folder, life, bad_step = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    fully_shard(model)
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    host = rank // 2
    # A life that resumes begins with another cache: only the saved one can be right.
    cache = Cache(host + 10 * (life == "resumed"))
    gate = Gate(folder / f"waits.{rank}", folder / "down")
    ckpt = ss.Checkpointer(
        root, save=ss.every(steps=2), mode="sync", deadlines=DEADLINES, node=host
    )
    ckpt.add("model", model)
    ckpt.add("optimizer", optimizer)
    ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK)
    ckpt.add("cache", cache, sharing=ss.PER_NODE)
    ckpt.add("gate", gate, sharing=ss.PER_RANK)
    with (folder / f"history.{life}.{rank}").open("w", buffering=1) as history:
        resumed = ckpt.restore()
        start = 0 if resumed is None else resumed.step
        print(json.dumps({"resumed": start}), file=history)
        for step in ckpt.steps(NUM_STEPS):
            loss = train(model, optimizer, cache.turn())
            print(
                json.dumps({f"step {step}": loss, f"cache {step}": cache.scales.tolist()}),
                file=history,
            )
            gate.armed = step == bad_step
            try:
                ckpt.step(step)
            except errors.CheckpointError as error:
                facts = told(error, time.monotonic() - gate.opened_at)
                print(json.dumps(facts), file=history)
                (folder / f"told.{rank}").touch()
                time.sleep(600)  # the test kills this rank
        weights = [p.detach().flatten() for p in local(model)]
        print(json.dumps({"weights": torch.cat(weights).tolist()}), file=history)
    ckpt.close()
    dist.barrier()
    os._exit(0)


def told(error: errors.CheckpointError, after_s: float) -> dict[str, Any]:
    return {"kind": error.kind, "text": str(error), "failures": error.failures, "after_s": after_s}


def local(model: nn.Module) -> list[torch.Tensor]:
    return [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, scales: torch.Tensor) -> float:
    """Train one step on data that the RNG gives and the host scales."""
    features = scales * torch.randn(4, 6)
    loss = (model(features) - features[:, :2]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


if __name__ == "__main__":
    main()
