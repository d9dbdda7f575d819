from __future__ import annotations

from typing import Any

import pytest

import stepseal as ss


def due(rule: Any, upto: int) -> list[int]:  # noqa: ANN401 - any rule
    return [step for step in range(upto) if rule.due(step)]


def test_every_is_due_at_multiples_and_not_at_zero() -> None:
    assert due(ss.every(steps=3), 10) == [3, 6, 9]
    assert due(ss.every(steps=1), 3) == [1, 2]


def test_rules_combine() -> None:
    first, second, third = (ss.every(steps=steps) for steps in (4, 6, 7))
    assert due(first | second, 13) == [4, 6, 8, 12]
    assert due(first | second | third, 9) == due(first | (second | third), 9) == [4, 6, 7, 8]


@pytest.mark.parametrize("wrong", [0, -3, 2.0, True, "5", None])
def test_a_rule_needs_a_positive_number_of_steps(wrong: Any) -> None:  # noqa: ANN401
    with pytest.raises(ss.errors.InvalidInput, match="every"):
        ss.every(steps=wrong)
