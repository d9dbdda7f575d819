"""DDP: every rank holds the same model; one rank writes it, and any number of ranks reads it."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from examples.parallel.common import BATCH, WIDTH, Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model under DDP; its keys are saved without the wrapper's prefix."""
    model = DistributedDataParallel(Mlp())
    # After its first iteration, DDP regroups the gradients and adds them up in another order. Let
    # that be before the restore: else the first iteration after it is not as it would have been.
    model(torch.zeros(BATCH, WIDTH)).sum().backward()
    model.zero_grad()
    return Parallel(model, data_rank=dist.get_rank(), num_data_ranks=dist.get_world_size())


if __name__ == "__main__":
    start(build)
