"""All of torch's optimizers and LR schedulers go on, bit for bit, in fresh objects."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._memory import ALONE, restore
from tests.components._roundtrip import same
from torch import nn, optim
from torch.optim import lr_scheduler

from stepseal.components._capture import capture
from stepseal.components._modules import ModuleComponent
from stepseal.components._optimizers import OptimizerComponent
from stepseal.components._stateful import LRSchedulerComponent

if TYPE_CHECKING:
    from collections.abc import Callable

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.1),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.1, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=torch.tensor(0.1)),
    "Adamax": lambda p: optim.Adamax(p, lr=0.1),
    "ASGD": lambda p: optim.ASGD(p, lr=0.1),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, history_size=3),
    "Muon": lambda p: optim.Muon([one for one in p if one.ndim == 2], lr=0.1),
    "NAdam": lambda p: optim.NAdam(p, lr=0.1),
    "RAdam": lambda p: optim.RAdam(p, lr=0.1),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.1),
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=0.1),
}
SLOW = {"Muon"}  # imports a compiler

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


class Job:
    """A model, its optimizer and scheduler."""

    def __init__(self, seed: int, optimizer: str, scheduler: str | None = None) -> None:
        torch.manual_seed(seed)
        sparse = optimizer == "SparseAdam"
        layers = [nn.Embedding(4, 3, sparse=True)] if sparse else [nn.Linear(3, 4), nn.Linear(4, 2)]
        self.model = nn.Sequential(*layers)
        self.optimizer = OPTIMIZERS[optimizer](list(self.model.parameters()))
        self.scheduler = SCHEDULERS[scheduler](self.optimizer) if scheduler else None
        self._sparse = sparse

    def step(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        batch = torch.rand(5, 3, generator=generator)
        if self._sparse:
            batch = torch.randint(4, (5,), generator=generator)

        def closure() -> torch.Tensor:
            self.optimizer.zero_grad()
            loss: torch.Tensor = self.model(batch).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = closure()
        self.optimizer.step(closure if isinstance(self.optimizer, optim.LBFGS) else None)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(loss.detach().item())
        elif self.scheduler is not None:
            self.scheduler.step()

    def components(self) -> list[Any]:
        modules = {"model": self.model}
        found: list[Any] = [
            ModuleComponent("model", self.model),
            OptimizerComponent("optimizer", self.optimizer, lambda: modules),
        ]
        if self.scheduler is not None:
            found.append(LRSchedulerComponent("lr_scheduler", self.scheduler))
        return found

    def state(self) -> Any:  # noqa: ANN401 - any state
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        return [dict(self.model.state_dict()), self.optimizer.state_dict(), rates]


def check_exact(optimizer: str, scheduler: str | None) -> None:
    source, target = Job(1, optimizer, scheduler), Job(2, optimizer, scheduler)
    for number in range(3):
        source.step(number)
    captures = [capture(one, ALONE, None) for one in source.components()]
    for component, captured in zip(target.components(), captures, strict=True):
        restore(component, [captured])
    assert same(target.state(), source.state())
    for number in range(3, 6):
        source.step(number)
        target.step(number)
    assert same(target.state(), source.state())


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow) if one in SLOW else one for one in OPTIMIZERS],
)
def test_optimizers_go_on_exactly(name: str) -> None:
    if not hasattr(optim, name):
        pytest.skip(f"this torch has no {name}")
    check_exact(name, None)


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])  # AdamW has a tensor lr
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_go_on_exactly(name: str, optimizer: str) -> None:
    check_exact(optimizer, name)


def test_none_is_left_out() -> None:
    found = {
        name
        for name, one in vars(optim).items()
        if isinstance(one, type) and issubclass(one, optim.Optimizer) and one is not optim.Optimizer
    }
    assert found <= OPTIMIZERS.keys()
    found = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler", "_LRScheduler")}
    assert found == SCHEDULERS.keys()


def test_fp32_moments_of_bf16_parameters_keep_every_bit() -> None:
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizers = [optim.Adam([parameter]), optim.Adam([parameter])]
    moments = torch.rand(3)
    optimizers[0].state[parameter] = {"step": torch.tensor(1.0), "exp_avg": moments}
    mine, other = (OptimizerComponent("o", one, dict) for one in optimizers)
    captured = capture(mine, ALONE, None)
    restore(other, [captured])
    assert same(optimizers[1].state[parameter]["exp_avg"], moments)
    optimizers[1].register_load_state_dict_post_hook(lambda _: None)
    optimizers[1].state.clear()
    restore(other, [captured])
    assert same(optimizers[1].state[parameter]["exp_avg"], copy.copy(moments))
