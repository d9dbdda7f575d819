"""A job killed by SIGKILL at any instant leaves whole steps only, loses none that it was promised,
and goes on where the newest one was.

Each campaign kills before every mutating storage operation, one per run, until a run completes; see
`_recovery` for what is checked after each. The same campaigns must catch deliberately broken
protocols.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.campaigns._kill_report import Report, campaign, run_program

CAUGHT_AS = {
    "commit-before-all-prepared": {"damaged", "values"},
    "names-shared-between-attempts": {"damaged", "values"},
    "prepared-before-close": {"damaged", "values"},
    "acknowledged-before-commit": {"lost"},
    "published-file-by-file": {"damaged", "values"},
}
VERBS = {
    "make_dir", "create_file", "write", "sync", "close", "sync_dir", "link", "rename", "remove_file"
}  # fmt: skip
NIGHTLY = [
    "async", "sync", "alone", "three", "superseding",
    "after-crash-in-part", "after-crash-at-commit", "after-crash-in-exchange",
]  # fmt: skip
# What only a file system without the flags of renameat2 does: the two moves of a superseding.
TWO_MOVES = [
    "rename step-20 -> .stepseal/superseded/step-20.2.*",
    "sync_dir .stepseal/superseded",
    "rename .stepseal/staging/step-20.2.* -> step-20",
    "rename step-30 -> .stepseal/superseded/step-30.2.*",
    "rename .stepseal/staging/step-30.2.* -> step-30",
]
STRIDE = "5"  # a commit takes more operations than that

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def check(name: str, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nSIGKILL, {name}: {report.summary()}")
    assert not report.broken, report.text(name)
    assert report.untouched
    assert report.num_kills >= len(report.performed)
    assert not report.missed


def test_killed_before_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign("mixed")
    check("mixed", report, capsys)
    assert {pattern.split()[0] for pattern in report.struck} >= VERBS


def test_killed_between_the_two_moves_of_a_superseding(capsys: pytest.CaptureFixture[str]) -> None:
    points = [text for pattern in TWO_MOVES for text in ("--kill-at", pattern)]
    report = run_program("superseding", "--flagless", *points)[0]
    with capsys.disabled():
        print(f"\nSIGKILL, superseding without rename flags: {report.summary()}")
    assert not report.broken, report.text("superseding, flagless")
    assert report.struck == sorted(TWO_MOVES)


def test_superseding_by_deleting_is_caught() -> None:
    chosen = [
        "--variant",
        "superseded-by-deleting",
        "--kill-at",
        "remove_file step-20/manifest.json",
    ]
    report = run_program("superseding", "--flagless", *chosen)[0]
    assert report.kinds & {"lost", "damaged"}, report.text("superseded-by-deleting")


@pytest.fixture(scope="module")
def caught() -> dict[str, Report]:
    """Run the campaign on each broken protocol until it is caught; two processes."""

    def run(names: list[str]) -> dict[str, Report]:
        wanted = [text for name in names for text in ("--variant", name)]
        split = ["--num-shares", STRIDE, "--stop-after", "1"]
        return dict(zip(names, run_program("mixed", *wanted, *split), strict=True))

    names = list(CAUGHT_AS)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, [names[::2], names[1::2]])
    return {**first, **second}


@pytest.mark.parametrize("variant", CAUGHT_AS)
def test_broken_protocols_are_caught(variant: str, caught: dict[str, Report]) -> None:
    report = caught[variant]
    assert report.kinds & CAUGHT_AS[variant], report.text(variant)


@pytest.mark.nightly
@pytest.mark.parametrize("action", ["kill", "tear"])
@pytest.mark.parametrize("workload", NIGHTLY)
def test_killed_in_other_workloads(
    workload: str, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = campaign(workload, "--action", action)
    check(f"{workload}, {action}", report, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("workload", ["mixed", "superseding", "after-crash-in-two-moves"])
def test_killed_without_rename_flags(workload: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign(workload, "--flagless")
    check(f"{workload}, flagless", report, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
def test_killed_under_other_interleavings(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign("mixed", "--seed", str(seed))
    check(f"mixed, seed {seed}", report, capsys)
