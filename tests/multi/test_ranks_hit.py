"""Real ranks, each killed or stopped at every gate: nobody hangs, nobody lies, the job resumes."""

from __future__ import annotations

import collections
import itertools
import multiprocessing as mp
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.multi._cases import (
    OF_ANY,
    OF_CONNECTING,
    OF_COORDINATOR,
    OF_OTHERS,
    Case,
    How,
    Report,
    make_root,
    matrix,
    run_case,
)

if TYPE_CHECKING:
    from pathlib import Path

_LANES = 2
"""Cases that run at once."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(2, tmp_path_factory.mktemp("two"))


def _each_gate_once() -> list[Case]:
    """Return every gate once, with victims and ways of being hit taken in turn."""
    victims = itertools.cycle((0, 1))
    order: tuple[How, ...] = ("kill", "stop", "zombie", "kill", "stop")
    ways = itertools.cycle(order)
    cases = [Case(2, gate, next(victims), next(ways)) for gate in OF_ANY]
    cases += [Case(2, gate, 1, next(ways)) for gate in (*OF_CONNECTING, *OF_OTHERS)]
    return cases + [Case(2, gate, 0, next(ways)) for gate in OF_COORDINATOR]


@pytest.mark.slow
@pytest.mark.parametrize("case", _each_gate_once(), ids=str)
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
