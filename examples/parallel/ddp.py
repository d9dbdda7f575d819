"""DDP: every rank holds the same model; one rank writes it, and any number of ranks reads it."""

from __future__ import annotations

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from examples.parallel.common import Mlp, Parallel, start

__all__ = ["build"]


def build() -> Parallel:
    """Return the model under DDP; its keys are saved without the wrapper's prefix."""
    return Parallel(DistributedDataParallel(Mlp()), data_rank=dist.get_rank())


if __name__ == "__main__":
    start(build)
