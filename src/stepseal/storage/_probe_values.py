"""What a probe finds out, as values; what it means for a promise is judged elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stepseal.storage._mounts import Mount

__all__ = ["ABILITIES", "Ability", "Finding", "Probe"]

Ability = Literal[
    "fsync_file",
    "fsync_dir",
    "exclusive_create",
    "link",
    "rename_dir",
    "rename_keeps_full_dir",
    "noreplace_file",
    "noreplace_dir",
    "exchange",
    "direct_io",
    "nofollow",
    "modes",
    "one_winner",
    "seen_at_once",
]
"""What is tried, each by itself."""
ABILITIES: dict[Ability, str] = {
    "fsync_file": "fsync of a file",
    "fsync_dir": "fsync of a directory",
    "exclusive_create": "O_EXCL creates only",
    "link": "link creates only",
    "rename_dir": "a renamed directory appears whole",
    "rename_keeps_full_dir": "rename never replaces a directory with entries",
    "noreplace_file": "RENAME_NOREPLACE, files",
    "noreplace_dir": "RENAME_NOREPLACE, directories",
    "exchange": "RENAME_EXCHANGE",
    "direct_io": "O_DIRECT writes and reads",
    "nofollow": "O_NOFOLLOW refuses symlinks",
    "modes": "modes 0600 and 0700 are kept",
    "one_winner": "of several processes one creates, one links",
    "seen_at_once": "another process sees what was written",
}
"""Each in words, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether one ability is really there."""

    ability: Ability
    honoured: bool | None
    """None: it could not be told."""
    detail: str = ""
    """What was seen instead; empty where it is honoured."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a directory's file system really does."""

    path: str
    findings: tuple[Finding, ...]
    """One for each of `ABILITIES`, in that order."""
    mount: Mount | None
    sync_doubts: tuple[str, ...]
    """What the mount says against its syncs."""
    free_bytes: int
    free_inodes: int | None
    """None where the file system has no fixed number."""
    quota: str | None
    """That the mount keeps quotas, which may leave less than is free; None: not as far as it says.

    How much is left of one is not asked: servers and containers do not tell it here.
    """
    fsync_s: float | None
    """Median over some writes of 4 KiB, each synced."""
    clock_skew_s: float
    """Time stamps of the file system minus this host's clock."""
    clock_skew_error_s: float

    def honours(self, ability: Ability) -> bool:
        """Tell whether an ability was seen to be there."""
        return self.finding(ability).honoured is True

    def finding(self, ability: Ability) -> Finding:
        """Return the finding of one ability."""
        return next(found for found in self.findings if found.ability == ability)
