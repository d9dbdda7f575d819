from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._memory import ALONE, Sharing, keys_of, restore, saved_of, world
from torch import nn

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._optimizers import OptimizerComponent
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState
from stepseal.layout import PayloadReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.components._types import CapturedComponent

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    "adamw-tensor-lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1)),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, history_size=3),
}
MUON = pytest.param("muon", marks=pytest.mark.slow)  # imports a compiler
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = lambda p: torch.optim.Muon([w for w in p if w.ndim == 2], lr=0.1)


def model(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return module


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    batch = torch.rand(5, 3, generator=torch.Generator().manual_seed(seed))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = module(batch).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    closure()
    optimizer.step(closure if isinstance(optimizer, torch.optim.LBFGS) else None)  # type: ignore[arg-type]


def component(
    optimizer: torch.optim.Optimizer, sharing: Sharing | None = None, **modules: nn.Module
) -> OptimizerComponent:
    return OptimizerComponent("optimizer", optimizer, lambda: modules, sharing=sharing)


def same(a: Any, b: Any) -> bool:  # noqa: ANN401 - any state
    """Return whether two states are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and bool(a == b)


def state_of(optimizer: torch.optim.Optimizer) -> Any:  # noqa: ANN401 - any state
    return optimizer.state_dict()


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("name", [name if name != "muon" else MUON for name in OPTIMIZERS])
def test_training_goes_on_as_if_nothing_had_happened(name: str, steps_before: int) -> None:
    source = model(1)
    optimizer = OPTIMIZERS[name](list(source.parameters()))
    for number in range(3):
        step(source, optimizer, number)
    captured = capture(component(optimizer, model=source), ALONE, Arena())
    weights = copy.deepcopy(source.state_dict())

    target = model(2)
    resumed = OPTIMIZERS[name](list(target.parameters()))
    for number in range(steps_before):
        step(target, resumed, number + 10)
    target.load_state_dict(weights)
    restore(component(resumed, model=target), [captured])

    assert same(state_of(resumed), state_of(optimizer))
    for number in range(3, 5):
        step(source, optimizer, number)
        step(target, resumed, number)
    assert same(dict(target.state_dict()), dict(source.state_dict()))
    assert same(state_of(resumed), state_of(optimizer))


def test_keys_are_those_of_torchtitan() -> None:
    source = model(1)
    optimizer = OPTIMIZERS["adam"](list(source.parameters()))
    step(source, optimizer, 0)
    captured = capture(component(optimizer, model=source), ALONE, None)
    assert keys_of(captured)[:4] == [
        "state.0.weight.step",
        "state.0.weight.exp_avg",
        "state.0.weight.exp_avg_sq",
        "state.0.bias.step",
    ]
    copies = {
        key: torch.load(io.BytesIO(item.data))
        for item in captured.bytes_copies
        for key in item.entries
    }
    assert copies["optimizer", "param_groups.2.bias.lr"] == 0.1
    assert copies["optimizer", "param_groups.0.weight.betas"] == (0.9, 0.999)
    options = set(optimizer.param_groups[0]) - {"params"}
    assert len(copies) == 4 * len(options)
    assert len(captured.bytes_copies) < len(options)


def test_scalar_state_has_copies_for_stock_readers() -> None:
    source = model(1)
    optimizer = OPTIMIZERS["lbfgs"](list(source.parameters()))
    step(source, optimizer, 0)
    captured = capture(component(optimizer, model=source), ALONE, None)
    entries = {key for item in captured.bytes_copies for _, key in item.entries}
    assert "state.0.weight.n_iter" in entries


class Recorder:
    """Notes every hook that fires."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.fired: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: self.fired.append("step pre"))
        optimizer.register_step_post_hook(lambda *_: self.fired.append("step post"))
        optimizer.register_state_dict_pre_hook(lambda *_: self.fired.append("state_dict pre"))
        optimizer.register_state_dict_post_hook(lambda *_: self._note("state_dict post"))
        optimizer.register_load_state_dict_pre_hook(lambda *_: self._note("load pre"))
        optimizer.register_load_state_dict_post_hook(lambda *_: self._note("load post"))

    def _note(self, name: str) -> None:
        self.fired.append(name)


@pytest.mark.parametrize("num_steps", [0, 2])
@pytest.mark.parametrize("name", ["sgd", "momentum", "amsgrad", "adagrad", "lbfgs"])
def test_saving_never_changes_the_run(name: str, num_steps: int) -> None:
    source = model(1)
    optimizer = OPTIMIZERS[name](list(source.parameters()))
    for number in range(num_steps):
        step(source, optimizer, number)
    before = copy.deepcopy(dict(optimizer.state))
    objects = {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()}
    options = copy.deepcopy(optimizer.param_groups)
    grads = [None if p.grad is None else p.grad.clone() for p in source.parameters()]
    versions = [p._version for p in source.parameters()]
    recorder, rng = Recorder(optimizer), torch.get_rng_state()

    capture(component(optimizer, model=source), ALONE, Arena())
    capture(component(optimizer, model=source), ALONE, None)

    assert recorder.fired == []
    assert {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()} == objects
    assert same(list(before.values()), list(optimizer.state.values()))
    assert same(options, optimizer.param_groups)
    assert same(grads, [p.grad for p in source.parameters()])
    assert versions == [p._version for p in source.parameters()]
    assert torch.equal(rng, torch.get_rng_state())


def test_planning_changes_nothing_and_restoring_fires_load_hooks_alone() -> None:
    source, target = model(1), model(1)
    optimizer = OPTIMIZERS["adam"](list(source.parameters()))
    step(source, optimizer, 0)
    captured = capture(component(optimizer, model=source), ALONE, None)
    fresh = OPTIMIZERS["adam"](list(target.parameters()))
    recorder = Recorder(fresh)
    component(fresh, model=target).plan(saved_of([captured], ALONE), ALONE)
    assert not fresh.state
    assert recorder.fired == []
    restore(component(fresh, model=target), [captured])
    assert recorder.fired == ["load pre", "load post"]
    assert len(fresh.state) == 4


def test_live_state_is_filled_in_place_and_surplus_state_is_removed() -> None:
    source, target = model(1), model(1)
    optimizer = OPTIMIZERS["adam"](list(source.parameters()))
    next(source.parameters()).requires_grad_(False)
    step(source, optimizer, 0)
    captured = capture(component(optimizer, model=source), ALONE, None)
    assert "state.0.weight.step" not in keys_of(captured)

    live = OPTIMIZERS["adam"](list(target.parameters()))
    step(target, live, 0)
    weight, bias = target[0].parameters()  # type: ignore[index]
    tensor = live.state[bias]["exp_avg"]
    tensor.fill_(7.0)
    restore(component(live, model=target), [captured])
    assert weight not in live.state
    assert live.state[bias]["exp_avg"] is tensor
    assert tensor[0] != 7.0


def two_groups(first: nn.Module, second: nn.Module, loose: torch.Tensor) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        [
            {"params": list(first.parameters()), "lr": 0.5},
            {"params": [*second.parameters(), loose], "weight_decay": 0.25},
        ],
        lr=0.1,
    )


