"""Who writes a tree, who is asked for its state, and which saved trees are refused."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.components._memory import bytes_of
from tests.components._roundtrip import saved, world

from stepseal.components._capture import capture
from stepseal.components._stateful import PairComponent, ValueComponent
from stepseal.components._types import SavedComponent, Sharing
from stepseal.errors import InvalidInput, StateMismatch, UnsupportedState
from stepseal.layout import PayloadReport


class CountingMemory:
    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, size_bytes: int) -> memoryview:
        self.taken.append(size_bytes)
        return memoryview(bytearray(size_bytes))


@pytest.mark.parametrize("sharing", [Sharing.GLOBAL, Sharing.REPLICATED])
def test_one_payload_is_written_by_rank_0_and_only_it_is_asked(sharing: Sharing) -> None:
    calls: list[int] = []
    for rank in range(3):
        component = PairComponent("c", (functools.partial(calls.append, rank), print), sharing)
        captured = capture(component, world(3, rank), None)
        assert captured.payload == PayloadReport("", rank == 0)
        assert [tree.owner for tree in captured.trees] == (["trainer/0"] if rank == 0 else [])
        assert captured.fingerprint == ""
    assert calls == [0]


def test_each_participant_writes_its_own_tree_per_rank() -> None:
    for rank in range(2):
        captured = capture(ValueComponent("c", {"a": rank}, Sharing.PER_RANK), world(2, rank), None)
        assert captured.payload == PayloadReport(f"trainer/{rank}", writes=True)
        (tree,) = captured.trees
        assert (tree.owner, tree.document) == (f"trainer/{rank}", {"a": rank})


def test_leaves_go_into_staging_and_are_private_without_it() -> None:
    live = {"t": torch.zeros(4), "e": torch.empty(0)}
    staging = CountingMemory()
    staged = capture(ValueComponent("c", live), world(1), staging)
    private = capture(ValueComponent("c", live), world(1), None)
    live["t"].fill_(7)
    assert staging.taken == [16]
    for captured in (staged, private):
        array, empty = captured.trees[0].arrays
        assert bytes_of(array.data) == bytes(16)
        assert empty.data.size_bytes == 0


def test_a_world_of_one_is_global_and_a_larger_one_must_declare() -> None:
    component = ValueComponent("loader", {})
    assert component.sharing(world(1)) is Sharing.GLOBAL
    with pytest.raises(InvalidInput, match=r"'loader'.*ss\.PER_RANK.*ss\.REPLICATED.*ss\.GLOBAL"):
        component.sharing(world(2))
    with pytest.raises(InvalidInput, match="SHARDED"):
        ValueComponent("loader", {}, Sharing.SHARDED)
    with pytest.raises(InvalidInput):
        ValueComponent("../x", {})


def test_an_unsupported_value_names_component_and_path() -> None:
    with pytest.raises(UnsupportedState) as caught:
        capture(ValueComponent("c", {"a": [object()]}), world(1), None)
    assert (caught.value.component, caught.value.path) == ("c", '["a"][0]')


def _saved(sharing: Sharing, num_participants: int) -> SavedComponent:
    component = ValueComponent("c", {"a": 1}, sharing)
    return saved(capture(component, world(num_participants), None), num_participants)


@pytest.mark.parametrize(
    ("before", "after", "old_size", "new_size"),
    [
        (Sharing.GLOBAL, Sharing.REPLICATED, 1, 4),
        (Sharing.REPLICATED, Sharing.GLOBAL, 4, 2),
        (Sharing.GLOBAL, Sharing.GLOBAL, 3, 1),
        (Sharing.PER_RANK, Sharing.PER_RANK, 2, 2),
    ],
)
def test_compatible_sharings_restore(
    before: Sharing, after: Sharing, old_size: int, new_size: int
) -> None:
    live = {"old": 0}
    plan = ValueComponent("c", live, after).plan(_saved(before, old_size), world(new_size))
    assert (plan.sinks, live) == ({}, {"old": 0})
    plan.apply()
    assert live == {"a": 1}


@pytest.mark.parametrize(
    ("before", "after", "old_size", "new_size", "text"),
    [
        (Sharing.PER_RANK, Sharing.PER_RANK, 2, 3, "by 2 participants, now 3"),
        (Sharing.PER_RANK, Sharing.GLOBAL, 1, 1, "per_rank, now global"),
        (Sharing.REPLICATED, Sharing.PER_RANK, 2, 2, "replicated, now per_rank"),
    ],
)
def test_other_sharings_and_worlds_are_refused_and_touch_nothing(
    before: Sharing, after: Sharing, old_size: int, new_size: int, text: str
) -> None:
    live = {"old": 0}
    with pytest.raises(StateMismatch, match=text) as caught:
        ValueComponent("c", live, after).plan(_saved(before, old_size), world(new_size))
    assert len(caught.value.problems) == 1
    assert live == {"old": 0}


def test_another_kind_and_a_missing_payload_are_refused() -> None:
    component = ValueComponent("c", {})
    for kind, text in (("tensors", "saved as 'tensors'"), ("tree", "found none")):
        found = SavedComponent("c", kind, Sharing.GLOBAL, {}, None, 1)
        with pytest.raises(StateMismatch, match=text):
            component.plan(found, world(1))
