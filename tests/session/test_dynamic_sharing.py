"""A sharing that a function returns at each save: recorded in the step, and used at its restore."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from tests.session._sets import GROUPS, Live, in_world, restored, save

import stepseal as ss
from stepseal.layout import decode_manifest
from stepseal.storage import read_bytes
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from stepseal.storage import Storage

InvalidInput, ParticipantFailed = ss.errors.InvalidInput, ss.errors.ParticipantFailed
GROUP = ss.per_group(same_on=GROUPS)


def recorded(storage: Storage, step: int) -> set[str]:
    """Return the sharings that a manifest records."""
    manifest = decode_manifest(read_bytes(storage, f"step-{step}/manifest.json", 1 << 20))
    return {entry.sharing for entry in manifest.components}


@pytest.mark.parametrize(
    ("sharing", "values"),
    [
        (ss.REPLICATED, [5, 5, 5, 5]),
        (ss.GLOBAL, [5, 5, 5, 5]),
        (ss.PER_RANK, [5, 6, 7, 8]),
        (GROUP, [5, 6, 5, 6]),
        (ss.PER_NODE, [5, 5, 6, 6]),
    ],
)
def test_what_was_used_is_recorded_and_used_at_the_restore(
    sharing: Any,  # noqa: ANN401
    values: list[float],
) -> None:
    storage, nodes = MemoryStorage(), (0, 0, 1, 1)
    assert save(storage, lambda: sharing, values, nodes=nodes) == [None] * 4
    assert recorded(storage, 1) == {sharing.value}
    for now in (sharing, ss.PER_RANK, ss.REPLICATED):
        assert restored(storage, lambda now=now: now, 4, nodes=nodes) == [{v} for v in values]


def test_the_function_names_the_sets_of_now_and_no_rank_gets_the_state_of_its_old_place() -> None:
    storage = MemoryStorage()
    save(storage, lambda: GROUP, [5, 6, 5, 6])
    swapped = ss.per_group(same_on=[[0, 1], [2, 3]])
    assert restored(storage, lambda: swapped, 4) == [{5}, {5}, {6}, {6}]
    for error in restored(storage, lambda: ss.per_group(same_on=[[0], [1], [2, 3]]), 4):
        assert "2 sets at the save, now 3 sets" in str(error)


def test_each_save_asks_again_and_each_step_is_restored_by_its_own_record() -> None:
    storage, now = MemoryStorage(), {"sharing": ss.REPLICATED}

    def work(rank: int, ckpt: ss.Checkpointer) -> list[set[float]]:
        live = Live(1.0)
        live.add_to(ckpt, lambda: now["sharing"])
        live.fill(1.0)
        ckpt.save(1).wait()
        now["sharing"] = ss.PER_RANK
        live.fill(2.0 + rank)
        ckpt.save(2).wait()
        found = []
        for step in (1, 2):
            ckpt.restore(step)
            found.append(live.values())
        return found

    assert in_world(2, storage, work) == [[{1.0}, {2.0}], [{1.0}, {3.0}]]
    assert (recorded(storage, 1), recorded(storage, 2)) == ({"replicated"}, {"per_rank"})


def test_under_another_world_the_function_names_the_sets_of_now() -> None:
    storage = MemoryStorage()
    save(storage, lambda: GROUP, [5, 6, 5, 6])
    two = ss.per_group(same_on=[[0], [1]])
    assert restored(storage, lambda: two, 2) == [{5}, {6}]
    for error in restored(storage, lambda: ss.REPLICATED, 2):
        assert isinstance(error, ss.errors.StateMismatch)
        assert "saved with sharing per_group, now replicated" in str(error)


def test_fresh_on_another_world_goes_by_the_recorded_sharing() -> None:
    storage = MemoryStorage()
    save(storage, lambda: ss.PER_RANK, [5, 6])
    asked = functools.partial(restored, storage, lambda: ss.PER_RANK, on_world_change="fresh")
    assert asked(num=2) == [{5}, {6}]
    assert asked(num=3) == [{-1}] * 3


def _raises() -> Any:  # noqa: ANN401 - never returns
    raise KeyError("no plan yet")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_raises, "the function raised KeyError: 'no plan yet'"),
        (lambda: "replicated", "expected one of ss.GLOBAL, .* found 'replicated'"),
        (lambda: None, "expected one of ss.GLOBAL, .* found None"),
        (lambda: ss.Sharing.PER_GROUP, "PER_GROUP without them"),
        (lambda: ss.per_group(same_on=[[0]]), "each of 2 ranks in a set, found in none: 1"),
    ],
)
def test_a_function_that_returns_no_sharing_fails_the_save(function: Any, text: str) -> None:  # noqa: ANN401
    for error in save(MemoryStorage(), function, [5, 5]):
        with pytest.raises((InvalidInput, ParticipantFailed), match=text):
            raise error


def test_one_rank_whose_function_fails_or_differs_fails_the_save_on_all() -> None:
    storage = MemoryStorage()
    first, second = save(storage, {0: lambda: ss.REPLICATED, 1: _raises}, [5, 5])
    assert isinstance(first, ParticipantFailed)
    assert "trainer/1" in str(first)
    assert isinstance(second, InvalidInput)
    for error in save(storage, {0: lambda: ss.GLOBAL, 1: lambda: ss.PER_RANK}, [5, 5]):
        assert isinstance(error, ParticipantFailed)
        assert "holds tree per_rank, but trainer/0: tree global" in str(error)
    assert restored(storage, ss.REPLICATED, 2) == [{-1}] * 2


def test_a_dict_of_tensors_changes_its_kind_with_the_sharing() -> None:
    import torch

    storage, now = MemoryStorage(), {"sharing": ss.REPLICATED}

    def work(_: int, ckpt: ss.Checkpointer) -> list[str]:
        table = {"w": torch.ones(2)}
        ckpt.add("table", table, sharing=lambda: now["sharing"])
        kinds: list[str] = []
        for step, sharing in enumerate((ss.REPLICATED, ss.PER_RANK, ss.REPLICATED)):
            now["sharing"] = sharing
            ckpt.save(step).wait()
            table["w"].zero_()
            ckpt.restore(step)
            assert table["w"].tolist() == [1, 1]
            data = read_bytes(storage, f"step-{step}/manifest.json", 1 << 20)
            kinds.append(decode_manifest(data).components[0].kind)
        return kinds

    assert in_world(1, storage, work) == [["tensors", "tree", "tensors"]]


def test_what_decides_its_sharing_by_itself_takes_no_function() -> None:
    class Own:
        name, kind = "own", "tree"

        def sharing(self, topology: Any) -> ss.Sharing:  # noqa: ANN401 - not looked at
            return ss.GLOBAL

        def describe(self, topology: Any) -> Any:  # noqa: ANN401 - never called
            raise NotImplementedError

        def plan(self, saved: Any, topology: Any) -> Any:  # noqa: ANN401 - never called
            raise NotImplementedError

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("own", Own(), sharing=lambda: ss.GLOBAL)

    (error,) = in_world(1, MemoryStorage(), work)
    assert isinstance(error, InvalidInput)
    assert "decides its sharing by itself" in str(error)
