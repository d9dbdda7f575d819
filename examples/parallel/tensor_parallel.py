"""Tensor parallelism: layers are cut by column and by row; all ranks train on the same data."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import stepseal as ss
from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model, cut over all ranks; the norm stays whole, and equal on all of them."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tp",))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    rng = ss.per_group(same_on=mesh["tp"])
    return Parallel(parallelize_module(Mlp(), mesh, plan), rng=rng)


if __name__ == "__main__":
    start(build)
