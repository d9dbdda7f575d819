from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stepseal as ss
from stepseal.errors import InvalidInput
from stepseal.retention import Retention, StepInfo, as_retention, latest, most_kept

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepseal.retention import KeepRule


def facts(*steps: int) -> list[StepInfo]:
    return [StepInfo(step) for step in steps]


def test_latest_keeps_the_newest_by_number() -> None:
    assert dict(latest(2).choose(facts(8, 9, 10))) == dict.fromkeys((9, 10), "among the newest 2")
    assert list(latest(5).choose(facts(8))) == [8]
    assert list(latest(5).choose([])) == []


def test_rules_join_into_their_union_with_all_reasons() -> None:
    rule = latest(1) | latest(2) | latest(3)
    chosen = rule.choose(facts(1, 2, 3, 4))
    assert list(chosen) == [4, 3, 2]
    assert chosen[4] == "among the newest 1; among the newest 2; among the newest 3"
    assert str(rule) == "the newest 1 or the newest 2 or the newest 3"


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "3", None])
def test_a_rule_that_keeps_nothing_is_refused(count: object) -> None:
    with pytest.raises(InvalidInput, match="latest"):
        latest(count)  # type: ignore[arg-type]


def test_the_face_offers_it() -> None:
    assert ss.latest(3) == latest(3)
    assert as_retention(ss.latest(3)) == ss.Retention(latest(3))
    assert as_retention(None) is None
    custom = Retention(latest(1), trash_grace_s=5)
    assert as_retention(custom) is custom


@pytest.mark.parametrize("keep", [3, "latest", object()])
def test_what_is_no_rule_is_refused(keep: object) -> None:
    with pytest.raises(InvalidInput, match="expected a rule"):
        as_retention(keep)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan"), "1", True])
@pytest.mark.parametrize("name", ["superseded_grace_s", "trash_grace_s"])
def test_grace_is_a_number_of_seconds(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=name):
        Retention(latest(1), **{name: value})  # type: ignore[arg-type]


class Best:
    """A rule of a user's own."""

    def choose(self, steps: Sequence[StepInfo]) -> Mapping[int, str]:
        return {}


class BestTwo(Best):
    def most_kept(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (latest(3), 3),
        (latest(3) | latest(5) | latest(1), 5),
        (latest(3) | BestTwo(), 5),
        (latest(3) | BestTwo() | BestTwo(), 7),
        (Best(), None),
        (latest(3) | BestTwo() | Best(), None),
        ((latest(3) | BestTwo()) | latest(4), 6),
    ],
)
def test_what_a_rule_keeps_at_most_is_known_where_it_has_a_bound(
    rule: KeepRule, expected: int | None
) -> None:
    assert most_kept(rule) == expected
