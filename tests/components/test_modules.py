from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from tests.components._memory import ALONE, keys_of, restore, saved_of, world
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stepseal.components._capture import capture
from stepseal.components._modules import ModuleComponent, parameter_names, unwrap
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState


class Tied(nn.Module):
    """Tied weights, a buffer of each kind, and extra state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("cache", torch.rand(2), persistent=False)
        self.calls = seed

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls, "scale": torch.tensor([float(self.calls)])}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        assert state["scale"].item() == self.calls


class Rescaled(nn.Linear):
    """A module whose state dict is made anew by a hook."""

    def __init__(self, factor: float) -> None:
        super().__init__(2, 2)
        hooks: Any = self
        hooks.register_state_dict_post_hook(self._double)
        hooks.register_load_state_dict_pre_hook(self._halve)
        nn.init.constant_(self.weight, factor)

    @staticmethod
    def _double(module: nn.Module, state: dict[str, Any], prefix: str, _meta: object) -> None:
        state[prefix + "weight"] = state[prefix + "weight"] * 2

    @staticmethod
    def _halve(module: nn.Module, state: dict[str, Any], prefix: str, *_rest: object) -> None:
        state[prefix + "weight"] = state[prefix + "weight"] / 2


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def compiled(module: nn.Module) -> nn.Module:
    wrapped = torch.compile(module)
    assert isinstance(wrapped, nn.Module)
    return wrapped


def test_a_module_comes_back_in_place() -> None:
    source, target = Tied(1), Tied(2)
    captured = capture(ModuleComponent("model", source), ALONE, None)
    assert keys_of(captured) == [
        "embed.weight",
        "head.weight",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    ]
    weight, cache = target.embed.weight, target.get_buffer("cache").clone()

    restore(ModuleComponent("model", target), [captured])

    assert target.embed.weight is target.head.weight is weight
    assert torch.equal(weight, source.embed.weight)
    assert torch.equal(target.get_buffer("cache"), cache)
    assert target.calls == 1


def test_keys_list_everything_that_is_stored() -> None:
    assert ModuleComponent("model", Tied(1)).keys()[-2:] == (
        "norm.num_batches_tracked",
        "_extra_state",
    )


def test_extra_state_has_a_copy_for_stock_readers() -> None:
    captured = capture(ModuleComponent("critic", Tied(4)), ALONE, None)
    (copy,) = captured.bytes_copies
    assert copy.entries == (("critic", "_extra_state"),)
    assert torch.load(io.BytesIO(copy.data))["calls"] == 4


def test_what_a_hook_makes_anew_goes_through_load_state_dict() -> None:
    source, target = Rescaled(3.0), Rescaled(1.0)
    captured = capture(ModuleComponent("model", source), ALONE, None)
    assert saved_of([captured], ALONE).tree is None
    weight = target.weight

    restore(ModuleComponent("model", target), [captured])

    assert target.weight is weight
    assert torch.equal(target.weight, source.weight)
    assert torch.equal(target.bias, source.bias)


@pytest.mark.slow  # the first torch.compile imports its compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_leave_no_trace_in_keys() -> None:
    inner = nn.Sequential(compiled(checkpoint_wrapper(block())), block())
    component = ModuleComponent("model", compiled(inner))
    plain = nn.Sequential(block(), block())
    assert component.keys() == ModuleComponent("model", plain).keys()
    names = {name for name, _ in plain.named_parameters()}
    assert set(parameter_names(component.module).values()) == names
    captured = capture(component, ALONE, None)
    restore(ModuleComponent("model", plain), [captured])
    assert torch.equal(plain[0][0].weight, unwrap(inner[0])[0].weight)  # type: ignore[index]
    restore(component, [captured])


def test_a_user_module_named_like_a_wrapper_keeps_its_keys() -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)

    keys = ModuleComponent("model", DistributedDataParallel()).keys()
    assert keys == ("module.weight", "module.bias")


def test_fsdp1_is_refused_with_advice() -> None:
    class FullyShardedDataParallel(nn.Module):
        pass

    with pytest.raises(InvalidInput, match="fully_shard") as caught:
        ModuleComponent("model", nn.Sequential(FullyShardedDataParallel()))
    assert caught.value.path == "0"


def test_lazy_modules_are_refused() -> None:
    with pytest.raises(UnsupportedState, match="forward"):
        capture(ModuleComponent("model", nn.LazyLinear(3)), ALONE, None)


def test_another_architecture_is_refused_with_every_difference() -> None:
    captured = capture(ModuleComponent("model", nn.Linear(2, 3)), ALONE, None)
    with pytest.raises(StateMismatch) as caught:
        ModuleComponent("model", nn.Linear(3, 2, bias=False)).plan(
            saved_of([captured], ALONE), ALONE
        )
    assert caught.value.problems == (
        "weight: shape: expected (live) [2, 3], found [3, 2]",
        "bias: unexpected in the checkpoint",
    )


def test_replicas_are_written_once() -> None:
    first, second = (
        capture(ModuleComponent("model", Tied(1)), topology, None) for topology in world(2)
    )
    assert len(first.tensors) == 7
    assert (second.tensors, second.trees, second.bytes_copies) == ((), (), ())
    assert first.fingerprint == second.fingerprint
