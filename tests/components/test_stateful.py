"""Objects with `state_dict`, pairs, plain values, and every LR scheduler of torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._roundtrip import same, saved, world
from torch.optim import lr_scheduler

from stepseal.components._capture import capture
from stepseal.components._stateful import (
    LRSchedulerComponent,
    PairComponent,
    StatefulComponent,
    ValueComponent,
)
from stepseal.components._types import HasStateDict, Sharing
from stepseal.errors import InvalidInput, StateMismatch

if TYPE_CHECKING:
    from collections.abc import Callable


class Counter:
    def __init__(self) -> None:
        self.count = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded: Any = state_dict


def test_a_stateful_object_loads_a_new_value() -> None:
    counter = Counter()
    assert isinstance(counter, HasStateDict)
    component = StatefulComponent("c", counter)
    found = saved(capture(component, world(1), None))
    counter.count.fill_(3)
    plan = component.plan(found, world(1))
    assert not hasattr(counter, "loaded")
    plan.apply()
    assert torch.equal(counter.loaded["count"], torch.zeros(2))
    assert counter.loaded["count"].data_ptr() != counter.count.data_ptr()


def test_an_object_without_the_two_methods_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"without state_dict.*\(get, set\)"):
        StatefulComponent("c", object())  # type: ignore[arg-type]


def test_a_pair_gets_and_sets() -> None:
    box = {"x": (1, 2)}
    component = PairComponent("c", (lambda: box["x"], lambda value: box.update(x=value)))
    found = saved(capture(component, world(1), None))
    box["x"] = (0, 0)
    component.plan(found, world(1)).apply()
    assert box == {"x": (1, 2)}
    for wrong in ((print,), (print, 3), print, [print, print]):
        with pytest.raises(InvalidInput, match=r"\(get, set\)"):
            PairComponent("c", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after"), [({"b": 1, "a": [2]}, {"z": 0}), ([1, {"a": 2}], []), ([], [1, 2])]
)
def test_a_plain_value_is_restored_in_place(
    before: list[Any] | dict[str, Any], after: list[Any] | dict[str, Any]
) -> None:
    found = saved(capture(ValueComponent("c", before), world(1), None))
    ValueComponent("c", after).plan(found, world(1)).apply()
    assert same(after, before)
    assert after is not before


def test_a_plain_value_of_another_type_is_refused() -> None:
    found = saved(capture(ValueComponent("c", [1]), world(1), None))
    with pytest.raises(StateMismatch, match=r"expected dict, found list"):
        ValueComponent("c", {}).plan(found, world(1))
    for value in (3, "x", (1,), None):
        with pytest.raises(InvalidInput, match=r"\(get, set\) pair"):
            ValueComponent("c", value)


def test_a_plain_value_takes_tensors_to_the_device_of_the_live_ones() -> None:
    before = {"a": [torch.ones(2)], "p": torch.nn.Parameter(torch.ones(1)), "new": torch.ones(1)}
    found = saved(capture(ValueComponent("c", before), world(1), None))
    live = {
        "a": [torch.ones(2, device="meta")],
        "p": torch.nn.Parameter(torch.ones(1, device="meta")),
    }
    ValueComponent("c", live).plan(found, world(1)).apply()
    restored: Any = live
    assert restored["a"][0].device.type == restored["p"].device.type == "meta"
    assert type(restored["p"]) is torch.nn.Parameter
    assert restored["new"].device.type == "cpu"


class Warm:
    def __init__(self) -> None:
        self.steps = 3

    def __call__(self, epoch: float) -> float:
        self.steps += 1
        return 1 / (epoch + self.steps)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LambdaLR object": lambda o: lr_scheduler.LambdaLR(o, Warm()),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 3),
    "CyclicLR function": lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 3, scale_fn=Warm()),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 20),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 9),
}


def _made(name: str, num_steps: int) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    scheduler = SCHEDULERS[name](optimizer)
    _advance(optimizer, scheduler, num_steps)
    return optimizer, scheduler


def _advance(
    optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, num_steps: int
) -> list[float]:
    rates = []
    for step in range(num_steps):
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(float(step % 2))
        else:
            scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_the_table_has_every_scheduler_of_torch() -> None:
    assert {name.split()[0] for name in SCHEDULERS} == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_restored_scheduler_goes_on_exactly(name: str) -> None:
    old_optimizer, old = _made(name, 5)
    found = saved(capture(LRSchedulerComponent("lr_scheduler", old), world(2), None), 2)
    new_optimizer, new = _made(name, 0)
    LRSchedulerComponent("lr_scheduler", new).plan(found, world(3)).apply()
    new_optimizer.load_state_dict(old_optimizer.state_dict())
    assert same(new.state_dict(), old.state_dict())
    assert _advance(new_optimizer, new, 6) == _advance(old_optimizer, old, 6)


@pytest.mark.parametrize(
    ("before", "after"), [("StepLR", "ExponentialLR"), ("StepLR", "SequentialLR")]
)
def test_the_state_of_another_scheduler_is_refused(before: str, after: str) -> None:
    found = saved(capture(LRSchedulerComponent("c", _made(before, 1)[1]), world(1), None))
    with pytest.raises(StateMismatch, match="another kind of LR scheduler"):
        LRSchedulerComponent("c", _made(after, 0)[1]).plan(found, world(1))


def test_other_parts_and_groups_of_a_scheduler_are_refused() -> None:
    found = saved(capture(LRSchedulerComponent("c", _made("SequentialLR", 1)[1]), world(1), None))
    optimizer = _made("StepLR", 0)[0]
    parts = [lr_scheduler.ConstantLR(optimizer), lr_scheduler.StepLR(optimizer, 2)]
    live = lr_scheduler.SequentialLR(optimizer, parts, [3])
    with pytest.raises(StateMismatch, match=r"_schedulers.*\[1\].*another kind"):
        LRSchedulerComponent("c", live).plan(found, world(1))


def test_a_scheduler_is_replicated_unless_declared() -> None:
    scheduler = _made("StepLR", 1)[1]
    assert LRSchedulerComponent("c", scheduler).sharing(world(4)) is Sharing.REPLICATED
    declared = LRSchedulerComponent("c", scheduler, Sharing.PER_RANK)
    assert declared.sharing(world(4)) is Sharing.PER_RANK
    assert capture(declared, world(2, 1), None).bytes_copies == ()


def test_copies_for_stock_readers_hold_each_distinct_value_once() -> None:
    scheduler = _made("StepLR", 3)[1]
    captured = capture(LRSchedulerComponent("lr_scheduler", scheduler), world(1), None)
    found = {
        key: torch.load(io.BytesIO(copy.data), weights_only=True)
        for copy in captured.bytes_copies
        for name, key in copy.entries
        if name == "lr_scheduler"
    }
    assert same({key: found[key] for key in scheduler.state_dict()}, scheduler.state_dict())
    assert len({copy.data for copy in captured.bytes_copies}) == len(captured.bytes_copies)
    assert len(captured.bytes_copies) < len(found)
