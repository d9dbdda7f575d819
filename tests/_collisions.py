"""Keys with equal hashes, as somebody would choose them: ints and tuples of ints are not salted."""

from __future__ import annotations

import sys

import numpy as np

__all__ = ["equal_ints", "equal_tuples"]

_ROUND, _LANE, _START = 11400714785074694791, 14029467366897019727, 2870177450012600261
"""Constants of CPython's hash of tuples, which is xxHash without a secret."""


def equal_ints(count: int) -> list[int]:
    """Return different ints of one hash."""
    return [sys.hash_info.modulus * (n + 16) for n in range(count)]


def equal_tuples(count: int, *, length: int = 33) -> list[tuple[int, ...]]:
    """Return different tuples of one hash, of ints from 0 to 2^60."""
    num_tried = 20 * count + 100  # one in 16 has a last number that is small enough
    fronts = np.random.default_rng(1).integers(0, 2, (num_tried, length - 1), dtype=np.uint64)
    state = np.full(num_tried, _START, dtype=np.uint64)
    for numbers in fronts.T:
        lane = state + numbers * np.uint64(_LANE)
        state = (lane << np.uint64(31) | lane >> np.uint64(33)) * np.uint64(_ROUND)
    target = state[:1] + np.uint64(7 * _LANE % 2**64)
    last = (target - state) * np.uint64(pow(_LANE, -1, 2**64))
    chosen = np.flatnonzero(last < 2**60)[:count]
    rows = np.column_stack((fronts[chosen], last[chosen])).tolist()
    found = [tuple(row) for row in rows]
    assert len({hash(one) for one in found}) == 1
    assert len(found) == count
    assert len(set(found[:50])) == min(50, count)
    return found
