"""Stages over process groups: cut by FSDP2 on a mesh of 2 x 2, saved, loaded and refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session.test_stages import Stage
from tests.session.test_stages import writers as writers_of
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal.storage import LocalStorage
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

pytestmark = pytest.mark.slow


def stage_of(layers: list[int], mesh: Any = None) -> tuple[nn.Module, torch.optim.Optimizer]:  # noqa: ANN401
    """Return some layers, cut over a mesh, and an optimizer that may have no parameters."""
    stage = Stage(layers, tied=False)
    for layer in stage.layers.values() if mesh is not None else ():
        fully_shard(layer, mesh=mesh)
    return stage, torch.optim.SGD([{"params": list(stage.parameters())}], lr=0.5, momentum=0.9)


def take(stage: nn.Module, whole: nn.Module, part: int) -> None:
    """Give a stage the values of the whole model; of cut tensors, the part of this rank."""
    source = whole.state_dict()
    with torch.no_grad():
        for key, value in stage.state_dict(keep_vars=True).items():
            if isinstance(value, DTensor):
                value.to_local().copy_(source[key].chunk(2)[part])
            elif torch.is_tensor(value):
                value.copy_(source[key])


def is_part_of(stage: nn.Module, whole: nn.Module) -> bool:
    """Tell whether each tensor of a stage is that of the whole model."""
    source = whole.state_dict()
    held = {key: one for key, one in stage.state_dict().items() if torch.is_tensor(one)}
    cut = {key: one.full_tensor() for key, one in held.items() if isinstance(one, DTensor)}
    return all(torch.equal(value, source[key]) for key, value in {**held, **cut}.items())


def save_and_load(rank: int, root: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pp", "dp"))
    first, dp = mesh.get_local_rank("pp") == 0, mesh["dp"]
    whole = Stage([0, 1, 2], tied=False)
    whole.fill(3)
    found: dict[str, Any] = {}
    for cell, sharing, layers in (
        ("sets", ss.sharded(same_on=dp), [0, 1] if first else [2]),
        ("ranks", ss.SHARDED, [0, 1] if first else [2]),
        ("empty", ss.sharded(same_on=dp), [0, 1, 2] if first else []),
    ):
        stage, optimizer = stage_of(layers, dp)
        take(stage, whole, dp.get_local_rank())
        assert is_part_of(stage, whole)
        with ss.Checkpointer(f"{root}/{cell}") as ckpt:
            ckpt.add("model", stage, sharing=sharing)
            ckpt.add("optimizer", optimizer, sharing=sharing)
            ckpt.save(1).wait()
        stage, optimizer = stage_of([2] if first else [0, 1])  # not cut, and the other way round
        ss.load(f"{root}/{cell}", model=stage, optimizer=optimizer)
        found[cell] = is_part_of(stage, whole)
    stage, optimizer = stage_of([0])
    before = {key: one.clone() for key, one in stage.state_dict().items() if torch.is_tensor(one)}
    try:
        ss.load(f"{root}/sets", model=stage, optimizer=optimizer)
    except ss.errors.StateMismatch as error:
        found["refused"] = error.problems
    now = stage.state_dict()
    found["unchanged"] = all(torch.equal(one, now[key]) for key, one in before.items())
    return found


def writers(root: Path, component: str) -> dict[str, list[str]]:
    """Return the ranks that stored each tensor of step 1."""
    with LocalStorage.open(root) as storage:
        return {
            key: [name.removeprefix("trainer/") for name in names]
            for key, names in writers_of(storage, component).items()
        }


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_stages_that_are_cut_are_written_once_and_load_whole_and_divided_otherwise(
    tmp_path: Path,
) -> None:
    for found in run_ranks(4, save_and_load, str(tmp_path)):
        for cell in ("sets", "ranks", "empty"):
            assert found[cell]
        assert found["unchanged"]
        tail = "unexpected in the checkpoint: no rank takes it"
        assert f"component model: layers.1.linear.weight: {tail}" in found["refused"]
        assert f"component optimizer: param_groups.layers.2.norm.bias: {tail}" in found["refused"]
    whole = Stage([0, 1, 2], tied=False)
    whole.fill(3)
    stock = {k: torch.zeros_like(v) for k, v in whole.state_dict().items() if torch.is_tensor(v)}
    dcp_load(stock, checkpoint_id=str(tmp_path / "sets" / "step-1"))
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in stock.items())
    by_set, by_rank = (writers(tmp_path / cell, "model") for cell in ("sets", "ranks"))
    assert by_set["layers.0.linear.weight"] == by_rank["layers.0.linear.weight"] == ["0", "1"]
    assert by_set["layers.2.norm.running_mean"] == ["2"]
    assert by_rank["layers.2.norm.running_mean"] == ["2", "3"]  # and found to be equal
    assert by_set["rotary"] == ["0", "2"]
    assert writers(tmp_path / "empty", "model")["rotary"] == ["0", "2"]
