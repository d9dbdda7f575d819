from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from tests.components._memory import ALONE, Sharing, keys_of, restore, saved_of, world
from tests.components._roundtrip import same

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._tensors import TensorDictComponent
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState
from stepseal.layout import PayloadReport


def nested(value: float) -> dict[str, Any]:
    return {
        "ema": {"weight": torch.full((3, 4), value), 7: torch.full((), value)},
        "count": int(value),
        "history": [value, "text"],
        "empty": torch.empty(0, 2),
    }


class Average:
    """An object whose state dict holds copies, so that loading it matters."""

    def __init__(self, value: float) -> None:
        self.shadow = torch.full((2, 3), value)
        self.decay = value

    def state_dict(self) -> dict[str, Any]:
        return OrderedDict(shadow=self.shadow.clone(), meta={"decay": self.decay})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert type(state) is OrderedDict
        self.shadow = state["shadow"]
        self.decay = state["meta"]["decay"]


@pytest.mark.parametrize("staged", [True, False])
def test_a_nested_dict_comes_back_in_place(staged: bool) -> None:
    source, target = nested(3.0), nested(0.0)
    captured = capture(TensorDictComponent("ema", source), ALONE, Arena() if staged else None)
    assert keys_of(captured) == ["ema.weight", "ema.7", "empty"]
    assert captured.payload == PayloadReport("", writes=True)
    live = target["ema"]["weight"]

    restore(TensorDictComponent("ema", target), [captured])

    assert target["ema"]["weight"] is live
    assert torch.equal(live, source["ema"]["weight"])
    assert target["ema"][7].item() == 3.0
    assert (target["count"], target["history"]) == (3, [3.0, "text"])


def test_an_object_gets_its_filled_state_dict_back() -> None:
    captured = capture(TensorDictComponent("average", Average(5.0)), ALONE, None)
    target = Average(0.0)
    restore(TensorDictComponent("average", target), [captured])
    assert torch.equal(target.shadow, torch.full((2, 3), 5.0))
    assert target.decay == 5.0


def test_planning_changes_nothing() -> None:
    captured = capture(TensorDictComponent("average", Average(5.0)), ALONE, None)
    target = Average(0.0)
    TensorDictComponent("average", target).plan(saved_of([captured], ALONE), ALONE)
    assert target.decay == 0.0
    assert not target.shadow.any()


def test_every_difference_is_listed() -> None:
    captured = capture(TensorDictComponent("ema", nested(1.0)), ALONE, None)
    other = nested(1.0)
    other["ema"]["weight"] = torch.zeros(4, 3, dtype=torch.float64)
    other["ema"]["new"] = torch.zeros(1)
    del other["count"], other["empty"]
    with pytest.raises(StateMismatch) as caught:
        TensorDictComponent("ema", other).plan(saved_of([captured], ALONE), ALONE)
    assert caught.value.problems == (
        "ema.weight: shape: expected (live) [4, 3], found [3, 4]",
        "ema.weight: dtype: expected (live) float64, found float32",
        "ema.new: missing in the checkpoint",
        "empty: unexpected in the checkpoint",
        "count: unexpected in the checkpoint",
    )
    assert "and 2 more" in str(caught.value)


