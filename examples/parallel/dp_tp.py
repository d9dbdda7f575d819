"""Data and tensor parallelism: replicas of a model that is cut over the ranks of one row."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import stepseal as ss
from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build(num_tp: int | None = None) -> Parallel:
    """Return the model on a (dp, tp) mesh: tp of 2 where the number of ranks is even, else 1."""
    num_ranks = dist.get_world_size()
    tp = num_tp or (2 if num_ranks % 2 == 0 else 1)
    mesh = init_device_mesh("cpu", (num_ranks // tp, tp), mesh_dim_names=("dp", "tp"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(Mlp(), mesh["tp"], plan)
    group = mesh.get_group("dp")

    def reduce() -> None:
        for parameter in model.parameters():
            gradient = parameter.grad
            assert gradient is not None, "every parameter took part"
            part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            dist.all_reduce(part, group=group)
            part /= group.size()

    rng = ss.per_group(same_on=mesh["tp"])
    data_rank = mesh.get_local_rank("dp")
    return Parallel(model, data_rank, group.size(), reduce=reduce, rng=rng)


if __name__ == "__main__":
    start(build)
