"""Ranks under torchrun that train with DDP beside actors, and that nobody can call.

Arguments: root, folder for histories and for the file `end` with the number of the last step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stepseal as ss


def last_step(folder: Path) -> int:
    """Return the step after which all end, as rank 0 sees it; 0 while it is not known."""
    end = folder / "end"
    found = torch.tensor(int(end.read_text() or 0) if end.exists() else 0)
    dist.broadcast(found, 0)
    return int(found)


def main() -> None:
    root, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    )
    # DDP adds gradients up in another order after its first iteration: have that behind us.
    model(torch.zeros(4, 6)).sum().backward()
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    state = {"step": 0}
    with ss.Rank("trainer", rank=rank, size=size) as own:
        own.add("model", model, sharing=ss.REPLICATED)
        own.add("optimizer", optimizer, sharing=ss.REPLICATED)
        own.add("rng", ss.RNG(), sharing=ss.PER_RANK)
        own.add("state", state, sharing=ss.PER_RANK)
        own.wait_admitted(root)
        restored = own.wait_restored()
        with (folder / f"history.{rank}").open("w", buffering=1) as history:
            json.dump({"resumed": None if restored is None else state["step"]}, history)
            history.write("\n")
            while not 0 < last_step(folder) <= state["step"]:
                state["step"] += 1
                optimizer.zero_grad()
                loss = model(torch.randn(4, 6)).square().mean()
                loss.backward()
                optimizer.step()
                json.dump({"step": state["step"], "loss": loss.item()}, history)
                history.write("\n")
                own.step(state["step"])
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
