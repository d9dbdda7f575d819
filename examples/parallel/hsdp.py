"""HSDP: FSDP2 inside a group of ranks, and replicas across groups, which share the writing."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model on a mesh of 2 replicas; of 1 where the number of ranks is odd."""
    num_ranks = dist.get_world_size()
    replicas = 2 if num_ranks % 2 == 0 else 1
    names = ("replicate", "shard")
    mesh = init_device_mesh("cpu", (replicas, num_ranks // replicas), mesh_dim_names=names)
    model = Mlp()
    fully_shard(model.up, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return Parallel(model, data_rank=dist.get_rank(), num_data_ranks=dist.get_world_size())


if __name__ == "__main__":
    start(build)
