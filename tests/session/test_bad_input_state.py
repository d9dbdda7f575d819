"""Live state that differs from the saved one in every way: one error lists it all, by its path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path


class Net(nn.Module):
    """A module that has changed since the save, in all four ways."""

    def __init__(self, *, changed: bool) -> None:
        super().__init__()
        self.same = nn.Linear(2, 2)
        self.wider = nn.Linear(2, 4 if changed else 3, bias=False)
        self.finer = nn.Linear(2, 2, bias=False, dtype=torch.float64 if changed else None)
        setattr(self, "new" if changed else "old", nn.Linear(2, 2, bias=False))


def stepped(net: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def problems_of(root: str, *, sharded: bool) -> tuple[str, ...]:
    """Save one module with its optimizer, and return why another one cannot take it."""
    before = Net(changed=False)
    if sharded:
        fully_shard(before)
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("model", before)
        ckpt.add("optimizer", stepped(before))
        ckpt.save(1).wait()
    after = Net(changed=True)
    if sharded:
        fully_shard(after)
    optimizer = stepped(after)
    held = [parameter.detach().clone() for parameter in after.parameters()]
    with ss.Checkpointer(root) as ckpt:
        ckpt.add("model", after)
        ckpt.add("optimizer", optimizer)
        with pytest.raises(ss.errors.StateMismatch) as caught:
            ckpt.restore()
    assert not caught.value.tainted
    for one, other in zip(held, after.parameters(), strict=True):
        assert torch.equal(one, other)
    return caught.value.problems


def on_ranks(rank: int, root: str) -> tuple[str, ...]:
    return problems_of(root, sharded=True)


OF_BOTH = (
    "component model: wider.weight: shape: expected (live) [4, 2], found [3, 2]",
    "component model: finer.weight: dtype: expected (live) float64, found float32",
    "component model: new.weight: missing in the checkpoint",
    "component model: old.weight: unexpected in the checkpoint",
    "component optimizer: param_groups[0]: wider.weight: shape: expected (live) [4, 2], found "
    "[3, 2]",
    "component optimizer: param_groups[0]: new.weight: missing in the checkpoint",
    "component optimizer: param_groups[0]: old.weight: unexpected in the checkpoint",
    "component optimizer: state.finer.weight.momentum_buffer: dtype: expected (live) float64, "
    "found float32",
)


def test_a_module_and_its_optimizer_list_all_that_differs_in_one_error(tmp_path: Path) -> None:
    assert problems_of(str(tmp_path), sharded=False) == OF_BOTH


@pytest.mark.slow
def test_a_module_of_dtensors_lists_all_that_differs_on_every_rank(tmp_path: Path) -> None:
    assert run_ranks(2, on_ranks, str(tmp_path)) == [OF_BOTH, OF_BOTH]
