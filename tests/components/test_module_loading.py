"""Modules whose own code sees a load: it runs, and what it may not do is refused."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.components._memory import ALONE, Sharing, restore, saved_of
from torch import nn
from torch.nn.utils import parametrizations

from stepseal.components._capture import capture
from stepseal.components._modules import ModuleComponent
from stepseal.errors import InvalidInput, StateMismatch


class Codebook(nn.Module):
    """Refreshes on load what it derives from its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4, 3))
        self.refresh()

    def refresh(self) -> None:
        self.norms = self.codes.detach().norm(dim=1)

    def is_fresh(self) -> bool:
        return torch.equal(self.norms, self.codes.detach().norm(dim=1))


class ByLoad(Codebook):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = super().load_state_dict(*args, **kwargs)
        self.refresh()
        return result


class ByPart(Codebook):
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()


class ByHook(Codebook):
    def __init__(self) -> None:
        super().__init__()
        hooks: Any = self
        hooks.register_load_state_dict_post_hook(lambda module, _keys: module.refresh())


class Renaming(nn.Linear):
    """Calls its weight `kernel` in old checkpoints."""

    def __init__(self, rows: int = 2) -> None:
        super().__init__(2, rows, bias=False)
        hooks: Any = self
        hooks.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: object) -> None:
        if prefix + "kernel" in state:
            state[prefix + "weight"] = state.pop(prefix + "kernel")


class Old(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(2, 2, dtype=dtype))


def through(
    source: nn.Module, target: nn.Module, sharing: Sharing | None = None
) -> ModuleComponent:
    captured = capture(ModuleComponent("model", source, sharing=sharing), ALONE, None)
    component = ModuleComponent("model", target, sharing=sharing)
    restore(component, [captured])
    return component


@pytest.mark.parametrize("sharing", [None, Sharing.PER_RANK])
@pytest.mark.parametrize("cls", [ByLoad, ByPart, ByHook])
@pytest.mark.parametrize("nested", [False, True])
def test_a_modules_own_load_runs(
    cls: type[Codebook], sharing: Sharing | None, nested: bool
) -> None:
    if nested and cls is ByLoad:
        return  # torch, too, calls the load_state_dict of the root alone
    source, target = cls(), cls()
    codes = target.codes
    if nested:
        through(nn.Sequential(source), nn.Sequential(target), sharing)
    else:
        through(source, target, sharing)
    assert target.codes is codes
    assert torch.equal(codes, source.codes)
    assert target.is_fresh()


def test_the_report_names_the_copy() -> None:
    component = ModuleComponent("model", ByLoad())
    plan = component.plan(saved_of([capture(component, ALONE, None)], ALONE), ALONE)
    assert plan.note == "through ByLoad.load_state_dict, by way of one private copy"
    component = ModuleComponent("model", nn.BatchNorm1d(2))  # its override is torch's
    assert component.plan(saved_of([capture(component, ALONE, None)], ALONE), ALONE).note == ""


def test_nothing_changes_while_it_is_planned() -> None:
    source, target = ByLoad(), ByLoad()
    before = copy.deepcopy(target.state_dict())
    captured = capture(ModuleComponent("model", source), ALONE, None)
    plan = ModuleComponent("model", target).plan(saved_of([captured], ALONE), ALONE)
    assert set(plan.sinks) == {"codes"}
    assert torch.equal(target.codes, before["codes"])


def test_hooks_translate_old_keys_before_they_are_compared() -> None:
    old, new = Old(), Renaming()
    through(nn.Sequential(old), nn.Sequential(new))
    assert torch.equal(new.weight, old.kernel)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchs_own_hooks_translate() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        old = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(2, 3)))
    new = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    through(old, new)
    batch = torch.rand(4, 2)
    assert torch.equal(old(batch), new(batch))


def test_what_no_hook_sees_is_compared_before_anything_changes() -> None:
    captured = capture(ModuleComponent("model", nn.Sequential(Old(), nn.Linear(2, 2))), ALONE, None)
    target = nn.Sequential(Renaming(), nn.Linear(3, 2, bias=False))
    with pytest.raises(StateMismatch) as caught:
        ModuleComponent("model", target).plan(saved_of([captured], ALONE), ALONE)
    assert caught.value.problems == (
        "1.weight: shape: expected (live) [2, 3], found [2, 2]",
        "1.bias: unexpected in the checkpoint",
    )


def test_another_dtype_is_refused_before_anything_changes() -> None:
    captured = capture(ModuleComponent("model", ByLoad()), ALONE, None)
    with pytest.raises(StateMismatch, match="dtype"):
        ModuleComponent("model", ByLoad().double()).plan(saved_of([captured], ALONE), ALONE)


def test_a_translated_key_is_not_cast_in_silence() -> None:
    with pytest.raises(StateMismatch, match="weight: dtype: expected"):
        through(Old(torch.float64), Renaming())


def test_a_key_that_nobody_translates_is_refused() -> None:
    with pytest.raises(StateMismatch, match="load_state_dict"):
        through(nn.Linear(2, 2), Renaming())


def test_an_override_that_leaves_something_out_is_refused() -> None:
    class Lenient(nn.Linear):
        def load_state_dict(self, state_dict: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401
            return super().load_state_dict({"weight": state_dict["weight"]}, strict=False)

    with pytest.raises(StateMismatch, match="bias: the module's own load gave it no value"):
        through(Lenient(2, 2), Lenient(2, 2))


def test_a_wrapper_with_a_load_of_its_own_is_refused() -> None:
    class Wrapper(nn.DataParallel):  # type: ignore[type-arg]
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return super().load_state_dict(*args, **kwargs)

    wrapper = Wrapper(nn.Linear(1, 1))
    with pytest.raises(InvalidInput, match=r"Wrapper\.load_state_dict"):
        ModuleComponent("model", wrapper)
    ModuleComponent("model", wrapper.module)  # the advice


def test_extra_state_goes_through_an_override() -> None:
    class Counting(ByLoad):
        calls = 0

        def get_extra_state(self) -> int:
            return self.calls

        def set_extra_state(self, state: int) -> None:
            self.calls = state

    source, target = Counting(), Counting()
    source.calls = 3
    through(source, target)
    assert target.calls == 3
    assert target.is_fresh()
