"""Restoring into plain dicts, lists and deques: the live objects stay, at any depth."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from tests.components._roundtrip import same, saved, world

from stepseal.components._capture import capture
from stepseal.components._codecs import register
from stepseal.components._stateful import ValueComponent
from stepseal.errors import StateMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepseal.components._trees import TreePlan


@register(name="in_place.Meter")
@dataclass
class Meter:
    total: torch.Tensor
    history: list[float]


@register(name="in_place.Frozen")
@dataclass(frozen=True)
class Frozen:
    weights: Any
    count: int


@register(name="in_place.Pair")
class Pair(NamedTuple):
    left: Any
    right: Any


def _plan(value: object, live: object) -> TreePlan:
    found = saved(capture(ValueComponent("c", value), world(1), None))
    return ValueComponent("c", live).plan(found, world(1))


def _restore(value: object, live: object) -> None:
    _plan(value, live).apply()


def _state(number: float) -> dict[str, Any]:
    return {
        "parameter": torch.nn.Parameter(torch.full((2,), number)),
        "tensor": torch.full((2, 3), number).t(),
        "list": [{"deep": [torch.full((1,), number)]}, number],
        "deque": deque([{"x": number}], maxlen=3),
        "ordered": OrderedDict(b=number, a={"z": number}),
        "default": defaultdict(list, {"k": [number]}),
        "counter": Counter({"a": int(number)}),
        "set": {number},
        "bytearray": bytearray([int(number)] * 3),
        "array": np.full((2, 2), number),
        "record": Meter(torch.full((1,), number), [number]),
        "frozen": Frozen(torch.full((1,), number), 7),
        "tuple": (torch.full((1,), number), {"in": number}),
        "pair": Pair([number], torch.full((1,), number)),
        "torch generator": torch.Generator().manual_seed(int(number)),
        "numpy generator": np.random.default_rng(int(number)),
        "random": random.Random(int(number)),
    }


def _objects(value: object) -> list[tuple[str, Any]]:
    """Return every mutable object of a nested value with its place, parents first."""
    if isinstance(value, (bool, int, float, str)):
        return []
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple, deque)):
        children = enumerate(value)
    elif isinstance(value, (Meter, Frozen)):
        children = vars(value).items()
    found = [("", value)]
    for key, child in children:
        found += [(f"{key}/{place}", one) for place, one in _objects(child)]
    return found


def test_every_object_stays_and_holds_what_was_saved() -> None:
    value, live = _state(5.0), _state(1.0)
    before = _objects(live)
    assert len(before) > 30
    _restore(value, live)
    assert same(live, value)
    after = _objects(live)
    assert [place for place, _ in after] == [place for place, _ in before]
    moved = [place for (place, old), (_, new) in zip(before, after, strict=True) if old is not new]
    assert moved == []


def test_planning_changes_nothing() -> None:
    live = _state(1.0)
    _plan(_state(5.0), live)
    assert same(live, _state(1.0))


def test_what_does_not_match_is_replaced_in_its_parent() -> None:
    live: dict[str, Any] = {
        "shape": torch.zeros(2),
        "dtype": torch.zeros(2, dtype=torch.float64),
        "kind": torch.nn.Parameter(torch.zeros(2)),
        "graph": torch.zeros(2, requires_grad=True) * 2,
        "expanded": torch.zeros(1).expand(2),
        "type": [1],
        "frozen": Frozen([0], 0),
        "longer": (1, 2),
        "maxlen": deque([1], maxlen=2),
        "read-only": np.zeros(2),
        "gone": 1,
        "list": [1, {"a": 1}, 3],
    }
    live["read-only"].flags.writeable = False
    inner = live["list"]
    value = {
        "shape": torch.ones(3),
        "dtype": torch.ones(2),
        "kind": torch.ones(2),
        "graph": torch.ones(2, requires_grad=True),
        "expanded": torch.tensor([1.0, 2.0]),
        "type": {"a": 1},
        "frozen": Frozen([5], 5),
        "longer": (1, 2, 3),
        "maxlen": deque([1, 2, 3], maxlen=3),
        "read-only": np.ones(2),
        "list": [5],
        "new": {"x": [1]},
    }
    before = dict(live)
    frozen_list = live["frozen"].weights
    _restore(value, live)
    assert same(live, value)
    kept = {key for key in before if key in live and live[key] is before[key]}
    assert kept == {"list"}
    assert live["list"] is inner
    assert live["frozen"].weights is frozen_list
    assert live["graph"].grad_fn is None


def test_a_deque_of_another_maxlen_at_the_top_is_refused() -> None:
    live = deque([1, 2], maxlen=2)
    _restore(deque([3], maxlen=2), live)
    assert live == deque([3])
    with pytest.raises(StateMismatch, match="maxlen"):
        _plan(deque([1, 2, 3], maxlen=3), live)


def test_ordinary_tensors_are_filled_whatever_mode_is_on() -> None:
    live = {"p": torch.nn.Parameter(torch.zeros(2)), "frozen": torch.zeros(1, requires_grad=True)}
    plan = _plan({"p": torch.nn.Parameter(torch.ones(2)), "frozen": torch.ones(1)}, live)
    parameter, frozen = live["p"], live["frozen"]
    with torch.inference_mode():
        plan.apply()
    assert live["p"] is parameter
    assert live["frozen"] is frozen
    assert not frozen.requires_grad
    (parameter * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(parameter.detach(), torch.ones(2))
    with torch.inference_mode():
        odd = {"x": torch.zeros(1)}
    made = odd["x"]
    _restore({"x": torch.ones(1)}, odd)
    assert odd["x"] is not made
    assert not odd["x"].is_inference()


@pytest.mark.parametrize(
    "make", [lambda: torch.zeros(2), lambda: [0], lambda: {"x": 0}, lambda: np.zeros(1)]
)
def test_one_object_in_two_places_takes_equal_values_and_refuses_others(
    make: Callable[[], Any],
) -> None:
    shared = make()
    live = {"a": shared, "b": {"c": shared}}
    value = {"a": make(), "b": {"c": make()}}
    _restore(value, live)
    assert live["a"] is live["b"]["c"] is shared
    other = make()
    if isinstance(other, dict):
        other["x"] = 1
    else:
        other[0] = 1
    before = [str(shared), dict(live)]
    with pytest.raises(StateMismatch, match=r'\["b"\]\["c"\].*\["a"\].*its own'):
        _plan({"a": make(), "b": {"c": other}}, live)
    assert [str(shared), dict(live)] == before


def test_equal_numbers_of_other_types_are_other_values() -> None:
    shared = [1]
    with pytest.raises(StateMismatch, match="different values"):
        _plan({"a": [1], "b": [1.0]}, {"a": shared, "b": shared})


def test_a_shared_object_that_is_replaced_stays_shared() -> None:
    shared = torch.zeros(2)
    live = {"a": shared, "b": shared}
    _restore({"a": torch.ones(3), "b": torch.ones(3)}, live)
    assert live["a"] is live["b"] is not shared


def test_views_of_one_memory_take_what_was_saved_together_and_refuse_others() -> None:
    def views(flat: torch.Tensor) -> dict[str, Any]:
        return {
            "flat": flat,
            "top": flat[:2],
            "rest": flat[2:].view(2, 1),
            "again": flat.view(2, 2),
        }

    live = views(torch.zeros(4))
    _restore(views(torch.arange(4.0)), live)
    assert same(live, views(torch.arange(4.0)))
    live["flat"][0] = 9
    assert live["top"][0] == 9
    apart = {key: one.clone() for key, one in views(torch.arange(4.0)).items()}
    apart["top"][1] = -1
    with pytest.raises(StateMismatch, match=r'\["top"\].*shares memory'):
        _plan(apart, live)
    assert live["flat"].tolist() == [9, 1, 2, 3]


def test_a_long_buffer_keeps_its_records() -> None:
    live: list[Any] = [{"obs": torch.zeros(1), "n": 0} for _ in range(1200)]
    first = live[0]["obs"]
    _restore([{"obs": torch.full((1,), float(i)), "n": i} for i in range(1100)], live)
    assert len(live) == 1100
    assert live[0]["obs"] is first
    assert [int(one["obs"]) for one in live] == [one["n"] for one in live] == list(range(1100))
