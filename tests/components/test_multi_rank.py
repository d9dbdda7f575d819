"""Components over real process groups: FSDP2, with tensor parallelism too, and DDP."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from tests.components._crossing import get, put
from tests.components._memory import ALONE, Sharing, keys_of, restore, world
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._modules import ModuleComponent
from stepseal.components._optimizers import OptimizerComponent
from stepseal.layout import coverage_problems
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

    from stepseal.components._types import CapturedComponent, Topology

pytestmark = pytest.mark.slow


def model(seed: int, rows: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, rows), nn.Tanh(), nn.Linear(rows, 1))


def sharded(seed: int) -> nn.Module:
    module = model(seed)
    fully_shard(module[0])  # type: ignore[index]
    fully_shard(module)
    return module


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.05)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    batch = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    module(batch).square().mean().backward()
    optimizer.step()


def components(
    module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[ModuleComponent, OptimizerComponent]:
    return (
        ModuleComponent("model", module),
        OptimizerComponent("optimizer", optimizer, lambda: {"model": module}),
    )


def full(value: Any) -> Any:  # noqa: ANN401 - any state
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: full(item) for key, item in value.items()}
    return value


def everything(module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:  # noqa: ANN401
    weights = {key: full(value).clone() for key, value in module.state_dict().items()}
    state = copy.deepcopy([full(optimizer.state[p]) for p in module.parameters()])
    return {"weights": weights, "state": state, "lr": optimizer.param_groups[0]["lr"]}


def assert_same(a: Any, b: Any) -> None:  # noqa: ANN401 - any state
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key, value in a.items():
            assert_same(value, b[key])
    elif isinstance(a, list):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        assert a == b


def collect(name: str, topology: Topology, folder: Path) -> list[CapturedComponent]:
    dist.barrier()
    return [get(folder / f"{name}.{rank}") for rank in range(topology.world_size)]


def _fsdp2(rank: int, folder: Path) -> None:
    topology = world(2)[rank]
    source = sharded(1)
    optimizer = adam(source)
    for number in range(2):
        train(source, optimizer, number)
    with torch.no_grad():
        source(torch.ones(1, 3))  # leaves the root's parameters gathered
    before = everything_held(optimizer)
    parts = components(source, optimizer)
    for part in reversed(parts):  # the optimizer first: it must find its names by itself
        captured = capture(part, topology, Arena())
        assert captured.sharing is Sharing.SHARDED
        put(folder / f"{part.name}.{rank}", captured)
    assert_same(before, everything_held(optimizer))

    target = sharded(2)
    fresh = adam(target)
    for part in components(target, fresh):
        restore(part, collect(part.name, topology, folder), topology, num_elements=4)
    assert isinstance(fresh.state[target[0].weight]["exp_avg"], DTensor)  # type: ignore[index]
    assert_same(everything(target, fresh), everything(source, optimizer))
    for number in range(2, 4):
        train(source, optimizer, number)
        train(target, fresh, number)
    assert_same(everything(target, fresh), everything(source, optimizer))

    again = sharded(3)
    stepped = adam(again)
    train(again, stepped, 9)
    for part in components(again, stepped):
        restore(part, [get(folder / f"{part.name}.plain")], topology)
    if rank == 0:
        torch.save(everything(again, stepped), folder / "from_plain")
    else:
        everything(again, stepped)


def everything_held(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [
        {key: value.to_local() if isinstance(value, DTensor) else value for key, value in s.items()}
        for s in copy.deepcopy(list(optimizer.state.values()))
    ]


def test_fsdp2_saves_and_restores_across_worlds(tmp_path: Path) -> None:
    plain = model(4)
    optimizer = adam(plain)
    for number in range(3):
        train(plain, optimizer, number)
    for part in components(plain, optimizer):
        put(tmp_path / f"{part.name}.plain", capture(part, ALONE, None))

    run_ranks(2, _fsdp2, tmp_path)

    assert_same(torch.load(tmp_path / "from_plain"), everything(plain, optimizer))
    captures = {
        name: [get(tmp_path / f"{name}.{rank}") for rank in range(2)]
        for name in ("model", "optimizer")
    }
    for first, second in captures.values():
        assert first.fingerprint == second.fingerprint
        sources = (*first.tensors, *second.tensors)
        for key in {source.key for source in sources}:
            boxes = [source.box for source in sources if source.key == key]
            (shape,) = {source.shape for source in sources if source.key == key}
            assert len(boxes) == len(set(boxes))
            assert coverage_problems(shape, boxes) == []
    expected = model(1)
    trained = adam(expected)
    for number in range(2):
        train(expected, trained, number)
    target = model(5)
    fresh = adam(target)
    for part in components(target, fresh):
        restore(part, captures[part.name])
    found = everything(target, fresh)
    for key, value in everything(expected, trained)["weights"].items():
        torch.testing.assert_close(found["weights"][key], value)
    assert [state["step"].item() for state in found["state"]] == [2.0] * 4


def _fsdp2_and_tp(rank: int, folder: Path) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    topology = world(4)[rank]
    for rows in (8, 7, 3):
        weight = torch.arange(rows * 3.0).view(rows, 3)
        module = nn.Linear(3, rows, bias=False)
        module.weight = nn.Parameter(distribute_tensor(weight, mesh["tp"], [Shard(0)]))
        fully_shard(module, mesh=mesh["dp"])
        component = ModuleComponent("model", module)
        name = f"rows{rows}"
        put(folder / f"{name}.{rank}", capture(component, topology, None))
        captures = collect(name, topology, folder)
        boxes = [source.box for captured in captures for source in captured.tensors]
        assert coverage_problems(weight.shape, boxes) == []
        assert sum(box.num_elements for box in boxes) == weight.numel()
        plain = nn.Linear(3, rows, bias=False)
        restore(ModuleComponent("model", plain), captures)
        assert torch.equal(plain.weight, weight)


def test_fsdp2_over_tensor_parallelism(tmp_path: Path) -> None:
    run_ranks(4, _fsdp2_and_tp, tmp_path)


def _ddp(rank: int, folder: Path) -> None:
    topology = world(2)[rank]
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
    wrapped(torch.rand(4, 3)).sum().backward()
    component = ModuleComponent("model", wrapped)
    captured = capture(component, topology, None)
    put(folder / f"model.{rank}", captured)
    assert captured.sharing is Sharing.REPLICATED
    first, second = collect("model", topology, folder)
    assert first.fingerprint == second.fingerprint
    assert keys_of(first) == list(module.state_dict())
    assert second.tensors == ()
    restore(component, [first, second], topology)
    mean = module[1].running_mean
    assert isinstance(mean, torch.Tensor)
    others = [torch.empty_like(mean) for _ in range(2)]
    dist.all_gather(others, mean)
    assert torch.equal(*others)


def test_ddp_stores_the_lowest_ranks_buffers(tmp_path: Path) -> None:
    run_ranks(2, _ddp, tmp_path)
