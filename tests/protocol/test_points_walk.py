"""Ranks that nobody can call stop at one common safe point, however their threads run.

Broken variants must be seen within the same seeds; a walk that sees none proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol._points_walk import PointsWalk
from tests.protocol._triggers_naive import largest, no_hold, told_too_early

from stepseal.protocol._asking import SafePoints
from stepseal.protocol._lives import Lives
from stepseal.protocol._safe_points import OwnPoints

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = range(300)
Patch = tuple[object, str, object]


def test_all_ranks_always_stop_at_one_safe_point() -> None:
    num_commits = num_lapses = 0
    for seed in SEEDS:
        walk = PointsWalk(seed)
        assert walk.run() == [], f"seed {seed}"
        num_commits += walk.num_commits
        num_lapses += walk.num_lapses
    assert num_commits > 500, "a walk in which nothing is committed proves nothing"
    assert num_lapses > 30, "a walk in which no rank ends meanwhile proves little"


def _numbers_of_steps() -> Patch:
    """Ranks count by the numbers of their training steps, every tenth of which calls `step`."""
    real = OwnPoints.try_pass

    def try_pass(self: OwnPoints, *, waits: bool = False) -> bool:
        passes = real(self, waits=waits)
        self.passed += 9 * passes
        return passes

    return OwnPoints, "try_pass", try_pass


def _closing_ranks_awaited() -> Patch:
    """A goodbye is not heeded."""
    return Lives, "leave", lambda _self, _participant: None


def _never_let_go() -> Patch:
    """Who waits at a safe point is not told that the request has lapsed."""
    return SafePoints, "settle", lambda _self, _calls: []


BROKEN = [
    largest,
    no_hold,
    _numbers_of_steps,
    _closing_ranks_awaited,
    _never_let_go,
    told_too_early,
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_variant_is_seen(broken: Callable[[], Patch]) -> None:
    owner, name, wrong = broken()
    with mock.patch.object(owner, name, wrong):
        assert any(_is_seen(PointsWalk(seed)) for seed in SEEDS)


def test_two_requests_at_a_time_are_seen() -> None:
    assert any(_is_seen(PointsWalk(seed, impatient=True)) for seed in SEEDS)


def _is_seen(walk: PointsWalk) -> bool:
    try:
        return bool(walk.run())
    except (AssertionError, KeyError):
        return True  # the code noticed by itself