def test_parameters_are_named_over_all_modules() -> None:
    actor, critic, loose = nn.Linear(1, 1), nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    optimizer = two_groups(actor, critic, loose)
    (actor(torch.ones(1)) + critic(loose)).sum().backward()
    optimizer.step()
    mine = component(optimizer, model=actor, critic=critic)
    captured = capture(mine, ALONE, None)
    names = {key.rpartition(".")[0] for key in keys_of(captured)}
    assert names == {
        "state.weight",
        "state.bias",
        "state.critic.weight",
        "state.critic.bias",
        "state.bare.1.2",
    }
    optimizer.param_groups[0]["lr"] = 9.0
    optimizer.param_groups[1]["weight_decay"] = 9.0
    restore(mine, [captured])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.25]


def test_a_module_added_later_is_seen() -> None:
    modules: dict[str, nn.Module] = {}
    source = nn.Linear(1, 1)
    mine = OptimizerComponent("optimizer", torch.optim.Adam(source.parameters()), lambda: modules)
    source(torch.ones(1)).backward()
    mine.optimizer.step()
    assert keys_of(capture(mine, ALONE, None))[0] == "state.bare.0.0.step"
    modules["model"] = source
    assert keys_of(capture(mine, ALONE, None))[0] == "state.weight.step"


