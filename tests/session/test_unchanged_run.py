"""Saving never changes the run: with and without saves, everything ends bit-identical."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from tests.session._jobs import Loader
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import stepseal as ss
from stepseal.testing import assert_identical, find_difference, snapshot

if TYPE_CHECKING:
    from pathlib import Path

NUM_STEPS = 8

pytestmark = pytest.mark.slow


class Odd(nn.Module):
    """Dropout, batch statistics, a branch that never gets a gradient, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.4)
        self.never_used = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drop(self.norm(self.used(batch))) * self.frozen
        return out


class Run:
    """A job with a never-stepped layer, a bare parameter in a group of its own, and hooks."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        torch.manual_seed(3)
        random.seed(4)
        np.random.seed(5)
        self.model = Odd()
        self.bare = nn.Parameter(torch.tensor([0.5, 2.0, 1.0, 3.0]))
        groups = [
            {"params": list(self.model.used.parameters())},
            {"params": list(self.model.never_used.parameters()), "lr": 0.3},
            {"params": [self.bare, *self.model.norm.parameters()], "lr": 0.002},
        ]
        self.optimizer = make(groups, lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=3)
        self.loader = Loader(0)
        self.fired: list[str] = []
        self._hook()

    def _hook(self) -> None:
        optimizer, fired = self.optimizer, self.fired
        optimizer.register_step_pre_hook(lambda *_: fired.append("step pre"))
        optimizer.register_step_post_hook(lambda *_: fired.append("step post"))

    def add_to(self, checkpointer: ss.Checkpointer) -> None:
        checkpointer.add("model", self.model)
        checkpointer.add("optimizer", self.optimizer)
        checkpointer.add("bare", {"bare": self.bare})
        checkpointer.add("lr_scheduler", self.scheduler)
        checkpointer.add("loader", self.loader)
        checkpointer.add("rng", ss.RNG())

    def train(self, step: int) -> float:
        self.optimizer.zero_grad()
        out = self.model(self.loader.next_batch() + torch.rand(5))
        loss = (out * self.bare).square().mean()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())

    def everything(self) -> dict[str, Any]:
        """Return all state there is, also what nobody reads: gradients, and which state exists."""
        named = {**dict(self.model.named_parameters()), "bare": self.bare}
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        return {
            "model": dict(self.model.state_dict()),
            "bare": self.bare,
            "gradients": {name: p.grad for name, p in named.items()},
            "state": {
                n: self.optimizer.state[p] for n, p in named.items() if p in self.optimizer.state
            },
            "groups": groups,
            "scheduler": self.scheduler.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": [torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)],
            "fired": self.fired,
            "training": self.model.training,
        }


def sgd(groups: Any, lr: float) -> torch.optim.Optimizer:  # noqa: ANN401
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "sgd": sgd,
    "adagrad": torch.optim.Adagrad,
}

Save = Callable[[int], object]


def history(run: Run, save: Save) -> list[Any]:
    """Run a job to its end; step 0 is a save before the first optimizer step."""
    save(0)
    seen = []
    for step in range(1, NUM_STEPS + 1):
        seen.append(run.train(step))
        save(step)
        seen.append(snapshot(run.everything()))
    return seen


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saves_leave_no_trace(tmp_path: Path, name: str, mode: Literal["async", "sync"]) -> None:
    straight = history(Run(OPTIMIZERS[name]), lambda _: None)
    run = Run(OPTIMIZERS[name])
    with ss.Checkpointer(tmp_path, mode=mode) as checkpointer:
        run.add_to(checkpointer)
        checkpointer.prewarm()
        saving = history(run, checkpointer.save)
    assert_identical(straight, saving)
    assert {*run.fired} == {"step pre", "step post"}
    assert len(ss.open(tmp_path).steps()) == NUM_STEPS + 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restore_steps_no_optimizer_and_makes_no_state(tmp_path: Path, name: str) -> None:
    run = Run(OPTIMIZERS[name])
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        run.add_to(checkpointer)
        checkpointer.save(0)
        before = snapshot(run.everything())
        for step in range(1, 4):
            run.train(step)
        checkpointer.save(3)
    after = snapshot(run.everything())
    for step, expected in ((0, before), (3, after)):
        other = Run(OPTIMIZERS[name])
        with ss.Checkpointer(tmp_path) as checkpointer:
            other.add_to(checkpointer)
            checkpointer.restore(step)
        assert other.fired == []
        found = other.everything()
        for part in ("model", "bare", "state", "groups", "scheduler", "loader", "rng"):
            assert find_difference(expected[part], found[part], part) is None


def test_a_capture_through_torch_changes_the_run(tmp_path: Path) -> None:
    """The way not taken: `get_optimizer_state_dict` steps the optimizer and fires its hooks."""
    model = nn.Linear(5, 4)
    straight, capturing = (_with_momentum(model) for _ in range(2))
    with ss.Checkpointer(tmp_path, mode="sync") as checkpointer:
        owner, optimizer = capturing
        stock = (lambda: get_optimizer_state_dict(owner, optimizer), lambda _: None)
        checkpointer.add("optimizer", stock)
        checkpointer.save(0)
    found = find_difference(dict(straight[1].state), dict(capturing[1].state))
    assert found is not None


def _with_momentum(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)
