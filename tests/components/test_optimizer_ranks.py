"""Optimizers that keep plain state of the local shard beside FSDP2 parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._roundtrip import same
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import stepseal as ss
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


class Local(torch.optim.Optimizer):
    """Keeps the momentum of the local shard, as a plain tensor or in a list, and one DTensor."""

    def __init__(self, params: Any, in_list: bool, scale: float) -> None:  # noqa: ANN401
        super().__init__(params, {"lr": 0.1})
        self.in_list, self.scale = in_list, scale

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for one in self.param_groups[0]["params"]:
            local = torch.full_like(one.to_local(), self.scale)
            self.state[one] = {"mom": [local] if self.in_list else local, "sum": one.detach() * 2}


class Own(Local):
    """The same with a pair of its own."""

    def state_dict(self) -> Any:  # noqa: ANN401
        return {**super().state_dict(), "calls": 7}

    def load_state_dict(self, state_dict: Any) -> None:  # noqa: ANN401
        self.calls = state_dict["calls"]
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})


def job(cls: type[Local], in_list: bool, scale: float, steps: int) -> tuple[nn.Module, Local]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    fully_shard(model)
    optimizer = cls(model.parameters(), in_list, scale)
    for _ in range(steps):
        optimizer.step()
    return model, optimizer


def plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, DTensor):
        return ("DTensor", str(value.placements), value.to_local())
    return {key: plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def there_and_back(
    root: Path,
    cls: type[Local],
    in_list: bool,
    scale: float,
    **options: Any,  # noqa: ANN401
) -> None:
    model, optimizer = job(cls, in_list, scale, 1)
    fresh_model, fresh = job(cls, in_list, scale, 0)
    for one, its_model, restores in ((optimizer, model, False), (fresh, fresh_model, True)):
        with ss.Checkpointer(root) as ckpt:
            ckpt.add("model", its_model)
            ckpt.add("optimizer", one, **options)
            if restores:
                ckpt.restore()
            else:
                ckpt.save(1).wait()
    assert same(
        plain(dict(enumerate(fresh.state.values()))),
        plain(dict(enumerate(optimizer.state.values()))),
    )


def run(rank: int, folder: Path) -> None:
    for in_list in (False, True):
        name = folder / f"{in_list}"
        there_and_back(name / "equal", Local, in_list, 1.0)  # REPLICATED
        with pytest.raises(ss.errors.ParticipantFailed, match="PER_RANK"):
            there_and_back(name / "refused", Local, in_list, float(rank))
        per_rank = {"sharing": ss.PER_RANK}  # the advice
        there_and_back(name / "own", Local, in_list, float(rank), **per_rank)
        if not in_list:
            with pytest.raises(ss.errors.InvalidInput, match=r"sharing=ss\.PER_RANK"):
                there_and_back(name / "pair", Own, in_list, float(rank))
            there_and_back(name / "pair2", Own, in_list, float(rank), **per_rank)


def test_plain_state_beside_shards_is_nobody_elses(tmp_path: Path) -> None:
    run_ranks(2, run, tmp_path)
