"""Pipeline parallelism over FSDP2: each stage is cut over the ranks that share it."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from examples.parallel.common import Parallel, start
from examples.parallel.stages import Held, Part, add_over_ends, layers_of, loss_of

__all__ = ["build"]


def build(num_pp: int | None = None) -> Parallel:
    """Return a stage on a (pp, dp) mesh: pp of 2 where the number of ranks is even, else 1."""
    num_ranks = dist.get_world_size()
    pp = num_pp or (2 if num_ranks % 2 == 0 else 1)
    mesh = init_device_mesh("cpu", (pp, num_ranks // pp), mesh_dim_names=("pp", "dp"))
    number = mesh.get_local_rank("pp")
    model = Held([layers_of(number, pp)])
    part = Part(model, layers_of(number, pp))
    for layer in part.layers:
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(part, mesh=mesh["dp"])
    stages = mesh.get_group("pp")
    return Parallel(
        model,
        data_rank=mesh.get_local_rank("dp"),
        num_data_ranks=mesh["dp"].size(),
        sharing=ss.sharded(same_on=mesh["dp"]),  # parts of the same tensors
        loss=loss_of({number: part}, pp, stages),
        reduce=lambda: add_over_ends(model, stages),
    )


if __name__ == "__main__":
    start(build)
