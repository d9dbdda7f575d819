"""How large a campaign is, what it reports, and how it is started by hand.

Every campaign is a module with `run(size) -> Row`, started by `python -m
tests.campaigns.<name>.run --size fast|nightly|release`. `fast` is part of scripts/test; all fast
ones together take some minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Row", "Size", "main", "report"]

Size = Literal["fast", "nightly", "release"]


@dataclass(frozen=True)
class Row:
    """One line of the table in docs/reliability.md."""

    campaign: str
    unit: str
    """What one case is: `kill points`, `images`, `seeds`, `states`."""
    cases: int
    violations: tuple[str, ...]
    """Each with the command that reproduces it; empty when every promise held."""
    caught: tuple[str, ...]
    """Names of the broken variants that were noticed."""
    missed: tuple[str, ...]
    """Names of those that were not: the campaign proves nothing about them."""
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def good(self) -> bool:
        """True if nothing was violated and every variant was caught."""
        return not self.violations and not self.missed and self.cases > 0

    def text(self) -> str:
        """Return the line of the table."""
        tried = len(self.caught) + len(self.missed)
        rate = self.cases / self.seconds if self.seconds else 0.0
        return (
            f"{self.campaign}: {self.cases:,} {self.unit}, {len(self.violations)} violations, "
            f"{len(self.caught)} of {tried} variants caught, {rate:.1f}/s, {self.seconds:.0f} s"
        )


def main(run: Callable[[Size], Row], why_not: Callable[[], str | None] = lambda: None) -> int:
    """Run one campaign from the command line; return the exit code.

    Args:
        run: the campaign.
        why_not: says what this machine lacks for it, if anything; that is no failure.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=get_args(Size), default="fast")
    size = parser.parse_args().size
    if (reason := why_not()) is not None:
        print(f"skipped: {reason}", flush=True)
        return 0
    return report(run(size))


def report(row: Row) -> int:
    """Print a row with all that it has to say; return the exit code."""
    print(row.text(), flush=True)
    for note in row.notes:
        print(f"  {note}")
    for name in row.missed:
        print(f"  MISSED VARIANT: {name}")
    for violation in row.violations[:20]:
        print(f"  VIOLATION: {violation}")
    sys.stdout.flush()
    return 0 if row.good else 1
