"""FSDP2 over tensor parallelism: every tensor is cut along both axes of a mesh."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import stepseal as ss
from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model on a (dp, tp) mesh: tp of 2 where the number of ranks is even, else 1."""
    num_ranks = dist.get_world_size()
    tp = 2 if num_ranks % 2 == 0 else 1
    mesh = init_device_mesh("cpu", (num_ranks // tp, tp), mesh_dim_names=("dp", "tp"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Mlp(), mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])
    rng = ss.per_group(same_on=mesh["tp"])
    return Parallel(model, mesh.get_local_rank("dp"), mesh["dp"].size(), rng=rng)


if __name__ == "__main__":
    start(build)
