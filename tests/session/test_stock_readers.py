"""What stock PyTorch tools make of a step folder: `dcp.load`, `dcp_to_torch`, a torchtitan job."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.session._states import Net, adamw, blank, every_kind, train, whole_state
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.fsdp import fully_shard

import stepseal as ss
from stepseal.testing import assert_identical, find_difference, run_ranks, snapshot

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Titan:
    """Model, optimizer and scheduler as a torchtitan job hands them to DCP."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("model", self.model)
        checkpointer.add("optimizer", self.optimizer)
        checkpointer.add("lr_scheduler", self.scheduler)

    def train(self, seed: int) -> None:
        train(self.model, self.optimizer, seed)
        self.scheduler.step()

    def load(self, path: str) -> None:
        """Load as torchtitan does: bare model keys, the others under their names."""
        states: dict[str, Any] = {
            **get_model_state_dict(self.model),
            "optimizer": _TitanOptimizer(self),
            "lr_scheduler": self.scheduler,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # DCP without a process group warns
            dcp_load(states, checkpoint_id=path)
        set_model_state_dict(self.model, {key: states[key] for key in self.model.state_dict()})

    def state(self) -> dict[str, Any]:
        return {**whole_state(self.model, self.optimizer), "scheduler": self.scheduler.state_dict()}


class _TitanOptimizer:
    """As torchtitan's OptimizersContainer: flat keys by FQN."""

    def __init__(self, titan: Titan) -> None:
        self._titan = titan

    def state_dict(self) -> dict[str, Any]:
        return get_optimizer_state_dict(self._titan.model, self._titan.optimizer, options=FLAT)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(
            self._titan.model, self._titan.optimizer, optim_state_dict=state, options=FLAT
        )


def titan(seed: int) -> Titan:
    model = Net(seed)
    return Titan(model, adamw(model))


def sharded_titan(seed: int) -> Titan:
    model = Net(seed)
    fully_shard(model.first)
    fully_shard(model)
    return Titan(model, adamw(model))


def load_stock(state: dict[str, Any], path: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP without a process group warns
        dcp_load(state, checkpoint_id=path)


def save(root: Path, state: dict[str, Any], mode: Any = "sync") -> str:  # noqa: ANN401 - a literal
    with ss.Checkpointer(root, mode=mode) as checkpointer:
        for name, part in state.items():
            checkpointer.add(name, part)
        return checkpointer.save(1).wait().path


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_dcp_load_reads_every_dtype_shape_and_layout(tmp_path: Path, mode: str) -> None:
    saved = every_kind(1)
    path = save(tmp_path, {"model": saved, "critic": every_kind(2)}, mode)
    found: dict[str, Any] = {**blank(saved), "critic": blank(saved)}
    load_stock(found, path)
    assert_identical({**saved, "critic": every_kind(2)}, found)


def test_dcp_load_reads_one_key_alone(tmp_path: Path) -> None:
    path = save(tmp_path, {"model": every_kind(1)})
    found = {"transposed": torch.zeros(5, 3)}
    load_stock(found, path)
    assert_identical(every_kind(1)["transposed"], found["transposed"])


def test_a_changed_payload_byte_changes_what_stock_dcp_reads(tmp_path: Path) -> None:
    saved = {"w": torch.rand(3, 5), "v": torch.rand(4)}
    path = save(tmp_path, {"model": saved})
    (payload,) = Path(path).glob("*.distcp")
    content = bytearray(payload.read_bytes())
    content[content.index(saved["v"].numpy().tobytes()) + 4] ^= 1
    payload.unlink()
    payload.write_bytes(content)
    found = blank(saved)
    load_stock(found, path)
    assert str(find_difference(saved, found)).startswith("v, element [1]:")
    with pytest.raises(ss.errors.Corrupt):
        ss.open(tmp_path).step(1).tensors()


def test_dcp_to_torch_writes_the_whole_state(tmp_path: Path) -> None:
    job = titan(1)
    job.train(0)
    with ss.Checkpointer(tmp_path / "root", mode="sync") as checkpointer:
        job.add_to(checkpointer)
        path = checkpointer.save(1).wait().path
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(path, tmp_path / "all.pt")
    found = torch.load(tmp_path / "all.pt", weights_only=False)
    assert_titan_keys(found, job)


def assert_titan_keys(found: dict[str, Any], job: Titan) -> None:
    """Check a plain dict against a live job, by the names that torchtitan uses."""
    flat = get_optimizer_state_dict(job.model, job.optimizer, options=FLAT)
    assert {"state.first.weight.exp_avg", "param_groups.last.bias.lr"} <= flat.keys()
    assert_identical(flat, found["optimizer"])
    assert_identical(job.scheduler.state_dict(), found["lr_scheduler"])
    for key, value in job.model.state_dict().items():
        assert_identical(value, found[key])
    assert set(found) == {*job.model.state_dict(), "optimizer", "lr_scheduler"}


@pytest.mark.slow
def test_the_command_line_converter_reads_every_dtype(tmp_path: Path) -> None:
    path = save(tmp_path / "root", {"model": every_kind(1), "critic": every_kind(2)})
    target = tmp_path / "all.pt"
    tool = "torch.distributed.checkpoint.format_utils"
    command = [sys.executable, "-W", "ignore", "-m", tool, "dcp_to_torch", path, str(target)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = torch.load(target, weights_only=False)
    assert_identical({**every_kind(1), "critic": every_kind(2)}, found)


@pytest.mark.parametrize("num_trained", [1, 3])
def test_a_torchtitan_job_goes_on_from_our_step(tmp_path: Path, num_trained: int) -> None:
    job = titan(1)
    for seed in range(num_trained):
        job.train(seed)
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        job.add_to(checkpointer)
        path = checkpointer.save(1).wait().path
    other = titan(2)
    other.load(path)
    assert_identical(job.state(), other.state())
    for one in (job, other):
        one.train(9)
    assert_identical(job.state(), other.state())


def _save_on_two(rank: int, folder: str) -> None:
    job = sharded_titan(1)
    for seed in range(2):
        job.train(seed)
    with ss.Checkpointer(f"{folder}/root") as checkpointer:
        job.add_to(checkpointer)
        path = checkpointer.save(2).wait().path
    state = snapshot(job.state())
    other = sharded_titan(2)
    other.load(path)
    assert_identical(state, other.state())
    for one in (job, other):
        one.train(9)
    assert_identical(job.state(), other.state())
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    dist.barrier()


@pytest.mark.slow
def test_fsdp_of_two_ranks_is_read_by_stock_dcp_on_two_and_on_one(tmp_path: Path) -> None:
    run_ranks(2, _save_on_two, str(tmp_path))
    expected = torch.load(tmp_path / "state.pt", weights_only=False)
    path = str(tmp_path / "root" / "step-2")
    alone = titan(3)
    alone.load(path)
    assert_identical(expected, alone.state())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(path, tmp_path / "all.pt")
    assert_titan_keys(torch.load(tmp_path / "all.pt", weights_only=False), alone)
