"""Data and tensor parallelism with plain tensors: a shard is equal along `dp`, not along `tp`.

With DTensors nothing is declared, and the step fits any mesh (`examples/parallel/dp_tp.py`). This
is for layers that cut their weights themselves. Ranks along `tp` train on the same data and draw
the same numbers; so their streams are a set, too.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import stepseal as ss
from examples.trainers.common import BATCH, Samples, optimizing, seed_all, start
from examples.trainers.shards import Shard

__all__ = ["train"]


def train(root: str, num_steps: int, *, same_on: str = "dp") -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step.

    Args:
        root: where the steps are.
        num_steps: number of the last step.
        same_on: axis of the mesh along which shards are equal; only `dp` is right.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    replica = mesh.get_local_rank("dp")
    model = Shard(mesh.get_local_rank("tp"), 2, mesh.get_group("tp"))
    samples, losses = Samples(seed=replica), []
    optimizer, scheduler = optimizing(model)
    equal_shard, equal_data = ss.per_group(same_on=mesh[same_on]), ss.per_group(same_on=mesh["tp"])
    seed_all(replica)
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", model, sharing=equal_shard)
        ckpt.add("optimizer", optimizer, sharing=equal_shard)
        ckpt.add("scheduler", scheduler, sharing=ss.REPLICATED)
        ckpt.add("dataset", samples, sharing=equal_data, on_world_change="fresh")
        ckpt.add("rng", ss.RNG(), sharing=equal_data, on_world_change="fresh")
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            loss = model(samples.read(BATCH)).square().mean()
            loss.backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad, group=mesh.get_group("dp"))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            ckpt.step(step)
    return losses


if __name__ == "__main__":
    start(train)
