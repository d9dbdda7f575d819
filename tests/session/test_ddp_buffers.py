"""BatchNorm under DDP: the buffers of rank 0 where DDP sends them to all, else each rank's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stepseal as ss
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def resumes_exactly(rank: int, root: str, broadcast: bool, own: bool) -> bool:
    """Train two steps, then the second one again from a step; compare all buffers after it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = DistributedDataParallel(net, broadcast_buffers=broadcast)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train(step: int) -> list[torch.Tensor]:
        stream = torch.Generator().manual_seed(10 * step + rank)
        model(torch.rand(8, 4, generator=stream)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return [buffer.clone() for buffer in net.buffers()]

    def added(ckpt: ss.Checkpointer) -> ss.Checkpointer:
        ckpt.add("model", model)
        ckpt.add("optimizer", optimizer)
        if own:
            ckpt.add("buffers", dict(net.named_buffers()), sharing=ss.PER_RANK)
        return ckpt

    train(0)
    with ss.Checkpointer(root) as ckpt:
        added(ckpt).save(1).wait()
    undisturbed = train(1)
    with ss.Checkpointer(root) as ckpt:
        added(ckpt).restore()
    return all(map(torch.equal, train(1), undisturbed))


def all_cells(rank: int, root: str) -> dict[str, bool]:
    cells = {"sent": (True, False), "own": (False, True), "forgotten": (False, False)}
    return {name: resumes_exactly(rank, f"{root}/{name}", *cell) for name, cell in cells.items()}


def test_buffers_are_those_of_rank_0_or_each_ranks_own(tmp_path: Path) -> None:
    first, second = run_ranks(2, all_cells, str(tmp_path))
    assert first == {"sent": True, "own": True, "forgotten": True}
    assert second == {"sent": True, "own": True, "forgotten": False}  # the broken variant
