"""Optimizers with code of their own: it runs, and what would be lost is refused with a way on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.components._memory import ALONE, Sharing, keys_of, restore, saved_of
from tests.components._roundtrip import same
from torch import nn

from stepseal.components._capture import capture
from stepseal.components._codecs_registry import register, register_codec
from stepseal.components._optimizer_own import OwnOptimizerComponent, optimizer_component
from stepseal.components._optimizers import OptimizerComponent
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState

if TYPE_CHECKING:
    from collections.abc import Callable


class Scaled(torch.optim.SGD):
    max_lr = 0.0

    def load_state_dict(self, state_dict: Any) -> None:  # noqa: ANN401
        super().load_state_dict(state_dict)
        self.max_lr = max(group["lr"] for group in self.param_groups)


class Counting(torch.optim.Adam):
    """Has a state dict of its own."""

    calls = 0

    def state_dict(self) -> Any:  # noqa: ANN401
        return {**super().state_dict(), "calls": self.calls}

    def load_state_dict(self, state_dict: Any) -> None:  # noqa: ANN401
        self.calls = state_dict["calls"]
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})


class Wrapping(torch.optim.Optimizer):
    """Keeps the moments in an inner optimizer."""

    def __init__(self, params: Any, place: Callable[[Any], Any]) -> None:  # noqa: ANN401
        super().__init__(params, {"lr": 0.1})
        self.inner = place(torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9))


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape or (2, 2), dtype=dtype))


def stepped(optimizer: torch.optim.Optimizer, count: int = 2) -> Any:  # noqa: ANN401
    for number in range(count):
        for group in optimizer.param_groups:
            for one in group["params"]:
                one.grad = torch.full_like(one, number + 1.0)
        optimizer.step()
    return optimizer


def added(optimizer: torch.optim.Optimizer, sharing: Sharing | None = None) -> Any:  # noqa: ANN401
    return optimizer_component("optimizer", optimizer, dict, sharing=sharing)


def through(source: torch.optim.Optimizer, target: torch.optim.Optimizer) -> None:
    restore(added(target), [capture(added(source), ALONE, None)])


def test_a_load_of_its_own_runs() -> None:
    target = Scaled([parameter()], lr=0.1)
    through(stepped(Scaled([parameter()], lr=0.5, momentum=0.9)), target)
    assert target.max_lr == 0.5


def test_the_report_names_the_copy() -> None:
    mine = added(stepped(Scaled([parameter()], momentum=0.9)))
    plan = mine.plan(saved_of([capture(mine, ALONE, None)], ALONE), ALONE)
    assert plan.note == "through Scaled.load_state_dict, by way of one private copy"


def test_what_its_load_casts_is_put_back() -> None:
    source, target = (Scaled([parameter(dtype=torch.bfloat16)]) for _ in range(2))
    moments = torch.rand(2, 2)
    source.state[source.param_groups[0]["params"][0]] = {"momentum_buffer": moments}
    through(source, target)
    assert same(target.state[target.param_groups[0]["params"][0]]["momentum_buffer"], moments)


def test_load_hooks_run_and_may_translate() -> None:
    source, target = (torch.optim.Adam([parameter()]) for _ in range(2))
    stepped(source)
    seen: list[Any] = []

    def before(optimizer: torch.optim.Optimizer, state: Any) -> Any:  # noqa: ANN401
        seen.append(set(state))
        groups = [{**group, "lr": group["lr"] * 2} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    target.register_load_state_dict_pre_hook(before)
    target.register_load_state_dict_post_hook(lambda one: seen.append(len(one.state)))
    through(source, target)
    assert seen == [{"state", "param_groups"}, 1]
    assert target.param_groups[0]["lr"] == 2e-3
    assert same(list(target.state.values()), list(source.state.values()))


def test_its_setstate_runs() -> None:
    class Derived(torch.optim.SGD):
        def __setstate__(self, state: Any) -> None:  # noqa: ANN401
            super().__setstate__(state)  # type: ignore[no-untyped-call]
            self.total = sum(group["lr"] for group in self.param_groups)

    target = Derived([parameter()], lr=0.1)
    through(Derived([parameter()], lr=0.5), target)
    assert target.total == 0.5


@pytest.mark.parametrize(
    ("place", "where", "found"),
    [
        (lambda one: one, "inner", lambda outer: outer.inner),
        (lambda one: [one], r"inner\[0\]", lambda outer: outer.inner[0]),
        (lambda one: {"a": one}, r"inner\['a'\]", lambda outer: outer.inner["a"]),
    ],
)
def test_an_inner_optimizer_with_state_of_its_own_is_refused(
    place: Callable[[Any], Any], where: str, found: Callable[[Any], Any]
) -> None:
    outer = Wrapping([parameter()], place)
    with pytest.raises(InvalidInput, match=rf"Add that one instead: .*optimizer\.{where}"):
        added(outer)
    inner = stepped(found(outer))
    target = Wrapping([parameter()], lambda one: one)
    through(inner, target.inner)  # the advice
    assert same(list(target.inner.state.values()), list(inner.state.values()))


def test_a_wrapper_that_shares_the_state_is_stored() -> None:
    outer = Wrapping([parameter()], lambda one: one)
    outer.state = outer.inner.state
    assert isinstance(added(outer), OptimizerComponent)


ADAM = torch.optim.Adam
OTHERS: list[tuple[Any, Any, bool]] = [
    (ADAM, torch.optim.AdamW, True),
    (ADAM, torch.optim.SGD, False),
    (torch.optim.SGD, ADAM, False),
    (ADAM, torch.optim.RAdam, False),
    (torch.optim.RAdam, ADAM, False),
]


@pytest.mark.parametrize(("saved", "live", "fits"), OTHERS)
def test_another_class_is_refused_before_anything_changes(
    saved: type[Any], live: type[Any], fits: bool
) -> None:
    source, target = stepped(saved([parameter()], lr=0.5)), live([parameter()], lr=0.1)
    if fits:
        through(source, target)
        assert same(list(target.state.values()), list(source.state.values()))
        return
    with pytest.raises(StateMismatch, match=r"policies=\{'optimizer': 'skip'\}") as caught:
        through(source, target)
    assert f"expected (live) {live.__name__}, found {saved.__name__}" in caught.value.problems[0]
    assert not target.state


def test_a_state_dict_of_its_own_is_stored_through_its_own_pair() -> None:
    source, target = (Counting([parameter(dtype=torch.bfloat16)]) for _ in range(2))
    stepped(source).calls = 3
    source.state[source.param_groups[0]["params"][0]]["exp_avg"] = torch.rand(2, 2)
    assert isinstance(added(source), OwnOptimizerComponent)
    through(source, target)
    assert target.calls == 3
    assert same(list(target.state.values()), list(source.state.values()))


def test_its_own_pair_is_compared_by_class_names_and_shapes() -> None:
    captured = capture(added(stepped(Counting([parameter()]))), ALONE, None)
    saved = saved_of([captured], ALONE)
    with pytest.raises(StateMismatch, match=r"shape: expected \(live\) \[3\]"):
        added(Counting([parameter(3)])).plan(saved, ALONE)

    class Other(Counting):
        pass

    saved = saved_of([captured], ALONE)
    with pytest.raises(StateMismatch, match=r"class: expected \(live\) Other, found Counting"):
        added(Other([parameter()])).plan(saved, ALONE)


def test_state_dict_hooks_make_a_state_dict_of_its_own() -> None:
    source, target = (torch.optim.SGD([parameter()]) for _ in range(2))
    source.register_state_dict_post_hook(lambda _, state: {**state, "extra": 5})
    target.register_state_dict_post_hook(lambda _, state: state)
    seen: list[Any] = []
    target.register_load_state_dict_pre_hook(lambda _, state: seen.append(state["extra"]))
    through(source, target)
    assert seen == [5]


def test_state_under_ints_and_of_the_whole_optimizer_comes_back() -> None:
    source, target = (torch.optim.SGD([parameter()]) for _ in range(2))
    one, other = (optimizer.param_groups[0]["params"][0] for optimizer in (source, target))
    source.state[one] = {0: torch.ones(2), 1: "text"}
    source.state["global_step"] = 3  # type: ignore[index]
    target.state["gone"] = 1  # type: ignore[index]
    through(source, target)
    assert same(target.state[other], source.state[one])
    assert list(target.state) == [other, "global_step"]
    assert target.state["global_step"] == 3  # type: ignore[index]


def test_state_that_is_no_dict_is_refused() -> None:
    source = torch.optim.SGD([parameter()])
    source.state[source.param_groups[0]["params"][0]] = torch.ones(1)
    with pytest.raises(UnsupportedState, match="as a pair that turns its state into such dicts"):
        capture(added(source), ALONE, None)


class Packed(torch.Tensor):
    """Wraps another tensor."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls: Any, codes: torch.Tensor) -> Any:  # noqa: ANN401
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes = codes

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        return NotImplemented