@pytest.mark.parametrize(
    "state",
    [
        {"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)},
        {1: torch.zeros(1), "1": 2},
        {(1, 2): torch.zeros(1)},
    ],
)
def test_keys_that_do_not_stay_distinct_are_refused(state: dict[Any, Any]) -> None:
    with pytest.raises(UnsupportedState) as caught:
        capture(TensorDictComponent("ema", state), ALONE, None)
    assert caught.value.component == "ema"
    assert caught.value.path


def test_a_dict_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {}
    state["self"] = state
    with pytest.raises(UnsupportedState, match="deep"):
        capture(TensorDictComponent("ema", state), ALONE, None)


def test_an_object_without_state_dict_is_refused() -> None:
    with pytest.raises(InvalidInput, match="state_dict"):
        TensorDictComponent("ema", 3)  # type: ignore[arg-type]


def test_sharing_follows_the_number_of_participants() -> None:
    component = TensorDictComponent("ema", nested(0.0))
    assert component.sharing(ALONE) is Sharing.GLOBAL
    assert component.sharing(world(2)[1]) is Sharing.REPLICATED
    declared = TensorDictComponent("ema", nested(0.0), sharing=Sharing.GLOBAL)
    assert declared.sharing(world(2)[1]) is Sharing.GLOBAL


def test_replicas_are_written_by_the_first_participant_alone() -> None:
    first, second = (
        capture(TensorDictComponent("ema", nested(float(rank))), topology, None)
        for rank, topology in enumerate(world(2))
    )
    assert keys_of(first) == ["ema.weight", "ema.7", "empty"]
    assert len(first.trees) == 1
    assert [copy.entries for copy in first.bytes_copies] == [
        (("ema", "count"),),
        (("ema", "history"),),
    ]
    assert (second.tensors, second.trees, second.bytes_copies) == ((), (), ())
    assert (first.payload, second.payload) == (PayloadReport("", True), PayloadReport("", False))
    assert first.fingerprint == second.fingerprint


def test_the_fingerprint_tells_keys_shapes_and_dtypes_but_not_values() -> None:
    def fingerprint(state: dict[str, Any]) -> str:
        return capture(TensorDictComponent("a", state), ALONE, None).fingerprint

    base = fingerprint({"a": torch.zeros(2), "b": 1})
    assert fingerprint({"b": 2, "a": torch.ones(2)}) == base
    assert fingerprint({"a": torch.zeros(3), "b": 1}) != base
    assert fingerprint({"a": torch.zeros(2, dtype=torch.int8), "b": 1}) != base
    assert fingerprint({"a": torch.zeros(2)}) != base


def test_copies_for_stock_readers_are_torch_save_records() -> None:
    captured = capture(TensorDictComponent("ema", nested(3.0)), ALONE, None)
    values = [torch.load(io.BytesIO(copy.data)) for copy in captured.bytes_copies]
    assert values == [3, [3.0, "text"]]


def test_per_rank_tensors_become_a_tree_of_each_participant() -> None:
    captures = [
        capture(
            TensorDictComponent("noise", nested(rank + 1.0), sharing=Sharing.PER_RANK), top, None
        )
        for rank, top in enumerate(world(2))
    ]
    assert {captured.kind for captured in captures} == {"tree"}
    assert all(captured.tensors == () for captured in captures)
    assert [captured.trees[0].owner for captured in captures] == ["trainer/0", "trainer/1"]
    for rank, topology in enumerate(world(2)):
        target = nested(0.0)
        live = target["ema"]["weight"]
        component = TensorDictComponent("noise", target, sharing=Sharing.PER_RANK)
        assert component.kind == "tree"
        restore(component, captures, topology)
        assert target["ema"]["weight"] is live
        assert live[0, 0].item() == rank + 1
        assert target["count"] == rank + 1


def test_per_rank_state_refuses_another_world() -> None:
    captured = capture(
        TensorDictComponent("noise", nested(1.0), sharing=Sharing.PER_RANK), ALONE, None
    )
    saved = saved_of([captured], ALONE)
    component = TensorDictComponent("noise", nested(1.0), sharing=Sharing.PER_RANK)
    with pytest.raises(StateMismatch, match="saved per rank by 1 participants, now 2"):
        component.plan(saved, world(2)[0])


def test_per_rank_and_shared_state_do_not_mix() -> None:
    captured = capture(TensorDictComponent("noise", nested(1.0)), ALONE, None)
    component = TensorDictComponent("noise", nested(1.0), sharing=Sharing.PER_RANK)
    with pytest.raises(StateMismatch, match="saved with sharing global, now per_rank"):
        component.plan(saved_of([captured], ALONE), ALONE)


def test_global_state_restores_as_replicated() -> None:
    captured = capture(TensorDictComponent("ema", nested(2.0)), ALONE, None)
    saved = saved_of([captured], ALONE)
    plan = TensorDictComponent("ema", nested(0.0)).plan(saved, world(2)[1])
    assert set(plan.sinks) == {"ema.weight", "ema.7"}


class Shadows:
    """Keeps its shadows in a list, and a tuple of a dict beside them."""

    def __init__(self, value: float) -> None:
        self.state: dict[str, Any] = {
            "decay": value,
            "shadows": [torch.full((2,), value), torch.full((3,), value)],
            "pairs": ({"mean": torch.full((1,), value), "count": int(value)},),
            "history": [value, value],
        }

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


@pytest.mark.parametrize("as_object", [False, True])
def test_lists_and_tuples_are_flattened_where_they_hold_tensors(as_object: bool) -> None:
    source, target = Shadows(2.0), Shadows(1.0)
    shadows = target.state["shadows"]
    given: list[Any] = [one if as_object else one.state for one in (source, target)]
    captured = capture(TensorDictComponent("ema", given[0]), ALONE, None)
    assert keys_of(captured) == ["shadows.0", "shadows.1", "pairs.0.mean"]
    first = shadows[0]
    restore(TensorDictComponent("ema", given[1]), [captured])
    assert same(target.state, source.state)
    assert target.state["shadows"][0] is first
    assert (target.state["shadows"] is shadows) != as_object


def test_another_number_of_tensors_in_a_list_is_refused() -> None:
    source, target = Shadows(2.0), Shadows(1.0)
    captured = capture(TensorDictComponent("ema", source), ALONE, None)
    del target.state["shadows"][1]
    with pytest.raises(StateMismatch, match=r"shadows\.1: unexpected"):
        restore(TensorDictComponent("ema", target), [captured])
