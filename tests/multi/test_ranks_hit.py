"""Real ranks, killed or stopped: nobody hangs, nobody lies, the job resumes.

The campaign `hang` hits participants of real processes at all these gates, and at more of them, in
these ways and others. Here the participants are ranks of a process group of torch: a few gates in
which torch and stepseal wait for each other; nightly, every gate.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.multi._cases import Case, Report, make_root, matrix, run_case

if TYPE_CHECKING:
    from pathlib import Path

_LANES = 2
"""Cases that run at once."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(2, tmp_path_factory.mktemp("two"))


CASES = (
    Case(2, "connect/reached", 1, "kill"),
    Case(2, "restore/apply", 1, "stop"),
    Case(2, "coordinator/claimed", 0, "zombie"),
    Case(2, "save/write", 1, "kill"),
    Case(2, "coordinator/publish", 0, "kill"),
    Case(2, "coordinator/renamed", 0, "stop"),
    Case(2, "close/in-flight", 1, "zombie"),
)
"""Each phase of a job, both ranks, each way of being hit."""


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rank_that_is_hit_harms_nobody(case: Case, root: Path, tmp_path: Path) -> None:
    report = run_case(case, root, tmp_path / "case")
    assert not report.violations, "\n".join([*report.violations, *report.kinds])


@pytest.mark.nightly
@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_at_every_gate_in_every_way(
    world: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = make_root(world, tmp_path)
    cases = list(matrix(world))
    folders = [tmp_path / str(case) for case in cases]
    with ProcessPoolExecutor(_LANES, mp_context=mp.get_context("spawn")) as lanes:
        reports = list(lanes.map(run_case, cases, itertools.repeat(template), folders))
    with capsys.disabled():
        print(_summary(world, reports))
    broken = [f"{r.case}: {violation}" for r in reports for violation in r.violations]
    assert not broken, "\n".join(broken)


def _summary(world: int, reports: list[Report]) -> str:
    kinds = collections.Counter(kind for report in reports for kind in report.kinds)
    lines = [
        f"{world} ranks: {len(reports)} cases, {sum(len(r.violations) for r in reports)} "
        f"violations; longest overrun of a deadline {max(r.overrun_s for r in reports):.2f} s; "
        f"longest time from hit to answer {max(r.noticed_s for r in reports):.2f} s; slowest case "
        f"{max(r.took_s for r in reports):.1f} s; {os.cpu_count()} cores"
    ]
    lines += [f"  {count:4d} cases saw {kind}" for kind, count in sorted(kinds.items())]
    return "\n".join(lines)
