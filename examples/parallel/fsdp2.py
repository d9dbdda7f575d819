"""FSDP2: each rank holds a part of every tensor, and writes it; a restore cuts them anew."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model, sharded over all ranks."""
    model = Mlp()
    fully_shard(model.up)
    fully_shard(model)
    return Parallel(model, data_rank=dist.get_rank(), num_data_ranks=dist.get_world_size())


if __name__ == "__main__":
    start(build)
