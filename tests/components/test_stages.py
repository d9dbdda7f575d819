"""What a rank takes of a state whose ranks hold different keys, and what several saved as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stepseal.components._optimizer_groups import GroupState
from stepseal.components._optimizer_stages import read_saved
from stepseal.components._stages import Taken, entries_left, united
from stepseal.errors import StateMismatch


def taken(mine: str, entries: str = "abcdefg") -> Taken:
    return Taken(tuple(entries), frozenset(mine))


@pytest.mark.parametrize("mine", ["", "a", "g", "bdf", "abcdefg"])
def test_what_is_left_comes_back_from_its_bits(mine: str) -> None:
    one = taken(mine)
    assert "".join(entries_left(one, one.left())) == "".join(x for x in "abcdefg" if x not in mine)


def test_what_two_leave_together_is_what_neither_takes() -> None:
    bits = int(taken("abc").left(), 16) & int(taken("cdez").left(), 16)
    assert entries_left(taken("abc"), f"{bits:x}") == ["f", "g"]
    assert entries_left(taken("", ""), taken("", "").left()) == []


def test_parts_become_one_and_what_they_hold_in_common_must_be_equal() -> None:
    first, second = {"a": 1, "b": torch.ones(2)}, {"b": torch.ones(2), "c": None}
    whole, problems = united("model", [first, second, {}])
    assert (list(whole), problems) == (["a", "b", "c"], [])
    for other in (torch.zeros(2), torch.ones(2).double(), 1, None):
        _, (problem,) = united("model", [first, {"b": other}])
        assert problem == "b: the ranks that hold it saved different values"


def group(names: str, **options: Any) -> GroupState:  # noqa: ANN401
    return GroupState(tuple(names), ((2,),) * len(names), options)


def saved(*groups: GroupState, state: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"class": "SGD", "groups": [one.as_value() for one in groups], "state": state or {}}


def test_groups_are_found_again_by_the_names_of_parameters() -> None:
    value = read_saved("optimizer", [saved(group("ab", lr=1)), saved(group("c", lr=1), group("d"))])
    assert value.classes == ("SGD",)
    groups, problems = value.regrouped([group("ac"), group("d"), group("")], others_take_rest=True)
    assert (groups, problems) == ([group("ac", lr=1), group("d"), group("")], [])
    _, problems = value.regrouped([group("ac")], others_take_rest=False)
    assert problems == [f"param_groups: {name}: unexpected in the checkpoint" for name in "bd"]
    _, problems = value.regrouped([group("cd")], others_take_rest=True)
    assert "param_groups[0]" in problems[0]
    assert "['lr']" in problems[0]


def test_a_group_without_parameters_takes_the_options_of_its_number() -> None:
    value = read_saved("optimizer", [saved(group("", lr=3)), saved(group("a", lr=3), group("b"))])
    (first, second), problems = value.regrouped([group(""), group("")], others_take_rest=True)
    assert (first.options, second.options, problems) == ({"lr": 3}, {}, [])


def test_state_of_one_parameter_that_sets_saved_differently_is_refused() -> None:
    parts = [
        saved(group("a"), state={"a": {"names": ["step"], "values": {"step": count}}})
        for count in (1, 2)
    ]
    assert read_saved("optimizer", parts[:1]).state_names() == {"step"}
    with pytest.raises(StateMismatch, match=r"state\.a: the ranks that hold it saved different"):
        read_saved("optimizer", parts)


@pytest.mark.parametrize("wrong", [None, 3, {}, {"groups": [], "state": []}, [{"groups": []}]])
def test_what_is_no_optimizer_is_refused(wrong: object) -> None:
    with pytest.raises(StateMismatch, match="expected groups and state"):
        read_saved("optimizer", wrong)
