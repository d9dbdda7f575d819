"""Eight ranks with a component of each sharing: whoever fails in one of them, nobody hangs.

A rank is killed, or raises, where the state of that component is taken (nothing of it is written
yet), and where its own part is written but not reported. All others hear one typed error in time,
nothing is committed, and the job goes on: after a kill a new one, from the step before, with all
state right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.multi._cases import FIRST, Case, How, Report, judge_alike, make_root, run_case
from tests.multi._held import SHARINGS
from tests.multi._ranks import Call

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.serial]

_WORLD = 8
_VICTIMS = {
    "global": 0,  # writes it, and is the coordinator's
    "replicated": 5,  # holds it and does not write it
    "sharded": 7,
    "per_rank": 3,
    "per_group": 1,  # writes it for its set
    "per_node": 4,  # writes it for its node
}
_GATES = ("save/capture", "save/write")
_HOWS: tuple[How, ...] = ("kill", "raise")
CASES = [
    Case(_WORLD, gate, _VICTIMS[sharing], how, sharing)
    for sharing in SHARINGS
    for gate in _GATES
    for how in _HOWS
]
EVERYDAY = [
    Case(_WORLD, "save/capture", _VICTIMS["sharded"], "raise", "sharded"),
    Case(_WORLD, "save/write", _VICTIMS["per_group"], "kill", "per_group"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(_WORLD, tmp_path_factory.mktemp("eight"), "per_rank")


def check(case: Case, root: Path, folder: Path) -> None:
    report = run_case(case, root, folder)
    assert not report.violations, "\n".join([*report.violations, *report.kinds])


@pytest.mark.parametrize("case", EVERYDAY, ids=str)
def test_a_failing_rank_hangs_nobody(case: Case, root: Path, tmp_path: Path) -> None:
    check(case, root, tmp_path / "case")


@pytest.mark.nightly
@pytest.mark.parametrize("case", [case for case in CASES if case not in EVERYDAY], ids=str)
def test_a_failing_rank_in_any_sharing_hangs_nobody(case: Case, root: Path, tmp_path: Path) -> None:
    check(case, root, tmp_path / "case")


def told(rank: int, message: str = "trainer/1 ended", kind: str = "participant_failed") -> Call:
    return Call(rank, "save", 0.0, 1.0, "raised", {"kind": kind, "message": message})


def saved(rank: int) -> Call:
    return Call(rank, "save", 0.0, 1.0, "returned", {})


ENTRY: Any = object()


@pytest.mark.parametrize(
    ("calls", "commits", "violation"),
    [
        ([told(0), told(2)], {FIRST: ENTRY}, ""),
        ([told(0), saved(2)], {FIRST: ENTRY}, "rank 2 was not told that the save failed"),
        ([told(0), told(2, "no answer")], {}, "not one error for all"),
        ([told(0), told(2, kind="commit_timeout")], {}, "not one error for all"),
        ([told(0), told(2)], {FIRST + 1: ENTRY}, "was committed"),
    ],
)
def test_whoever_hears_otherwise_or_nothing_is_seen(
    calls: list[Call], commits: dict[int, Any], violation: str
) -> None:
    report = Report("case")
    judge_alike(Case(3, "save/write", 1, "kill", "per_rank"), calls, commits, report)
    assert len(report.violations) == bool(violation)
    assert violation in "".join(report.violations)
