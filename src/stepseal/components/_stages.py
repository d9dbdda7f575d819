"""What a rank takes of a component whose ranks hold different keys, such as stages of a pipeline.

Each rank compares its own keys, strictly. That every saved entry is taken by a rank, only all ranks
together can tell: each reports what it leaves, and what all leave is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepseal.components._capture import content_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Taken", "disputed", "entries_left", "united"]


@dataclass(frozen=True, slots=True)
class Taken:
    """Which entries of a saved component one rank takes."""

    entries: tuple[str, ...]
    """All entries of the saved component, sorted; the same on all ranks."""
    mine: frozenset[str]
    """Those that this rank takes."""

    def left(self) -> str:
        """Return the entries that this rank leaves, as a bit for each, in hex."""
        bits = "".join("0" if entry in self.mine else "1" for entry in self.entries)
        return f"{int(bits or '0', 2):x}"


def entries_left(taken: Taken, left: str) -> list[str]:
    """Return the entries whose bits are set."""
    bits = f"{int(left, 16):0{len(taken.entries)}b}" if taken.entries else ""
    return [entry for entry, bit in zip(taken.entries, bits, strict=True) if bit == "1"]


def united(component: str, parts: Iterable[Mapping[Any, Any]]) -> tuple[dict[Any, Any], list[str]]:
    """Return the entries of all parts, and what is wrong: a key with two different values.

    Args:
        component: its name, for messages.
        parts: entries that the sets of ranks saved; a key may be in several.
    """
    found: dict[Any, Any] = {}
    problems = []
    for part in parts:
        for key, value in part.items():
            if key in found and disputed(component, [found[key], value]):
                problems.append(f"{key}: the ranks that hold it saved different values")
            found.setdefault(key, value)
    return found, problems


def disputed(component: str, values: Sequence[object]) -> bool:
    """Return whether values are not all equal, bytes included."""
    return len({content_digest(component, value) for value in values}) > 1
