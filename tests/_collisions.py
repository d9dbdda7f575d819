"""Keys with equal hashes, as somebody would choose them: ints and tuples of ints are not salted."""

from __future__ import annotations

import sys
from random import Random

__all__ = ["equal_ints", "equal_tuples"]

_ROUND, _LANE, _START = 11400714785074694791, 14029467366897019727, 2870177450012600261
"""Constants of CPython's hash of tuples, which is xxHash without a secret."""
_MASK = 2**64 - 1


def equal_ints(count: int) -> list[int]:
    """Return different ints of one hash."""
    return [sys.hash_info.modulus * (n + 16) for n in range(count)]


def equal_tuples(count: int, *, length: int = 33) -> list[tuple[int, ...]]:
    """Return different tuples of one hash, of ints from 0 to 2^60."""
    random, undo = Random(1), pow(_LANE, -1, 2**64)
    found: list[tuple[int, ...]] = []
    target = None
    while len(found) < count:
        front = [random.randrange(2) for _ in range(length - 1)]
        state = _START
        for number in front:
            state = (state + number * _LANE) & _MASK
            state = ((state << 31 | state >> 33) & _MASK) * _ROUND & _MASK
        target = (state + 7 * _LANE) & _MASK if target is None else target
        last = (target - state) * undo & _MASK
        if last < 2**60:
            found.append((*front, last))
    assert len({hash(one) for one in found}) == 1
    assert len(set(found[:50])) == min(50, count)
    return found
