"""Builds and parses names of folders in `staging/`, `superseded/` and `trash/`.

A name holds step, incarnation and attempt, and the time of the move if the folder was moved.
stepseal never gives names that do not parse; folders with such names are left alone.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal, cast

from stepseal.layout import step_name

__all__ = ["FolderName", "Fate", "parse_folder"]

Fate = Literal["", ".pruned", ".deleting"]
"""What happens to a folder in the trash. `.pruned`: a whole step that may be put back. `.deleting`:
its files are being removed, so it is never put back. Other folders have no fate."""
_NAME = re.compile(
    r"step-(0|[1-9][0-9]{0,15})\.([1-9][0-9]{0,15})\.([0-9a-f]{32})"
    r"(?:\.([0-9a-f]{8})([0-9a-f]{8})(\.pruned|\.deleting|))?"
)


@dataclass(frozen=True, slots=True)
class FolderName:
    """One parsed name."""

    step: int
    incarnation: int
    attempt: str
    moved_at_s: int | None = None
    """Unix time of the move; None for an attempt in staging."""
    random: str = ""
    """Eight random hex digits; they make two moves in the same second distinct."""
    fate: Fate = ""

    def __str__(self) -> str:
        """Return the folder's name."""
        name = f"{step_name(self.step)}.{self.incarnation}.{self.attempt}"
        if self.moved_at_s is None:
            return name
        return f"{name}.{self.moved_at_s:08x}{self.random}{self.fate}"

    def moved(self, now_s: float, fate: Fate = "") -> FolderName:
        """Return the folder's name after a move at `now_s`."""
        random = secrets.token_hex(4)
        return FolderName(self.step, self.incarnation, self.attempt, int(now_s), random, fate)

    def with_fate(self, fate: Fate) -> FolderName:
        """Return the same move with another fate."""
        return FolderName(
            self.step, self.incarnation, self.attempt, self.moved_at_s, self.random, fate
        )


def parse_folder(key: str) -> FolderName | None:
    """Parse the last segment of a key; None if stepseal never gives such a name."""
    match = _NAME.fullmatch(key.rpartition("/")[2])
    if match is None:
        return None
    step, incarnation, attempt, moved_at, random, fate = match.groups()
    if moved_at is None:
        return FolderName(int(step), int(incarnation), attempt)
    return FolderName(
        int(step), int(incarnation), attempt, int(moved_at, 16), random, cast("Fate", fate)
    )
