"""A function of the user makes the state of each rank where ranks cannot read what was saved."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._sets import GROUPS, Live, in_world, save
from tests.session._world_change import (
    EVERY_ITEM,
    Buffer,
    damaged_second,
    deal,
    items_of,
    naive,
    restored,
    saved,
)

import stepseal as ss
from stepseal.errors import InvalidInput
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize("num", [1, 2, 3, 6])
def test_no_item_is_lost_or_doubled_on_another_number_of_ranks(num: int) -> None:
    found = restored(saved(), num, deal)
    assert items_of(found) == EVERY_ITEM
    assert sum(state["seen"] for state, _ in found) == 10 + 11 + 12 + 13
    elements = sorted(x for state, _ in found for x in state["table"].tolist())
    assert elements == sorted(float(item // 100) for item in EVERY_ITEM)
    assert max(len(state["items"]) for state, _ in found) <= -(-sum(EVERY_ITEM.values()) // num)
    reports = [dict(report.report) for _, report in found]
    assert reports == [reports[0]] * num
    assert reports[0]["replay"] == (
        f"restored, resharded: 4 participants at the save, now {num} (tree)"
    )
    assert reports[0]["model"] == "restored (tensors, 1 tensors)"


@pytest.mark.parametrize("num", [1, 2, 3, 6])
def test_the_ledger_finds_ranks_that_take_the_state_of_their_number(num: int) -> None:
    assert items_of(restored(saved(), num, naive)) != EVERY_ITEM


def test_the_same_number_of_ranks_reads_its_own_and_calls_nothing() -> None:
    def never(*_: object) -> None:
        raise AssertionError("called")

    for rank, (state, report) in enumerate(restored(saved(), 4, never)):
        assert state["items"] == Buffer(rank, 3 + rank).state["items"]
        assert report.report["replay"] == "restored (tree)"


@pytest.mark.parametrize("policy", ["skip", "fresh"])
def test_a_policy_of_the_call_goes_first(policy: str) -> None:
    def never(*_: object) -> None:
        raise AssertionError("called")

    for state, report in restored(saved(), 2, never, policies={"replay": policy}):
        assert state["items"] == []
        assert policy in report.report["replay"]


def test_it_is_told_both_worlds() -> None:
    told: list[tuple[int, ss.Placement, ss.Placement]] = []

    def note(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
        told.append((len(states), old, new))
        return states[0]

    restored(saved(3), 2, note)
    at_save = ("trainer/0", "trainer/1", "trainer/2")
    old = ss.Placement(sharing=ss.PER_RANK, world_size=3, coordinates=at_save)
    now = [
        ss.Placement(sharing=ss.PER_RANK, world_size=2, coordinates=at_save[:2], index=index)
        for index in range(2)
    ]
    assert sorted(told, key=lambda one: one[2].index or 0) == [(3, old, new) for new in now]


def first_of_all(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Return the state of the set that has this one's place, or of the last one."""
    assert new.index is not None
    assert new.coordinates[new.index].rpartition("=")[0] in ("set", "node")
    return states[min(new.index, len(old.coordinates) - 1)]


def live_values(
    storage: MemoryStorage,
    sharing: Any,  # noqa: ANN401
    num: int,
    reshard: Any,  # noqa: ANN401
    nodes: Sequence[int] | None = None,
) -> list[Any]:
    def work(_: int, ckpt: ss.Checkpointer) -> set[float]:
        live = Live(-1.0)
        live.add_to(ckpt, sharing, on_world_change=reshard)
        assert ckpt.restore() is not None
        return live.values()

    return in_world(num, storage, work, nodes)


def test_sets_and_nodes_take_trees_modules_and_optimizers() -> None:
    storage = MemoryStorage()
    assert save(storage, ss.per_group(same_on=GROUPS), [5, 6, 5, 6]) == [None] * 4
    three = ss.per_group(same_on=[[0], [1, 2], [3]])
    assert live_values(storage, three, 4, first_of_all) == [{5}, {6}, {6}, {6}]
    storage = MemoryStorage()
    assert save(storage, ss.PER_NODE, [5, 5, 6, 6], nodes=(0, 0, 1, 1)) == [None] * 4
    assert live_values(storage, ss.PER_NODE, 2, first_of_all, nodes=(0, 0)) == [{5}, {5}]


