"""An engine with a checkpointer of its own, as a component of each step.

    torchrun --nproc-per-node 2 -m examples.external_engine runs/engine 6
    torchrun --nproc-per-node 2 -m examples.external_engine runs/engine 9   # goes on after step 6

The files of `dcp.save`, the random streams and the position in the data are one step.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.fsdp import fully_shard

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Engine", "train"]


class Engine:
    """Owns model and optimizer, and knows only folders."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Linear(9, 1))
        fully_shard(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)

    def step(self, batch: torch.Tensor) -> float:
        """Train on one batch."""
        loss: torch.Tensor = self.model(batch).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def save_checkpoint(self, folder: str) -> None:
        """Write the shards of all ranks below a folder; a collective."""
        dcp_save(self._state(), checkpoint_id=folder)

    def load_checkpoint(self, folder: str) -> None:
        """Read them back; a collective."""
        dcp_load(state := self._state(), checkpoint_id=folder)
        loaded = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
        set_state_dict(self.model, self.optimizer, **loaded)

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}


def train(root: str, num_steps: int, tell: Callable[[int, float], None]) -> None:
    """Train until `num_steps`, from the newest step on."""
    engine, position = Engine(), {"sample": 0}
    torch.manual_seed(dist.get_rank())
    with ss.Checkpointer(root, save=ss.every(steps=3)) as ckpt:
        save, load = engine.save_checkpoint, engine.load_checkpoint
        ckpt.add("engine", ss.External(save=save, load=load, any_world=True))  # dcp reshards
        ckpt.add("position", position, sharing=ss.GLOBAL)
        ckpt.add("rng", ss.RNG(), on_world_change="fresh")
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            tell(step, engine.step(torch.rand(4, 6)))
            position["sample"] += 4
            ckpt.step(step)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train(sys.argv[1], int(sys.argv[2]), lambda step, loss: print(f"step {step}: {loss:.6f}"))
    dist.destroy_process_group()
