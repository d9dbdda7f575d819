"""Builds and parses names of folders in `staging/`, `superseded/` and `trash/`.

A name holds step (or version), incarnation and attempt, and the time of the move if the folder was
moved. stepseal never gives names that do not parse; folders with such names are left alone.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import Literal, cast

from stepseal.layout import Area

__all__ = ["FolderName", "Fate", "parse_folder"]

Fate = Literal["", ".pruned", ".deleting", ".in-place"]
"""What happens to a folder in the trash. `.pruned`: a whole step that may be put back. `.deleting`:
its files are being removed, so it is never put back. `.in-place`: an empty folder, which names a
step whose files are being removed at its final name. Other folders have no fate."""
_NAME = re.compile(
    r"(step-|v-)(0|[1-9][0-9]{0,15})\.([1-9][0-9]{0,15})\.([0-9a-f]{32})"
    r"(?:\.([0-9a-f]{8})([0-9a-f]{8})(\.pruned|\.deleting|\.in-place|))?"
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
    area: Area = Area.STEPS

    def __str__(self) -> str:
        """Return the folder's name."""
        name = f"{self.area.folder_name(self.step)}.{self.incarnation}.{self.attempt}"
        if self.moved_at_s is None:
            return name
        return f"{name}.{self.moved_at_s:08x}{self.random}{self.fate}"

    def moved(self, now_s: float, fate: Fate = "") -> FolderName:
        """Return the folder's name after a move at `now_s`."""
        return replace(self, moved_at_s=int(now_s), random=secrets.token_hex(4), fate=fate)

    def with_fate(self, fate: Fate) -> FolderName:
        """Return the same move with another fate."""
        return replace(self, fate=fate)

    @property
    def place(self) -> str:
        """Key of the attempt once it is committed."""
        return self.area.key(self.step)


def parse_folder(key: str, area: Area | None = Area.STEPS) -> FolderName | None:
    """Parse the last segment of a key; None if stepseal never gives such a name in this area.

    Args:
        key: of a folder.
        area: None parses names of every area.
    """
    match = _NAME.fullmatch(key.rpartition("/")[2])
    if match is None:
        return None
    prefix, step, incarnation, attempt, moved_at, random, fate = match.groups()
    found = next(one for one in Area if one.prefix == prefix)
    if area not in (None, found):
        return None
    name = FolderName(int(step), int(incarnation), attempt, area=found)
    if moved_at is None:
        return name
    return replace(name, moved_at_s=int(moved_at, 16), random=random, fate=cast("Fate", fate))
