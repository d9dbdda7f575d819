"""What a crash campaign is asked for, and what came out."""

from __future__ import annotations

import json
import os
import re
import shlex
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.campaigns.harness._programs import run_programs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SWITCH_INTERVALS_S", "Broken", "Options", "Report", "campaign", "kind_of",
           "kinds_campaign", "run_jobs"]  # fmt: skip

_MODULE = "tests.campaigns.kill.point"
_NUMBER = re.compile(r"\d+")


def kind_of(name: str) -> str:
    """Return the kind of an operation: its verb and the kind of its path, whatever the numbers."""
    return _NUMBER.sub("N", name.rpartition("#")[0])


SWITCH_INTERVALS_S = (1e-6, 1e-5, 1e-4, 1e-3, 5e-3)
"""How long a thread may run before others get their turn; the seed chooses one."""
_NEVER = "1000000"
"""An index that no job reaches."""
_MOST_RETRIES = 10
"""Runs by name for what no indexed kill struck; another thread may take that turn again."""


@dataclass(frozen=True)
class Options:
    """What one process runs."""

    workload: str
    variant: str = "none"
    action: str = "kill"
    """`kill`: die before the operation; `tear`: die in the middle of it, if it is a write."""
    kill_index: Sequence[int] = ()
    """Only these; with `kill_at` empty too, all."""
    kill_at: Sequence[str] = ()
    """Operations by name: pattern, `#`, and how often it has come by then."""
    share: int = 0
    """This process takes the kill points `share`, `share + num_shares`, and so on."""
    num_shares: int = 1
    stop_after: int | None = None
    """Stop when the variant was caught at so many kill points."""
    seed: int | None = None
    """Let the threads take turns in another way."""
    known: bool = False
    """Begin where the variant is known to show."""
    flagless: bool = False
    """The file system knows no flag of renameat2."""

    def reproduction(self, at: int | str, struck: str) -> str:
        """Return the command that repeats one kill point."""
        point = f"--kill-at {shlex.quote(struck)}" if struck else f"--kill-index {at}"
        more = "" if self.variant == "none" else f" --variant {self.variant}"
        more += "" if self.action == "kill" else f" --action {self.action}"
        more += " --flagless" if self.flagless else ""
        more += "" if self.seed is None else f" --seed {self.seed}"
        return f"python -m {_MODULE} {self.workload}{more} {point}"


@dataclass(frozen=True)
class Broken:
    """A violation, and how to see it again."""

    point: str
    struck: str
    """Name of the operation before which the job died."""
    kind: str
    text: str
    reproduction: str


@dataclass
class Report:
    """What came out of one or more processes."""

    num_kills: int = 0
    num_torn: int = 0
    """Kill points that left a step begun and not acknowledged."""
    untouched: bool = False
    """The last run completed: there was no further operation."""
    seconds: float = 0.0
    struck: list[str] = field(default_factory=list)
    """Names of the operations before which a job died."""
    performed: list[str] = field(default_factory=list)
    """Names of the operations of every run that completed. How often a pattern comes varies a
    little, because threads take turns differently; the smallest count is what all have."""
    broken: list[Broken] = field(default_factory=list)

    def note(self, struck: str, *, killed: bool, torn: bool) -> None:
        """Count one kill point."""
        self.num_kills += killed
        self.num_torn += killed and torn
        self.untouched = not killed
        self.struck = sorted({*self.struck, struck} - {""})

    def completed(self, performed: Iterable[str]) -> None:
        """Take in the operations of a run; none if it did not complete."""
        names = set(performed)
        if names:
            self.performed = sorted(names & set(self.performed or names))

    @property
    def missed(self) -> list[str]:
        """Operations that no job died before, because threads took turns differently."""
        return sorted(set(self.performed) - set(self.struck))

    @property
    def missed_kinds(self) -> set[str]:
        """Kinds of operation that no job died before."""
        return {kind_of(name) for name in self.performed} - {kind_of(n) for n in self.struck}

    @property
    def kinds(self) -> set[str]:
        """Kinds of violation."""
        return {broken.kind for broken in self.broken}

    def summary(self) -> str:
        """Return the figures in one line."""
        bad = len({broken.point for broken in self.broken})
        rate = self.num_kills / max(self.seconds, 1e-9)
        return (
            f"{self.num_kills} kill points ({self.num_torn} left a torn step, {len(self.struck)} "
            f"different operations), {bad} with violations, {rate:.1f}/s, {self.seconds:.1f} s"
        )

    def text(self, what: str) -> str:
        """Return every violation with its reproduction, then the summary."""
        lines = [
            f"{broken.kind} at {broken.point} ({broken.struck}): {broken.text}\n"
            f"    {broken.reproduction}"
            for broken in self.broken
        ]
        return "\n".join([*lines, f"{what}: {self.summary()}"])


def _merged(reports: Iterable[Report]) -> Report:
    """Join what several processes found at the same time."""
    whole = Report(untouched=True)
    for report in reports:
        whole.num_kills += report.num_kills
        whole.num_torn += report.num_torn
        whole.untouched = whole.untouched and report.untouched
        whole.seconds = max(whole.seconds, report.seconds)
        whole.struck = sorted({*whole.struck, *report.struck})
        whole.completed(report.performed)
        whole.broken += report.broken
    return whole


def run_jobs(*jobs: Sequence[str]) -> list[list[Report]]:
    """Run the campaign program with the arguments of each job, all at the same time; return a
    report per job and variant.
    """
    texts = run_programs([[_MODULE, *job, "--json"] for job in jobs])
    return [[_report(json.loads(line)) for line in text.splitlines()] for text in texts]


def _report(found: dict[str, Any]) -> Report:
    broken = [Broken(**each) for each in found.pop("broken")]
    return Report(**found, broken=broken)


def _at(names: Iterable[str]) -> list[str]:
    return [text for name in names for text in ("--kill-at", name)]


def _and(whole: Report, more: Report) -> Report:
    """Add what was struck by name, where a name need not come up again."""
    more.untouched = True
    joined = _merged([whole, more])
    joined.seconds = whole.seconds + more.seconds
    return joined


def campaign(workload: str, *arguments: str) -> Report:
    """Kill at every index, one process per core; then at operations that no index hit."""

    num_shares = len(os.sched_getaffinity(0))
    split = [["--share", str(n), "--num-shares", str(num_shares)] for n in range(num_shares)]
    whole = _merged(one for (one,) in run_jobs(*([workload, *arguments, *own] for own in split)))
    for _ in range(_MOST_RETRIES):
        if not whole.missed:
            break
        ((more,),) = run_jobs([workload, *arguments, *_at(whole.missed)])
        whole = _and(whole, more)
    return whole


def kinds_campaign(workload: str, *arguments: str) -> Report:
    """Kill before one operation of each kind, chosen from all over the job."""
    num_shares = len(os.sched_getaffinity(0))
    ((whole,),) = run_jobs([workload, *arguments, "--kill-index", _NEVER])
    for turn in range(_MOST_RETRIES):
        names = [_chosen(kind, whole.performed, turn) for kind in sorted(whole.missed_kinds)]
        if not names:
            break
        shares = [names[number::num_shares] for number in range(num_shares)]
        reports = run_jobs(*([workload, *arguments, *_at(mine)] for mine in shares if mine))
        whole = _and(whole, _merged(one for (one,) in reports))
    return whole


def _chosen(kind: str, performed: Iterable[str], turn: int) -> str:
    """Return one operation of a kind: the same in each run, and early, late or between."""
    names = sorted(name for name in performed if kind_of(name) == kind)
    return names[(zlib.crc32(kind.encode()) + turn) % len(names)]