def mean(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Average what modules and optimizers store: tensors by key, and the rest of the first."""
    first, *others = list(states)
    if "tensors" not in first:
        return {**first, "value": 5.5, "table": (first["table"] + others[0]["table"]) / 2}
    tensors = {
        key: torch.stack([state["tensors"][key] for state in (first, *others)]).mean(0)
        for key in first["tensors"]
    }
    return {**first, "tensors": tensors}


@pytest.mark.parametrize("now", [ss.REPLICATED, ss.GLOBAL])
def test_it_also_takes_a_tree_to_another_sharing(now: ss.Sharing) -> None:
    storage = MemoryStorage()
    assert save(storage, ss.PER_RANK, [5, 6]) == [None] * 2

    def work(_: int, ckpt: ss.Checkpointer) -> tuple[Any, str]:
        live = Live(-1.0)
        ckpt.add("tree", live.tree, sharing=now, kind="tree", on_world_change=mean)
        found = ckpt.restore(only=["tree"])
        assert found is not None
        return live.tree["value"], found.report["tree"]

    expected = (5.5, f"restored, resharded: saved per_rank, now {now.value} (tree)")
    assert in_world(2, storage, work) == [expected] * 2
    assert live_values(storage, ss.PER_RANK, 1, mean) == [{5.5}]


def test_one_state_at_a_time_is_in_memory_and_what_is_not_asked_for_is_not_read() -> None:
    storage = damaged_second()
    alive: list[weakref.ref[Any]] = []

    def two(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
        for state in (states[index] for index in (0, 1)):
            assert [one() for one in alive if one() is not None] == []
            alive.append(weakref.ref(state["table"]))
            items = state["items"]
            del state
            gc.collect()
        assert [len(one["items"]) for one in states[:3]] == [3, 4, 5]
        assert states[-4]["seen"] == states[0]["seen"] == 110
        with pytest.raises(IndexError):
            states[4]
        return {**Buffer().state, "items": items}

    for state, report in restored(storage, 1, two):  # the damaged one is not read
        assert (report.step, state["items"]) == (2, [100, 101, 102, 103])


def test_each_access_gives_a_new_value_and_none_after_the_function_returned() -> None:
    held: list[Sequence[Any]] = []

    def spoils(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
        held.append(states)
        states[0]["items"].clear()
        return deal(states, old, new)

    found = restored(saved(), 1, spoils)
    assert items_of(found) == EVERY_ITEM
    with pytest.raises(InvalidInput, match="take what you need there"):
        held[0][0]


def test_a_check_calls_it_and_touches_nothing_and_no_stream_moves() -> None:
    def draws(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
        torch.randperm(9)
        random.random()
        return deal(states, old, new)

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        live = Buffer().state
        ckpt.add("replay", live, sharing=ss.PER_RANK, on_world_change=draws)
        ckpt.add("model", {"w": torch.zeros(2)})
        before = random.getstate(), torch.get_rng_state().tolist()
        checked = ckpt.restore(check_only=True)
        assert checked is not None
        assert "resharded" in checked.report["replay"]
        assert live["items"] == []
        ckpt.restore()
        assert (random.getstate(), torch.get_rng_state().tolist()) == before
        assert Counter(live["items"]) == EVERY_ITEM

    assert in_world(1, saved(), work) == [None]


def test_what_is_saved_next_is_read_without_it() -> None:
    storage = saved()

    def go_on(_: int, ckpt: ss.Checkpointer) -> list[int]:
        live = Buffer().state
        ckpt.add("replay", live, sharing=ss.PER_RANK, on_world_change=deal)
        ckpt.add("model", {"w": torch.zeros(2)})
        restored = ckpt.restore()
        assert restored is not None
        ckpt.save(restored.step + 1).wait()
        return list(live["items"])

    dealt = in_world(2, storage, go_on)
    assert [state["items"] for state, _ in restored(storage, 2, None)] == dealt


def test_a_sharing_that_a_function_decides_goes_by_the_saved_one() -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> list[int]:
        live = Buffer().state
        ckpt.add("replay", live, sharing=lambda: ss.PER_RANK, on_world_change=deal)
        found = ckpt.restore(only=["replay"])
        assert found is not None
        assert "4 participants at the save, now 2" in found.report["replay"]
        return list(live["items"])

    first, second = in_world(2, saved(), work)
    assert Counter(first + second) == EVERY_ITEM
