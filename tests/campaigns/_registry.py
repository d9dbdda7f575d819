"""All broken variants: which campaign runs each, what it breaks, and what must be seen.

Each campaign keeps its own table beside the patches; here they are read together.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.campaigns.actors import _variants as actors
from tests.campaigns.corruption import _variants as corruption
from tests.campaigns.errno import _variants as errno
from tests.campaigns.ext4 import _variants as ext4
from tests.campaigns.fuzz import run as fuzz
from tests.campaigns.hang import _variants as hang
from tests.campaigns.kill import _variants as kill
from tests.campaigns.model import run as model
from tests.campaigns.placements import _variants as placements
from tests.campaigns.power_loss import _variants as power_loss
from tests.campaigns.simulator import _variants as simulator
from tests.campaigns.soak import _variants as soak
from tests.campaigns.strace import _variants as strace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Entry", "registry"]

_ANY = "any violation"


@dataclass(frozen=True)
class Entry:
    """One broken variant."""

    campaign: str
    name: str
    breaks: str
    """The first line of its patch's docstring; empty where the name says it all."""
    seen: str
    """What the campaign must report."""

    def text(self) -> str:
        """Return one line."""
        breaks = f": {self.breaks}" if self.breaks else ""
        return f"{self.campaign}, {self.name}{breaks} Must be seen: {self.seen}."


def registry() -> tuple[Entry, ...]:
    """Return the variants of all campaigns, in the order in which campaigns run."""
    ext4_names = [ext4.LYING_DISK, *ext4.VARIANTS]
    return (
        *_entries("kill", kill.VARIANTS, lambda name: kill.VARIANTS[name].caught_as),
        *_entries("errno", errno.VARIANTS, lambda name: errno.VARIANTS[name].caught_as),
        *_entries("power-loss", power_loss.VARIANTS, lambda _: {_ANY}),
        *_entries("ext4", ext4.VARIANTS, ext4.caught_as, ext4_names),
        *_entries("strace", strace.VARIANTS, lambda name: strace.VARIANTS[name].caught_as),
        *_entries("simulator", simulator.VARIANTS, lambda _: {"a broken promise"}),
        *_entries("model", model.MUTANTS, lambda _: {"a broken promise"}),
        *_entries("corruption", corruption.VARIANTS, lambda n: {corruption.VARIANTS[n].caught_as}),
        *_entries("fuzz", fuzz.VARIANTS, lambda name: {f"{fuzz.VARIANTS[name][0]}: {_ANY}"}),
        *_entries("hang", hang.HANGING, lambda name: {hang.HANGING[name].told}),
        *_entries("placements", placements.VARIANTS, lambda n: {placements.VARIANTS[n].told}),
        *_entries("soak", soak.SOAKED, lambda name: {soak.SOAKED[name].told}),
        *_entries("actors", actors.VARIANTS, lambda name: {actors.VARIANTS[name].told}),
    )


def _entries(
    campaign: str,
    table: Any,  # noqa: ANN401 - of that campaign
    seen: Callable[[str], Iterable[str]],
    names: Iterable[str] | None = None,
) -> list[Entry]:
    return [
        Entry(campaign, name, _breaks(table.get(name)), " or ".join(sorted(seen(name))))
        for name in names or table
        if name != "none"
    ]


def _breaks(variant: object) -> str:
    patch = getattr(variant, "patch", None) or getattr(variant, "patches", None)
    return (inspect.getdoc(patch) or "").partition("\n")[0] if inspect.isfunction(patch) else ""
