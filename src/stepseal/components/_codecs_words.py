"""What all codecs say alike: limits of the format, paths, and short texts of values and classes."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

__all__ = [
    "MAX_DEPTH",
    "MAX_EQUAL_HASHES",
    "MAX_PLAIN_INT",
    "Step",
    "describe",
    "format_path",
    "max_made",
    "most_equal_hashes",
    "qualified",
]

MAX_DEPTH = 56
"""Most levels of JSON nesting above a value; its own braces and an envelope still fit in 64."""

MAX_EQUAL_HASHES = 64
"""Most keys of one dict, or members of one set, that may have the same hash.

Numbers, and tuples of numbers, are hashed without a secret. A container of many that were chosen to
have the same hash takes time in the square of their number, to build and ever after.
"""

MAX_PLAIN_INT = 2**63 - 1
"""Largest magnitude of an int that stands in the document as a JSON number."""

_MAX_SHOWN = 120

Step: TypeAlias = tuple[str, object]
"""One step down: `("[", key)`, `(".", field)` or `("*", None)` for a member of a set."""


def qualified(cls: type) -> str:
    """Return the name of a class as people look for it."""
    return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")


def describe(node: object) -> str:
    """Return a short text of a found value for an error message."""
    text = repr(node)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def format_path(steps: Sequence[Step]) -> str:
    """Return the steps as Python spells them: `["optimizer"]["cfg"].x[3]`; empty at the top."""
    return "".join(
        f".{key}" if kind == "." else "{*}" if kind == "*" else f"[{_format_key(key)}]"
        for kind, key in steps
    )


def _format_key(key: object) -> str:
    if type(key) is str:
        return json.dumps(key, ensure_ascii=not key.isprintable())
    return describe(key)


def most_equal_hashes(keys: Collection[Hashable]) -> int:
    """Return how many of the keys have the hash that most of them have."""
    return max(Counter(map(hash, keys)).values(), default=0)


def max_made(leaf_bytes: int) -> int:
    """Return how many objects columns may make, so that memory stays in proportion to the bytes."""
    return 1_000_000 + leaf_bytes // 8
