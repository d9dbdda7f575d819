"""Keys of dicts and members of sets whose hashes somebody may have chosen.

Numbers, and tuples of numbers, are hashed without a secret. A container of many that have the same
hash takes time in the square of their number, to build and ever after.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

__all__ = ["MAX_EQUAL_HASHES", "Keys", "most_equal_hashes"]

MAX_EQUAL_HASHES = 64
"""Most keys of one dict, or members of one set, that may have the same hash."""


@dataclass(slots=True)
class Keys:
    """The keys or members that a container has got so far."""

    _known: set[Hashable] = field(default_factory=set)
    _num_by_hash: Counter[int] = field(default_factory=Counter)

    def add(self, key: Hashable) -> str | None:
        """Add a key; return what was expected if it must be refused.

        Raises:
            TypeError: it has no hash.
        """
        number = hash(key)
        self._num_by_hash[number] += 1
        if self._num_by_hash[number] > MAX_EQUAL_HASHES:
            return f"at most {MAX_EQUAL_HASHES} keys or members of one hash"
        if key in self._known:
            return "each key or member once"
        self._known.add(key)
        return None


def most_equal_hashes(keys: Collection[Hashable]) -> int:
    """Return how many of the keys have the hash that most of them have."""
    if len(keys) <= MAX_EQUAL_HASHES:
        return len(keys)
    return Counter(map(hash, keys)).most_common(1)[0][1]
