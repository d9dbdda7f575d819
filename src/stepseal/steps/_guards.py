"""Guards, which protect a step from any keep rule: pins, leases, and the newest claim's parent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepseal.layout import Area
from stepseal.steps._claims import newest_claim
from stepseal.steps._leases import read_leases
from stepseal.steps._pins import read_pins

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepseal.storage import Storage

__all__ = ["Guards", "read_guards"]


@dataclass(frozen=True, slots=True)
class Guards:
    """Steps that must stay, at one point in time."""

    pinned: frozenset[int] = frozenset()
    leased: Mapping[int, int] = field(default_factory=dict)
    """Step to the expiry of its last lease, Unix seconds."""
    parent: int | None = None
    """Step that the newest incarnation resumed from."""

    def reasons(self, step: int) -> tuple[str, ...]:
        """Return why a step must stay; empty if it may be removed."""
        found = []
        if step in self.pinned:
            found.append("pinned")
        if step in self.leased:
            found.append("being read (leased)")
        if step == self.parent:
            found.append("the newest start of the job resumed from it")
        return tuple(found)


def read_guards(storage: Storage, now_s: float, area: Area = Area.STEPS) -> Guards:
    """Read everything that protects steps now; publications are protected by leases alone.

    Claims are read last. A restore holds a lease on its step until its claim names the step, so
    this function always sees one of the two.

    Args:
        storage: the root.
        now_s: Unix time; leases that expired before are ignored.
        area: what they protect.

    Raises:
        StorageUnavailable: the guards cannot be read; then nothing may be removed.
    """
    leased = read_leases(storage, now_s, area)
    if area is not Area.STEPS:
        return Guards(leased=leased)
    pinned = read_pins(storage)
    claim = newest_claim(storage)
    parent = None if claim is None else claim.parent
    return Guards(pinned, leased, None if parent is None else parent.step)
