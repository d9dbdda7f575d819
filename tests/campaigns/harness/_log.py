"""What a job was told, kept outside the storage under test, and what a root may hold therefore.

An acknowledgement is appended only after `wait()` returned, so it never says more than the job knew
when it was killed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Event", "Kind", "Log", "OpenLog", "Timeline", "timelines_of"]

Kind = Literal["begin", "acknowledged", "branching", "branched"]


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the log."""

    kind: Kind
    """`begin`: about to save; `acknowledged`: `wait()` returned; `branching` and `branched`: about
    to restore exactly `step`, and done."""
    life: int
    step: int
    digest: str = ""
    """Of the step's values."""


class Log:
    """Appends events; each survives the death of the process right after.

    Args:
        path: a file, made with the first event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, event: Event) -> None:
        """Append one event with one write."""
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _write(fd, event)
        finally:
            os.close(fd)

    def events(self) -> list[Event]:
        """Return all events, oldest first."""
        if not self._path.exists():
            return []
        return [Event(*json.loads(line)) for line in self._path.read_text().splitlines()]


class OpenLog(Log):
    """A log whose file is open beforehand, so that an event takes no call but write.

    Args:
        path: a file, made here.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, event: Event) -> None:
        """Append one event with one write."""
        _write(self._fd, event)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _write(fd: int, event: Event) -> None:
    line = json.dumps([event.kind, event.life, event.step, event.digest]).encode() + b"\n"
    assert os.write(fd, line) == len(line)


@dataclass(slots=True)
class Timeline:
    """The steps that descend from each other, as far as the log knows."""

    begun: set[tuple[int, int]] = field(default_factory=set)
    """Life and step of every save that was begun: it may be committed."""
    acknowledged: dict[int, Event] = field(default_factory=dict)
    """By step: it must be there."""

    @property
    def newest(self) -> int | None:
        """The newest step that a restore may not fall behind."""
        return max(self.acknowledged, default=None)

    def cut(self, step: int) -> Timeline:
        """Return the timeline of a job that went back to `step`."""
        begun = {(life, number) for life, number in self.begun if number <= step}
        kept = {number: event for number, event in self.acknowledged.items() if number <= step}
        return Timeline(begun, kept)


def timelines_of(events: list[Event]) -> list[Timeline]:
    """Return the timelines that the job may be on: two if it was killed while it went back."""
    current = Timeline()
    branch: Timeline | None = None
    branched: set[int] = set()
    for event in events:
        if event.kind == "begin":
            current.begun.add((event.life, event.step))
        elif event.kind == "acknowledged":
            current.acknowledged.setdefault(event.step, event)
        elif event.life not in branched:  # every participant says so
            branch = current.cut(event.step)
            if event.kind == "branched":
                branched.add(event.life)
                current, branch = branch, None
    return [current] if branch is None else [current, branch]
