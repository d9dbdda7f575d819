"""Every way to parallelise: killed and resumed to the last bit, and restored on other meshes."""

from __future__ import annotations

import importlib
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from examples.parallel.common import Parallel, optimizer_of, train
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal.testing import RanksFailed, run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVERYDAY = ("ddp", "fsdp2", "tensor_parallel", "pipeline")
STAGES = ("pipeline", "interleaved", "dp_pp", "pp_fsdp2")
ALL = ("ddp", "fsdp2", "tensor_parallel", "hsdp", "dp_tp", "fsdp_tp", "expert_parallel", *STAGES)
VARIANTS: dict[str, tuple[str, dict[str, int]]] = {"interleaved": ("pipeline", {"per_rank": 2})}
"""Cell to its script and how that is built, where they differ."""
SAVED, LAST = 4, 7
"""Step that survives the kill, and the last step of the run."""


def build(name: str, **mesh: int) -> Parallel:
    script, options = VARIANTS.get(name, (name, {}))
    made: Callable[..., Parallel] = importlib.import_module(f"examples.parallel.{script}").build
    return made(**{**options, **mesh})


def state_of(parallel: Parallel, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what this rank holds of model and optimizer, each tensor whole."""
    model = getattr(parallel.model, "module", parallel.model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    state = dict(model.state_dict())
    for parameter, held in optimizer.state.items():
        state |= {f"{names[parameter]}.{key}": value for key, value in held.items()}
    return {
        key: one.full_tensor() if isinstance(one, DTensor) else one.clone()
        for key, one in state.items()
    }


def keep_state(root: str, rank: int, parallel: Parallel, optimizer: torch.optim.Optimizer) -> None:
    torch.save(state_of(parallel, optimizer), f"{root}-state-{rank}.pt")


def kept_state(root: str, num_ranks: int) -> dict[str, torch.Tensor]:
    """Return what all ranks held together."""
    ranks: list[dict[str, torch.Tensor]] = [
        torch.load(f"{root}-state-{rank}.pt") for rank in range(num_ranks)
    ]
    return {key: value for held in ranks for key, value in held.items()}


def until_killed(rank: int, root: str, names: list[str]) -> None:
    """Train undisturbed, then again with steps; die in the middle of the last one's training."""
    for name in names:
        here = f"{root}/{name}"
        torch.save(train(f"{here}-whole", LAST, build(name)), f"{here}-losses-{rank}.pt")
        parallel = build(name)
        optimizer = optimizer_of(parallel)
        if name != names[-1]:
            train(here, SAVED, parallel, optimizer)
            keep_state(here, rank, parallel, optimizer)
            continue
        mortal = replace(parallel, reduce=dying(here, rank, parallel, optimizer))
        train(here, LAST, mortal, optimizer)


def dying(
    root: str, rank: int, parallel: Parallel, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """Return what combines gradients, and after the last save that is wanted dies there."""
    num_steps = 0

    def reduce() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps > SAVED:  # the optimizer has not moved since the save
            keep_state(root, rank, parallel, optimizer)
            while SAVED not in ss.open(root).steps():
                time.sleep(0.01)
            dist.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
        if parallel.reduce is not None:
            parallel.reduce()

    return reduce


def resumed(rank: int, root: str, names: list[str]) -> dict[str, bool]:
    """Go on to the end; tell whether the losses are those of the undisturbed run."""
    return {
        name: train(f"{root}/{name}", LAST, build(name))
        == torch.load(f"{root}/{name}-losses-{rank}.pt")[SAVED:]
        for name in names
    }


def on_another_mesh(
    _rank: int, root: str, names: list[str], num_saved: int, meshes: dict[str, dict[str, int]]
) -> dict[str, bool]:
    """Load on this number of ranks, compare every element, and restore and train on."""
    found = {}
    for name in names:
        parallel = build(name, **meshes.get(name, {}))
        optimizer = optimizer_of(parallel)
        ss.load(f"{root}/{name}", step=SAVED, model=parallel.model, optimizer=optimizer)
        now, then = state_of(parallel, optimizer), kept_state(f"{root}/{name}", num_saved)
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, list(now))
        assert {key for keys in everywhere for key in keys} == then.keys()
        assert parallel.sharing is not None or now.keys() == then.keys()
        same = all(torch.equal(value, then[key]) for key, value in now.items())
        parallel = build(name, **meshes.get(name, {}))
        losses = train(f"{root}/{name}", LAST + 4, parallel)
        found[name] = same and len(losses) > 0 and all(loss == loss for loss in losses)
    return found


def check(
    tmp_path: Path,
    names: list[str],
    worlds: list[tuple[int, dict[str, Any]]],
    *,
    num_saved: int = 4,
) -> None:
    root, good = str(tmp_path), dict.fromkeys(names, True)
    with pytest.raises(RanksFailed) as killed:
        run_ranks(num_saved, until_killed, root, names, timeout_s=300)
    assert killed.value.failures == dict.fromkeys(range(num_saved), "died without a report")
    for name in names:
        assert ss.open(tmp_path / name).steps()[-1] == SAVED
    assert run_ranks(num_saved, resumed, root, names, timeout_s=300) == [good] * num_saved
    for num_ranks, meshes in worlds:
        found = run_ranks(num_ranks, on_another_mesh, root, names, num_saved, meshes, timeout_s=300)
        assert found == [good] * num_ranks


def test_the_most_common_ways(tmp_path: Path) -> None:
    check(tmp_path, list(EVERYDAY), [(2, {})])


@pytest.mark.nightly
def test_every_way_on_every_mesh(tmp_path: Path) -> None:
    worlds: list[tuple[int, dict[str, Any]]] = [(n, {}) for n in (2, 4, 3, 1)]
    along_pp = {"dp_tp": {"num_tp": 1}, "dp_pp": {"num_pp": 4}, "pp_fsdp2": {"num_pp": 4}}
    along_dp = {"dp_pp": {"num_pp": 1}, "pp_fsdp2": {"num_pp": 1}, "interleaved": {"per_rank": 1}}
    check(tmp_path, list(ALL), [*worlds, (4, along_pp), (2, along_dp)])


@pytest.mark.nightly
def test_every_way_from_two_ranks_to_more_and_to_one(tmp_path: Path) -> None:
    check(tmp_path, list(ALL), [(4, {}), (3, {}), (1, {})], num_saved=2)


def test_one_process(tmp_path: Path) -> None:
    losses = train(str(tmp_path / "whole"), LAST, build("single"))
    train(str(tmp_path / "cut"), SAVED, build("single"))
    assert train(str(tmp_path / "cut"), LAST, build("single")) == losses[SAVED:]
