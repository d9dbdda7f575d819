"""Pipeline parallelism: each rank holds some layers, and a restore may divide them otherwise."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import stepseal as ss
from examples.parallel.common import Parallel, start
from examples.parallel.stages import Held, Part, add_over_ends, layers_of, loss_of

__all__ = ["build"]


def build(per_rank: int = 1) -> Parallel:
    """Return the layers of this rank, in one stage, or in several that are interleaved."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("pp",))
    group, num_stages = mesh.get_group("pp"), mesh.size() * per_rank
    numbers = range(mesh.get_local_rank("pp"), num_stages, mesh.size())
    layers = {number: layers_of(number, num_stages) for number in numbers}
    model = Held(list(layers.values()))
    parts = {number: Part(model, one) for number, one in layers.items()}
    return Parallel(
        model,
        sharing=ss.SHARDED,  # ranks hold different keys; several hold equal ones
        loss=loss_of(parts, num_stages, group),
        reduce=lambda: add_over_ends(model, group),
    )


if __name__ == "__main__":
    start(build)