def test_a_wrapper_of_tensors_goes_through_its_codec() -> None:
    source, target = (torch.optim.SGD([parameter()]) for _ in range(2))
    one, other = (optimizer.param_groups[0]["params"][0] for optimizer in (source, target))
    source.state[one] = {"exp_avg": Packed(torch.ones(2, 2, dtype=torch.uint8))}
    register_codec(Packed, encode=lambda packed: packed.codes, decode=Packed, name="test.Packed")
    captured = capture(added(source), ALONE, None)
    assert keys_of(captured) == []
    restore(added(target), [captured])
    assert isinstance(target.state[other]["exp_avg"], Packed)
    assert same(target.state[other]["exp_avg"].codes, source.state[one]["exp_avg"].codes)


class Flat(Packed):
    """Says how it is taken apart."""

    def __tensor_flatten__(self) -> tuple[list[str], object]:
        return ["codes"], {"signed": True}

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, *_: object) -> Flat:  # noqa: ANN401
        assert context == {"signed": True}
        return Flat(inner["codes"])


def test_an_unknown_wrapper_is_refused_with_advice_that_works() -> None:
    source, target = (torch.optim.SGD([parameter()]) for _ in range(2))
    one, other = (optimizer.param_groups[0]["params"][0] for optimizer in (source, target))
    source.state[one] = {"exp_avg": Flat(torch.ones(2, 2, dtype=torch.uint8))}
    with pytest.raises(UnsupportedState, match=r"stepseal\.register\(Flat\)"):
        capture(added(source), ALONE, None)
    register(Flat, name="test.Flat")
    through(source, target)
    assert isinstance(target.state[other]["exp_avg"], Flat)
    assert same(target.state[other]["exp_avg"].codes, source.state[one]["exp_avg"].codes)


def test_a_class_that_never_calls_the_base_class_is_stored() -> None:
    class Bare(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:  # noqa: ANN401
            self.param_groups = [{"params": list(params), "lr": 0.1}]
            self.state: Any = {}
            self.defaults = {}

    source, target = Bare([parameter()]), Bare([parameter()])
    source.param_groups[0]["lr"] = 0.5
    through(source, target)
    assert target.param_groups[0]["lr"] == 0.5


def test_groups_that_share_a_tensor_lr_get_their_own_where_it_differs() -> None:
    def made() -> torch.optim.Optimizer:
        return ADAM([{"params": [parameter()]}, {"params": [parameter()]}], lr=torch.tensor(0.1))

    source, target = made(), made()
    through(source, target)
    assert target.param_groups[0]["lr"] is target.param_groups[1]["lr"]
    source.param_groups[0]["lr"] = torch.tensor(0.25)
    through(source, target)
    assert [group["lr"] for group in target.param_groups] == [0.25, torch.tensor(0.1)]
