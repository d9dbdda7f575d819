"""A function that reshards and fails, or returns what is no state: alike on all ranks, in time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.session._sets import in_world
from tests.session._world_change import EVERY_ITEM, damaged_second, deal, items_of, restored, saved

import stepseal as ss
from stepseal.components import _resharding
from stepseal.errors import InvalidInput, ParticipantFailed, StateMismatch
from stepseal.testing import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.mark.parametrize("on", [{0}, {1}, {0, 1, 2}])
def test_what_it_raises_fails_the_restore_on_all_ranks_and_nothing_has_changed(
    on: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_: object) -> None:
        raise KeyError("position")

    storage = saved()
    errors = restored(storage, 3, {rank: raises if rank in on else deal for rank in range(3)})
    for error in errors:
        assert isinstance(error, ParticipantFailed)
        assert set(error.failures) == {f"trainer/{rank}" for rank in on}
        assert error.component == "replay"
        assert "component replay: the function that reshards raised KeyError: 'position'" in str(
            error
        )
        assert "4 participants at the save and 3 now" in str(error)
        assert "policies={'replay': 'skip'}" in str(error)
    assert 'raise KeyError("position")' in caplog.text  # the traceback is in the log
    assert items_of(restored(storage, 3, deal)) == EVERY_ITEM


def no_codec(states: Sequence[Any], *_: object) -> Any:  # noqa: ANN401
    return {**states[0], "items": [object()]}


BAD: list[tuple[Any, str]] = [
    (lambda *_: None, "expected the state of this rank, found None (is there no `return`?)"),
    (lambda states, *_: list(states), "expected dict, as was saved, found list"),
    (lambda states, *_: {"items": states[0]["items"]}, "found none of 'seen', 'table'"),
    (lambda *_: [], "top level: expected dict, found list"),
    (no_codec, "found object"),
    (lambda *_: iter([1]), "found list_iterator"),
]


@pytest.mark.parametrize(("function", "text"), BAD)
def test_what_is_no_state_is_refused_on_all_ranks_before_anything_changes(
    function: Any,  # noqa: ANN401
    text: str,
) -> None:
    for error in restored(saved(), 2, {0: deal, 1: function}):
        assert isinstance(error, StateMismatch)
        assert text in str(error)
        assert error.problems[0].startswith("component replay: ")


def test_an_error_of_its_own_in_words_of_stepseal_is_raised_as_it_is() -> None:
    def refuses(_: object, old: ss.Placement, new: ss.Placement) -> None:
        raise StateMismatch(f"cannot go from {old.world_size} to {new.world_size}")

    for error in restored(saved(), 2, refuses):
        assert isinstance(error, StateMismatch)
        assert error.problems == ("component replay: cannot go from 4 to 2",)


def swallows(states: Sequence[Any], old: ss.Placement, new: ss.Placement) -> Any:  # noqa: ANN401
    """Go on without the states that cannot be read."""
    kept = []
    for index in range(len(states)):
        try:
            kept.append(states[index])
        except Exception:
            continue
    return deal(kept, old, new)


@pytest.mark.parametrize("function", [deal, swallows])
def test_a_damaged_state_is_never_left_out_and_all_ranks_fall_back(function: Any) -> None:  # noqa: ANN401
    found = restored(damaged_second(), 2, function)
    for _, report in found:
        assert report.step == 1
        assert "step-2" in report.skipped
    assert items_of(found) == EVERY_ITEM
    assert sum(state["seen"] for state, _ in found) == 10 + 11 + 12 + 13


class Deque:
    """An object of somebody's own, which would take anything."""

    def __init__(self) -> None:
        self.taken: object = None

    def state_dict(self) -> object:
        return {"position": 1}

    def load_state_dict(self, state: object) -> None:
        self.taken = state