def test_other_groups_are_refused_with_every_difference() -> None:
    first, second, loose = nn.Linear(2, 1), nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    mine = component(two_groups(first, second, loose), model=first, critic=second)
    saved = saved_of([capture(mine, ALONE, None)], ALONE)

    one = component(torch.optim.Adam(first.parameters()), model=first)
    with pytest.raises(StateMismatch, match=r"expected \(live\) 1 groups, found 2"):
        one.plan(saved, ALONE)

    wider = nn.Linear(3, 1)
    other = component(two_groups(wider, nn.Linear(1, 1, bias=False), loose), model=wider)
    with pytest.raises(StateMismatch) as caught:
        other.plan(saved, ALONE)
    assert caught.value.problems == (
        "param_groups[0]: weight: shape: expected (live) [1, 3], found [1, 2]",
        "param_groups[1]: bare.1.0: missing in the checkpoint",
        "param_groups[1]: bare.1.1: missing in the checkpoint",
        "param_groups[1]: critic.weight: unexpected in the checkpoint",
        "param_groups[1]: critic.bias: unexpected in the checkpoint",
        "param_groups[1]: bare.1.2: unexpected in the checkpoint",
    )


def test_state_of_another_dtype_is_refused() -> None:
    source, target = model(1), model(1).double()
    optimizer = OPTIMIZERS["adam"](list(source.parameters()))
    step(source, optimizer, 0)
    captured = capture(component(optimizer, model=source), ALONE, None)
    live = OPTIMIZERS["adam"](list(target.parameters()))
    for parameter in target.parameters():
        parameter.grad = torch.ones_like(parameter)
    live.step()
    with pytest.raises(StateMismatch, match="dtype") as caught:
        component(live, model=target).plan(saved_of([captured], ALONE), ALONE)
    assert len(caught.value.problems) == 8


def test_a_tensor_learning_rate_is_set_in_place() -> None:
    source = model(1)
    rate = torch.tensor(0.5)
    optimizer = torch.optim.Adam(source.parameters(), lr=rate)
    mine = component(optimizer, model=source)
    captured = capture(mine, ALONE, None)
    rate.fill_(0.0)
    restore(mine, [captured])
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_options_that_the_checkpoint_lacks_stay() -> None:
    source = model(1)
    optimizer = torch.optim.Adam(source.parameters())
    mine = component(optimizer, model=source)
    captured = capture(mine, ALONE, None)
    optimizer.param_groups[0]["newer"] = 3
    restore(mine, [captured])
    assert optimizer.param_groups[0]["newer"] == 3


def test_state_of_strangers_is_refused() -> None:
    source = model(1)
    optimizer = torch.optim.Adam(source.parameters())
    optimizer.state[torch.ones(1)] = {"step": 1}
    with pytest.raises(UnsupportedState, match=r"Remove it from optimizer\.state"):
        capture(component(optimizer, model=source), ALONE, None)


def test_an_optimizer_that_spreads_tensors_is_refused() -> None:
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        pass

    with pytest.raises(InvalidInput, match="FSDP2"):
        component(ZeroRedundancyOptimizer(model(1).parameters()))


def test_names_that_meet_are_refused() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.critic = nn.Linear(1, 1)

    actor, critic = Holder(), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()])
    with pytest.raises(UnsupportedState, match="a name of its own"):
        capture(component(optimizer, model=actor, critic=critic), ALONE, None)


def replica(rank: int, sharing: Sharing | None) -> tuple[nn.Module, OptimizerComponent]:
    module = model(rank)
    optimizer = OPTIMIZERS["adam"](list(module.parameters()))
    step(module, optimizer, rank)
    return module, component(optimizer, sharing, model=module)


def test_replicas_are_written_by_the_first_participant_alone() -> None:
    captures = [capture(replica(1, None)[1], topology, None) for topology in world(2)]
    first, second = captures
    assert len(first.tensors) == 12
    assert len(first.trees) == 1
    assert (second.tensors, second.trees, second.bytes_copies) == ((), (), ())
    assert first.fingerprint == second.fingerprint
    assert second.payload == PayloadReport("", writes=False)


def test_per_rank_optimizers_keep_their_own_state() -> None:
    captures: list[CapturedComponent] = []
    states: list[Mapping[str, Any]] = []
    for rank, topology in enumerate(world(2)):
        _, mine = replica(rank, Sharing.PER_RANK)
        captures.append(capture(mine, topology, None))
        states.append(copy.deepcopy(state_of(mine.optimizer)))
    assert all(captured.tensors == () for captured in captures)
    for rank, topology in enumerate(world(2)):
        module = model(5)
        fresh = OPTIMIZERS["adam"](list(module.parameters()))
        restore(component(fresh, Sharing.PER_RANK, model=module), captures, topology)
        assert same(state_of(fresh), states[rank])
