"""Whoever fires, all ranks do the same at one safe point, however their threads run.

Broken variants must be seen within the same seeds; a walk that sees none proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

import pytest
from tests.protocol._triggers_naive import BROKEN
from tests.protocol._triggers_walk import Rank, TriggersWalk

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol._triggers_naive import Patch

SEEDS = range(600)


def test_all_ranks_always_hear_the_same_at_one_safe_point() -> None:
    num_common = num_failed = num_forgiven = 0
    for seed in SEEDS:
        walk = TriggersWalk(seed)
        assert walk.run() == [], f"seed {seed}"
        num_common += walk.judge.num_common
        num_failed += walk.judge.num_failed
        num_forgiven += walk.judge.num_forgiven
    assert num_common > 500, "a walk in which nothing is due proves nothing"
    assert num_failed > 200, "a walk in which no save fails behind proves little"
    assert num_forgiven > 100, "a walk in which nothing fires while ranks close proves little"


def test_whether_the_rank_where_it_fired_waits_is_promptness_alone() -> None:
    """Without it, this rank goes some safe points further before all stop at one."""

    def notice(self: Rank) -> None:
        self.said.append(self.signals.pop(0))

    with mock.patch.object(Rank, "notice", notice):
        for seed in SEEDS[:300]:
            assert TriggersWalk(seed).run() == [], f"seed {seed}"


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_variant_is_seen(broken: Callable[[], Patch]) -> None:
    owner, name, wrong = broken()
    with mock.patch.object(owner, name, wrong):
        assert any(TriggersWalk(seed).run() for seed in SEEDS)