def test_an_object_that_takes_anything_gets_no_other_structure_than_was_saved() -> None:
    storage, live = MemoryStorage(), Deque()

    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("data", Deque(), sharing=ss.PER_RANK)
        ckpt.save(1).wait()

    in_world(2, storage, work)

    def again(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("data", live, sharing=ss.PER_RANK, on_world_change=lambda states, *_: [*states])
        ckpt.restore()

    (error,) = in_world(1, storage, again)
    assert isinstance(error, StateMismatch)
    assert live.taken is None


ADDED: list[tuple[dict[str, Any], str]] = [
    ({"on_world_change": deal, "sharing": ss.SHARDED}, "cannot reshard SHARDED tensors"),
    ({"on_world_change": 3}, r"a function \(states, old, new\)"),
]


@pytest.mark.parametrize(("options", "text"), ADDED)
def test_add_refuses_what_can_never_be_called(options: dict[str, Any], text: str) -> None:
    def work(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("model", {"w": torch.zeros(2)}, kind="tensors", **options)

    (error,) = in_world(1, MemoryStorage(), work)
    assert isinstance(error, InvalidInput)
    with pytest.raises(InvalidInput, match=text):
        raise error


def test_without_it_the_error_names_both_sizes_and_all_ways_out() -> None:
    for error in restored(saved(), 2, None):
        assert isinstance(error, StateMismatch)
        (problem,) = error.problems
        assert problem == (
            "component replay: saved per rank by 4 participants, now 2: restore with 4, or add it "
            "with on_world_change='fresh', or with on_world_change=reshard, a function (states, "
            "old, new) that returns this rank's state; restore(policies={'replay': 'skip'}) leaves "
            "it as it is now"
        )
    for state, report in restored(saved(), 2, "fresh"):
        assert state["items"] == []
        assert "fresh" in report.report["replay"]


VARIANTS: list[tuple[str, Any, Any]] = [
    (
        "check",
        lambda _: None,
        lambda: test_a_damaged_state_is_never_left_out_and_all_ranks_fall_back(swallows),
    ),
    (
        "differences",
        lambda *_: [],
        lambda: test_an_object_that_takes_anything_gets_no_other_structure_than_was_saved(),
    ),
]


@pytest.mark.parametrize(("name", "variant", "check"), VARIANTS)
def test_the_checks_find_a_variant_without_them(
    name: str,
    variant: Any,  # noqa: ANN401 - in the place of a method
    check: Any,  # noqa: ANN401 - a test of this file
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_resharding._States, name, variant)
    with pytest.raises(AssertionError):
        check()


A_SET = ss.per_group(same_on=[[0], [1]])
FUNCTION = "on_world_change=reshard, a function (states, old, new) that returns this rank's state"


@pytest.mark.parametrize(
    ("before", "now", "num", "text"),
    [
        (A_SET, ss.per_group(same_on=[[0], [1], [2]]), 3, "2 sets at the save, now 3 sets"),
        (ss.PER_NODE, ss.PER_NODE, 1, "2 nodes at the save, now 1 node"),
        (ss.PER_RANK, ss.PER_RANK, 3, "saved per rank by 2 participants, now 3"),
        (ss.PER_RANK, ss.GLOBAL, 2, "saved with sharing per_rank, now global"),
        (ss.GLOBAL, ss.PER_RANK, 2, "saved with sharing global, now per_rank"),
    ],
)
def test_each_refusal_names_both_sides_and_its_advice_works(
    before: Any,  # noqa: ANN401 - a sharing
    now: Any,  # noqa: ANN401 - a sharing
    num: int,
    text: str,
) -> None:
    storage, state = MemoryStorage(), {"value": 0}

    def save(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("tree", {"value": 5}, sharing=before, kind="tree")
        ckpt.save(1).wait()

    def restore(_: int, ckpt: ss.Checkpointer, reshard: Any) -> str:  # noqa: ANN401 - as of add
        live = dict(state)
        ckpt.add("tree", live, sharing=now, kind="tree", on_world_change=reshard)
        found = ckpt.restore()
        assert found is not None
        assert live == {"value": 5}
        return found.report["tree"]

    assert in_world(2, storage, save, nodes=(0, 1)) == [None] * 2
    nodes = (0,) * num
    for error in in_world(num, storage, functools.partial(restore, reshard=None), nodes=nodes):
        assert isinstance(error, StateMismatch)
        (problem,) = error.problems
        assert text in problem
        assert FUNCTION in problem
    first = functools.partial(restore, reshard=lambda states, *_: states[0])
    for report in in_world(num, storage, first, nodes=nodes):
        assert "resharded" in report


def test_tensors_of_the_job_have_no_such_way_to_each_rank() -> None:
    storage = MemoryStorage()

    def save(_: int, ckpt: ss.Checkpointer) -> None:
        ckpt.add("table", {"w": torch.ones(2)})
        ckpt.save(1).wait()

    def restore(_: int, ckpt: ss.Checkpointer) -> None:
        live = {"w": torch.zeros(2)}
        ckpt.add("table", live, sharing=ss.PER_RANK, on_world_change=lambda states, *_: states[0])
        ckpt.restore()

    assert in_world(2, storage, save) == [None] * 2
    for error in in_world(2, storage, restore):
        assert isinstance(error, StateMismatch)
        assert "saved as 'tensors', now 'tree'" in error.problems[0]
