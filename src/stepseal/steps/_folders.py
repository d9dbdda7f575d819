"""Names of folders in `staging/`, `superseded/` and `trash/`: made here, and read here.

A name says whose folder it is and, once it was moved, when. Names that do not parse were not given
by stepseal, and are left alone.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal, cast

from stepseal.layout import step_name

__all__ = ["FolderName", "Fate", "parse_folder"]

Fate = Literal["", ".pruned", ".deleting"]
"""What becomes of a folder in the trash. `.pruned`: a whole step that may come back. `.deleting`:
its files are being removed, it never comes back. Anything else has none."""
_NAME = re.compile(
    r"step-(0|[1-9][0-9]{0,15})\.([1-9][0-9]{0,15})\.([0-9a-f]{32})"
    r"(?:\.([0-9a-f]{8})([0-9a-f]{8})(\.pruned|\.deleting|))?"
)


@dataclass(frozen=True, slots=True)
class FolderName:
    """One name, taken apart."""

    step: int
    incarnation: int
    attempt: str
    moved_at_s: int | None = None
    """Unix time of the move out of its place; None for an attempt that grows in staging."""
    random: str = ""
    """Eight hex digits that keep two moves of one second apart."""
    fate: Fate = ""

    def __str__(self) -> str:
        """Return the folder's name."""
        name = f"{step_name(self.step)}.{self.incarnation}.{self.attempt}"
        if self.moved_at_s is None:
            return name
        return f"{name}.{self.moved_at_s:08x}{self.random}{self.fate}"

    def moved(self, now_s: float, fate: Fate = "") -> FolderName:
        """Return the name under which a folder is moved out of its place now."""
        random = secrets.token_hex(4)
        return FolderName(self.step, self.incarnation, self.attempt, int(now_s), random, fate)

    def with_fate(self, fate: Fate) -> FolderName:
        """Return the same move with another fate."""
        return FolderName(
            self.step, self.incarnation, self.attempt, self.moved_at_s, self.random, fate
        )


def parse_folder(key: str) -> FolderName | None:
    """Return what the last segment of a key says, or None if stepseal never gives such a name."""
    match = _NAME.fullmatch(key.rpartition("/")[2])
    if match is None:
        return None
    step, incarnation, attempt, moved_at, random, fate = match.groups()
    if moved_at is None:
        return FolderName(int(step), int(incarnation), attempt)
    return FolderName(
        int(step), int(incarnation), attempt, int(moved_at, 16), random, cast("Fate", fate)
    )
