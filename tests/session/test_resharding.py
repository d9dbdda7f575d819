"""Saved by four FSDP2 ranks, restored by one to four, and back; uneven and empty shards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from tests.session._states import Net, adamw, train, whole_state
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal.testing import assert_identical, find_difference, run_ranks, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.slow

NUM_RANKS = 4


def build(seed: int, *, sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Net(seed)
    if sharded:
        fully_shard(model.second)
        fully_shard(model)
    return model, adamw(model)


def add_all(
    checkpointer: ss.Checkpointer, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    checkpointer.add("model", model)
    checkpointer.add("optimizer", optimizer)


def _save_first(rank: int, folder: str) -> list[int]:
    """Train and save; return how many elements of each parameter this rank holds."""
    model, optimizer = build(1, sharded=True)
    for seed in range(2):
        train(model, optimizer, seed)
    with ss.Checkpointer(f"{folder}/from-4") as checkpointer:
        add_all(checkpointer, model, optimizer)
        checkpointer.save(2)
    expected = snapshot(whole_state(model, optimizer))
    if rank == 0:
        torch.save(expected, f"{folder}/expected.pt")
    locals_ = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
    return [local.numel() for local in locals_]


def restore(folder: str, root: str, seed: int, *, sharded: bool = True) -> tuple[Any, Any]:
    """Restore into other values and check them all; return the live objects."""
    expected = torch.load(f"{folder}/expected.pt")
    model, optimizer = build(seed, sharded=sharded)
    if seed % 2:  # half of the targets have state of their own, the others none
        train(model, optimizer, seed)
    assert find_difference(expected, whole_state(model, optimizer)) is not None
    with ss.Checkpointer(f"{folder}/{root}") as checkpointer:
        add_all(checkpointer, model, optimizer)
        restored = checkpointer.restore()
    assert restored is not None
    assert restored.step == 2
    assert_identical(expected, whole_state(model, optimizer))
    return model, optimizer


def _restore_and_save(rank: int, folder: str) -> None:
    num_ranks = dist.get_world_size()
    model, optimizer = restore(folder, "from-4", 10 + num_ranks)
    with ss.Checkpointer(f"{folder}/from-4-by-{num_ranks}") as checkpointer:
        add_all(checkpointer, model, optimizer)
        checkpointer.save(2)


def _restore_all_back(rank: int, folder: str) -> None:
    for num_ranks in range(1, NUM_RANKS + 1):
        model, optimizer = restore(folder, f"from-4-by-{num_ranks}", 20 + num_ranks)
        train(model, optimizer, 9)  # what came back trains on
    restore(folder, "from-4-by-plain", 30)


def test_four_ranks_to_any_number_and_back(tmp_path: Path) -> None:
    folder = str(tmp_path)
    held = run_ranks(NUM_RANKS, _save_first, folder)
    assert held[NUM_RANKS - 1] == [1 * 5, 1, 0, 0, 0, 0]  # the last rank's shards: mostly empty
    assert held[0] == [2 * 5, 2, 7, 1, 3, 1]

    for num_ranks in range(1, NUM_RANKS + 1):
        run_ranks(num_ranks, _restore_and_save, folder)
    model, optimizer = restore(folder, "from-4", 40, sharded=False)
    with ss.Checkpointer(tmp_path / "from-4-by-plain") as checkpointer:
        add_all(checkpointer, model, optimizer)
        checkpointer.save(2)

    run_ranks(NUM_RANKS, _restore_all_back, folder)
    run = ss.open(tmp_path / "from-4")
    assert run.step(2).verify() == ()
    names = run.step(2).tensor_names()
    assert len(names) == 6 + 3 * 6
    stored = run.step(2).tensors("*.weight")
    expected = torch.load(tmp_path / "expected.pt")["model"]
    assert_identical({k: v for k, v in expected.items() if k.endswith("weight")}, stored)
