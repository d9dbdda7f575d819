"""What the ranks of a set capture: each a digest of the whole state, and one of them the bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.components._memory import world

from stepseal.components._arena import Arena
from stepseal.components._capture import capture
from stepseal.components._groups import per_group
from stepseal.components._stateful import ValueComponent
from stepseal.components._tensors import TensorDictComponent

SHARING = per_group(same_on=[[0, 1], [2]])


def component(kind: type, value: float = 1.0) -> Any:  # noqa: ANN401 - of either class
    state = {"a": torch.full((3, 2), value).T, "empty": torch.zeros(0)}
    if kind is ValueComponent:
        return ValueComponent("x", state, SHARING)
    return TensorDictComponent("x", state, sharing=SHARING)


@pytest.mark.parametrize("kind", [ValueComponent, TensorDictComponent])
@pytest.mark.parametrize("arena", [True, False])
def test_each_rank_of_a_set_digests_its_state_and_the_lowest_writes_it(
    kind: type, arena: bool
) -> None:
    captured = [
        capture(component(kind), topology, Arena() if arena else None) for topology in world(3)
    ]
    assert [len(one.trees) for one in captured] == [1, 0, 1]
    assert captured[0].fingerprint == captured[1].fingerprint
    assert [bool(one.fingerprint) for one in captured] == [True, True, False]
    assert all(one.kind == "tree" for one in captured)


def test_a_description_holds_no_digest_because_it_touches_no_bytes() -> None:
    assert [component(ValueComponent).describe(one).fingerprint for one in world(3)] == [""] * 3


def test_another_value_has_another_digest() -> None:
    first, second = (capture(component(ValueComponent, v), world(3)[1], None) for v in (1.0, 2.0))
    assert first.fingerprint != second.fingerprint
