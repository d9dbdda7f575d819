"""Replicas over process groups: DDP, and DTensors whose boxes several ranks hold.

One world runs all its cells, because starting processes is what takes the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import stepseal as ss
from stepseal.components import Topology, capture
from stepseal.components._replicas import ReplicaRule
from stepseal.components._tensors import TensorDictComponent
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.slow

SHAPE = (8, 6)


def tensors(mesh: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401 - a DeviceMesh
    """Return a tensor of each placement on a mesh of dp x tp, made from one whole tensor."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    whole = torch.arange(48.0).view(SHAPE)
    dp, tp = mesh.get_coordinate()
    parts: dict[str, tuple[list[Any], torch.Tensor]] = {
        "hsdp": ([Replicate(), Shard(0)], whole.chunk(2, 0)[tp]),
        "norm": ([Shard(0), Replicate()], whole.chunk(2, 0)[dp]),
        "both": ([Replicate(), Replicate()], whole),
        "fsdp": ([Shard(0), Shard(1)], whole.chunk(2, 0)[dp].chunk(2, 1)[tp]),
    }
    found: dict[str, torch.Tensor] = {"plain": torch.ones(3)}
    for name, (placements, local) in parts.items():
        found[name] = DTensor.from_local(local.clone(), mesh, placements, run_check=False)
    return found


def outcome(root: str, add: Callable[[ss.Checkpointer], None]) -> dict[str, Any] | None:
    """Save once; return the facts of the error, or None."""
    with ss.Checkpointer(root) as ckpt:
        add(ckpt)
        try:
            ckpt.save(1).wait()
        except ss.errors.ParticipantFailed as error:
            return {"who": sorted(error.failures), "where": error.problems, "text": str(error)}
    return None


def save_cells(rank: int, root: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    found: dict[str, Any] = {}

    def change(name: str, odd: int) -> Callable[[ss.Checkpointer], None]:
        live = tensors(mesh)
        if rank == odd:
            local: Any = getattr(live[name], "_local_tensor", live[name])
            local.view(-1)[-1] += 1
        return lambda ckpt: ckpt.add("state", live, kind="tensors", validate="tensor")

    found["equal"] = outcome(f"{root}/equal", change("plain", -1))
    for name, odd in (("hsdp", 3), ("norm", 1), ("both", 2), ("plain", 1), ("fsdp", 3)):
        found[name] = outcome(f"{root}/{name}", change(name, odd))
    sharded: Any = {"w": tensors(mesh)["fsdp"]}
    topology = Topology(rank, tuple(f"trainer/{one}" for one in range(4)))
    component = TensorDictComponent("state", sharded)
    found["alone"] = capture(component, topology, None, ReplicaRule()).digests is None

    model = DistributedDataParallel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    model(torch.rand(4, 3) + rank).sum().backward()  # the buffers differ now
    found["ddp"] = outcome(f"{root}/ddp", lambda ckpt: ckpt.add("model", model))
    with torch.no_grad():
        model.module[0].weight[0, 0] += rank // 3
    found["ddp drifted"] = outcome(f"{root}/drifted", lambda ckpt: ckpt.add("model", model))
    found["buffers"] = own_buffers(rank, f"{root}/buffers")
    return found


def own_buffers(rank: int, root: str) -> bool:
    """Save a module whose buffers differ and restore it, with the component that a warning names;
    tell whether each rank got its own back, and the lowest rank's without that component."""

    def build(mean: float) -> Any:  # noqa: ANN401 - its buffers have no type
        model: Any = DistributedDataParallel(nn.BatchNorm1d(2), broadcast_buffers=False)
        model.module.running_mean.fill_(mean)
        return model

    def means(num: int, own: bool) -> list[float]:
        model = build(9.0)
        with ss.Checkpointer(root) as ckpt:
            ckpt.add("model", model)
            if own:
                buffers = dict(model.named_buffers())
                options: Any = {"sharing": ss.PER_RANK, "on_world_change": "fresh"}
                ckpt.add("model_buffers", buffers, **options)
            if ckpt.restore(policies={} if own else {"model_buffers": "skip"}) is None:
                model.module.running_mean.fill_(num)
                ckpt.save(1).wait()
        found: list[float] = model.module.running_mean.tolist()
        return found

    means(rank, own=True)
    return (means(rank, own=True), means(rank, own=False)) == ([rank] * 2, [0] * 2)


def test_equal_boxes_are_compared_on_the_ranks_that_hold_them(tmp_path: Path) -> None:
    ranks = run_ranks(4, save_cells, str(tmp_path))
    assert ranks[1:] == ranks[:1] * 3
    found = ranks[0]
    assert found["equal"] is None
    assert found["fsdp"] is None, "a box that one rank holds has no replica"
    assert found["alone"] is True
    assert found["ddp"] is None, "buffers are not compared"
    where = {
        "hsdp": (["trainer/3"], "the ranks 1 3 must hold equal state: hsdp differs"),
        "norm": (["trainer/1"], "the ranks 0 1 must hold equal state: norm differs"),
        "both": (["trainer/2"], "both differs: trainer/0, trainer/1, trainer/3 against trainer/2"),
        "plain": (["trainer/1"], "the ranks of the job must hold equal state: plain differs"),
    }
    for name, (who, text) in where.items():
        assert found[name]["who"] == who, found[name]
        assert found[name]["where"] == (f"component state: {name}",)
        assert text in found[name]["text"], found[name]["text"]
    assert found["buffers"] is True
    assert found["ddp drifted"]["where"] == ("component model: 0.weight",)
    step = ss.open(tmp_path / "equal").step(1)
    assert step.verify() == ()
    assert step.tensors()["state.both"].tolist() == torch.arange(48.0).view(SHAPE).tolist()
