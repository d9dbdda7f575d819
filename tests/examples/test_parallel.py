"""Every way to parallelise: killed and resumed to the last bit, and restored on other meshes."""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from examples.parallel.common import Parallel, train
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

import stepseal as ss
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERYDAY = ("ddp", "fsdp2", "tensor_parallel")
ALL = ("single", *EVERYDAY, "hsdp", "dp_tp", "fsdp_tp", "expert_parallel")
SAVED, LAST = 4, 7
"""Step that survives the kill, and the last step of the run."""


def build(name: str, **mesh: int) -> Parallel:
    made: Callable[..., Parallel] = importlib.import_module(f"examples.parallel.{name}").build
    return made(**mesh)


def state_of(parallel: Parallel) -> dict[str, torch.Tensor]:
    """Return every parameter of a model, whole; the same on all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=False)
    model: dict[str, Any] = get_state_dict(parallel.model, [], options=options)[0]
    return {key: value.clone() for key, value in model.items()}


def until_killed(rank: int, root: str, names: list[str]) -> None:
    """Train undisturbed, then again with steps, and die after the last save with no goodbye."""
    for name in names:
        losses = train(f"{root}/{name}-whole", LAST, build(name))
        torch.save(losses, f"{root}/{name}-losses-{rank}.pt")
        parallel = build(name)
        train(f"{root}/{name}", SAVED, parallel)
        torch.save(state_of(parallel), f"{root}/{name}-state-{rank}.pt")
    torch.distributed.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def resumed(rank: int, root: str, names: list[str]) -> dict[str, bool]:
    """Go on to the end; tell whether the losses are those of the undisturbed run."""
    return {
        name: train(f"{root}/{name}", LAST, build(name))
        == torch.load(f"{root}/{name}-losses-{rank}.pt")[SAVED:]
        for name in names
    }


def on_another_mesh(
    _rank: int, root: str, names: list[str], meshes: dict[str, dict[str, int]]
) -> dict[str, bool]:
    """Restore on this number of ranks, compare every element, and train on."""
    found = {}
    for name in names:
        parallel = build(name, **meshes.get(name, {}))
        ss.load(f"{root}/{name}", step=SAVED, model=parallel.model)
        now, then = state_of(parallel), torch.load(f"{root}/{name}-state-0.pt")
        same = now.keys() == then.keys() and all(torch.equal(now[key], then[key]) for key in then)
        parallel = build(name, **meshes.get(name, {}))
        losses = train(f"{root}/{name}", LAST + 4, parallel)
        found[name] = same and len(losses) > 0 and all(loss == loss for loss in losses)
    return found


def check(tmp_path: Path, names: list[str], worlds: list[tuple[int, dict[str, Any]]]) -> None:
    root, good = str(tmp_path), dict.fromkeys(names, True)
    with pytest.raises(RanksFailed) as killed:
        run_ranks(4, until_killed, root, names, timeout_s=300)
    assert killed.value.failures == dict.fromkeys(range(4), "died without a report")
    for name in names:
        assert ss.open(tmp_path / name).steps()[-1] == SAVED
    assert run_ranks(4, resumed, root, names, timeout_s=300) == [good] * 4
    for num_ranks, meshes in worlds:
        found = run_ranks(num_ranks, on_another_mesh, root, names, meshes, timeout_s=300)
        assert found == [good] * num_ranks


def test_the_three_most_common_ways(tmp_path: Path) -> None:
    check(tmp_path, list(EVERYDAY), [(2, {})])


@pytest.mark.nightly
def test_every_way_on_every_mesh(tmp_path: Path) -> None:
    names = [name for name in ALL if name != "single"]
    worlds: list[tuple[int, dict[str, Any]]] = [(n, {}) for n in (2, 4, 3, 1)]
    check(tmp_path, names, [*worlds, (4, {"dp_tp": {"num_tp": 1}})])


def test_one_process(tmp_path: Path) -> None:
    losses = train(str(tmp_path / "whole"), LAST, build("single"))
    train(str(tmp_path / "cut"), SAVED, build("single"))
    assert train(str(tmp_path / "cut"), LAST, build("single")) == losses[SAVED:]
