"""Findings about values: short texts for error messages, and a list of bounded length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Problems", "show", "show_key"]

_MAX_LISTED = 100
_MAX_SHOWN = 80


@dataclass(slots=True)
class Problems:
    """A list of findings with a bounded length."""

    listed: list[str] = field(default_factory=list)
    """The first hundred findings, each with its path."""
    num_more: int = 0
    """Number of findings that are not listed."""

    def add(self, path: str, text: str) -> None:
        """Add one finding about the value at `path`."""
        if len(self.listed) < _MAX_LISTED:
            self.listed.append(f"{path}: {text}" if path else text)
        else:
            self.num_more += 1

    def extend(self, path: str, texts: Iterable[str]) -> None:
        """Add several findings about the value at `path`."""
        for text in texts:
            self.add(path, text)

    def all(self) -> list[str]:
        """Return the listed findings, and one line with the number of others."""
        return [*self.listed, f"and {self.num_more} more"] if self.num_more else list(self.listed)


def show(value: object) -> str:
    """Return a short form of any value for an error message; never fails, never gets long."""
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= 1 << 256:
        return "a huge int"
    text = repr(value[: _MAX_SHOWN + 1] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def show_key(key: str) -> str:
    """Return a short form of a key for the path to a value; quoted if it is not plain text."""
    start = key[:_MAX_SHOWN]
    return start if start.isprintable() else show(key)
