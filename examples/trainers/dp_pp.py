"""Data and pipeline parallelism: a stage is equal along `dp`, and another one along `pp`.

So the set of ranks that hold equal state of a model runs along `dp`; of the data, along `pp`.
Another number of replicas restores the stages; the data then begins anew.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import stepseal as ss
from examples.trainers.common import BATCH, Samples, network, optimizing, seed_all, start
from examples.trainers.pipeline import pass_through

__all__ = ["train"]


def train(root: str, num_steps: int, *, same_on: str = "dp") -> list[float]:
    """Train from the newest step in `root`, or from scratch; return the loss of each step.

    Args:
        root: where the steps are.
        num_steps: number of the last step.
        same_on: axis of the mesh along which stages are equal; only `dp` is right.
    """
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "pp"))
    replica, number = mesh.get_local_rank("dp"), mesh.get_local_rank("pp")
    stage, samples, losses = network()[number], Samples(seed=replica), []
    optimizer, scheduler = optimizing(stage)
    equal_stage = ss.per_group(same_on=mesh[same_on])
    seed_all(dist.get_rank())
    peer = int(mesh.mesh[replica, 1 - number])
    with ss.Checkpointer(root, save=ss.every(steps=2)) as ckpt:
        ckpt.add("model", stage, sharing=equal_stage)
        ckpt.add("optimizer", optimizer, sharing=equal_stage)
        ckpt.add("scheduler", scheduler, sharing=ss.REPLICATED)
        data = ss.per_group(same_on=mesh["pp"])
        ckpt.add("dataset", samples, sharing=data, on_world_change="fresh")
        ckpt.add("rng", ss.RNG(), sharing=ss.PER_RANK, on_world_change="fresh")
        ckpt.restore()
        for step in ckpt.steps(num_steps):
            batch = samples.read(BATCH)  # all stages of a replica know its position
            losses.append(pass_through(stage, None if number else batch, peer=peer))
            for parameter in stage.parameters():
                dist.all_reduce(parameter.grad, group=mesh.get_group("dp"))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            ckpt.step(step)
    return losses


if __name__ == "__main__":
    start(train)
