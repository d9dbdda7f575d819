"""The kill campaign as one row: every workload, every broken protocol.

`python -m tests.campaigns.kill.run --size nightly`; see `point` for a single workload or point.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.campaigns.harness._lives import WORKLOADS as ALL
from tests.campaigns.harness._sizes import Row, main
from tests.campaigns.kill._report import campaign, kinds_campaign, run_jobs
from tests.campaigns.kill._variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.campaigns.harness._sizes import Size
    from tests.campaigns.kill._report import Report

__all__ = ["BROKEN", "WORKLOADS", "run", "run_variants", "violations_of"]

WORKLOADS = tuple(ALL)
"""The first one is the fast campaign."""
BROKEN = tuple(name for name in VARIANTS if name != "none")
_STRIDE = "5"  # a commit takes more operations than that


def run_variants(names: Sequence[str], *, known: bool = False) -> dict[str, Report]:
    """Run the campaign on broken protocols, each until it is caught.

    Args:
        names: of the variants.
        known: begin where each was seen before; otherwise it has to be found.
    """
    split = ["--num-shares", _STRIDE, "--stop-after", "1", *(["--known"] if known else [])]
    jobs = [[VARIANTS[name].workload, "--variant", name, *split] for name in names]
    return dict(zip(names, (one for (one,) in run_jobs(*jobs)), strict=True))


def run(size: Size) -> Row:
    """Kill before every mutating operation of the workloads; the fast size, before one of each kind
    of the first workload.
    """
    started_s = time.monotonic()
    actions = {"fast": ["kill"], "nightly": ["kill"], "release": ["kill", "tear"]}[size]
    workloads = WORKLOADS[:1] if size == "fast" else WORKLOADS
    kill = kinds_campaign if size == "fast" else campaign
    reports = {
        f"{name} ({action})": kill(name, "--action", action)
        for action in actions
        for name in workloads
    }
    caught = run_variants(BROKEN, known=size == "fast")
    noticed = [name for name in BROKEN if caught[name].kinds & VARIANTS[name].caught_as]
    return Row(
        campaign="kill -9 before every mutating storage operation",
        unit="kill points",
        cases=sum(report.num_kills for report in reports.values()),
        violations=tuple(
            text
            for name, report in reports.items()
            for text in violations_of(name, report, by_kind=size == "fast")
        ),
        caught=tuple(noticed),
        missed=tuple(name for name in BROKEN if name not in noticed),
        seconds=time.monotonic() - started_s,
        notes=tuple(f"{name}: {report.summary()}" for name, report in reports.items()),
    )


def violations_of(name: str, report: Report, *, by_kind: bool = False) -> list[str]:
    """Return what was broken, and what was not tried: of every operation, or of every kind."""
    missed = sorted(report.missed_kinds) if by_kind else report.missed
    found = [f"{each.reproduction}  # {each.kind}: {each.text}" for each in report.broken]
    found += [f"{name}: no job died before: {operation}" for operation in missed]
    if not report.untouched:
        found.append(f"{name}: no run completed, so that there may be further operations")
    return found


if __name__ == "__main__":
    sys.exit(main(run))
