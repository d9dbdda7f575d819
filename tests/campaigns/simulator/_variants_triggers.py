"""Broken variants of how triggers reach all ranks; see `_variants` and `_triggers_naive`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.protocol import _triggers_naive as naive

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BROKEN"]

_PATCHES = {
    "target-passed-already": naive.largest,
    "target-told-too-early": naive.told_too_early,
    "passed-after-the-answer": naive.no_hold,
    "due-told-to-one": naive.told_to_one,
    "fired-at-the-target-lost": naive.served_at_the_target,
    "fired-for-a-stop-lost": naive.served_without_a_stop,
    "fired-lost-with-a-rank": naive.lost_with_a_rank,
    "held-though-served": naive.served_ranks_not_let_go,
    "closing-ranks-awaited": naive.closing_ranks_awaited,
    "lost-ranks-awaited": naive.lost_ranks_awaited,
}


def _only(patch: Callable[[], naive.Patch]) -> Callable[[], list[naive.Patch]]:
    return lambda: [patch()]


BROKEN = {name: _only(patch) for name, patch in _PATCHES.items()}
"""Variant to its patches."""
