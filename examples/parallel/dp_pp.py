"""Data and pipeline parallelism: each stage is held by several ranks, and one of them writes it."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import stepseal as ss
from examples.parallel.common import Parallel, start
from examples.parallel.stages import Held, Part, add_over_ends, layers_of, loss_of

__all__ = ["build"]


def build(num_pp: int | None = None) -> Parallel:
    """Return a stage on a (dp, pp) mesh: pp of 2 where the number of ranks is even, else 1."""
    num_ranks = dist.get_world_size()
    pp = num_pp or (2 if num_ranks % 2 == 0 else 1)
    mesh = init_device_mesh("cpu", (num_ranks // pp, pp), mesh_dim_names=("dp", "pp"))
    number = mesh.get_local_rank("pp")
    model = Held([layers_of(number, pp)])
    part = Part(model, layers_of(number, pp))
    replicas, stages = mesh.get_group("dp"), mesh.get_group("pp")

    def reduce() -> None:
        add_over_ends(model, stages)
        for parameter in model.parameters():
            assert parameter.grad is not None, "every parameter took part"
            dist.all_reduce(parameter.grad, group=replicas)
            parameter.grad /= replicas.size()

    return Parallel(
        model,
        data_rank=mesh.get_local_rank("dp"),
        num_data_ranks=replicas.size(),
        sharing=ss.sharded(same_on=mesh["dp"]),  # the ranks along dp hold the same stage
        loss=loss_of({number: part}, pp, stages),
        reduce=reduce,
    )


if __name__ == "__main__":
    start(build)
