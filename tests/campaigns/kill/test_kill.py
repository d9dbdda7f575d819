"""A job killed by SIGKILL at any instant leaves whole steps only, loses none that it was promised,
and goes on where the newest one was.

Nightly, each campaign kills before every mutating storage operation, one per run, until a run
completes; here before one operation of each kind. See `harness/_recovery.py` for what is checked
after each. The same campaigns must catch deliberately broken protocols.
"""

from __future__ import annotations

import pytest
from tests.campaigns.kill._report import (
    SWITCH_INTERVALS_S,
    Broken,
    Options,
    Report,
    campaign,
    kind_of,
    kinds_campaign,
    run_jobs,
)
from tests.campaigns.kill._variants import VARIANTS
from tests.campaigns.kill.run import BROKEN, WORKLOADS, run_variants, violations_of

VERBS = {
    "make_dir", "create_file", "write", "sync", "close", "sync_dir", "link", "rename", "remove_file"
}  # fmt: skip
TWO_MOVES = [
    "rename step-20 -> .stepseal/superseded/step-20.2.*#1",
    "sync_dir .stepseal/superseded#1",
    "rename .stepseal/staging/step-20.2.* -> step-20#1",
]
"""What a superseding is without the flags of renameat2."""

pytestmark = [pytest.mark.slow, pytest.mark.serial, pytest.mark.timeout(3600)]


def check(name: str, report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nSIGKILL, {name}: {report.summary()}")
    assert not report.broken, report.text(name)
    assert report.untouched
    assert report.num_kills >= len(report.performed)
    assert not report.missed


def test_killed_before_one_operation_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    report = kinds_campaign("mixed")
    with capsys.disabled():
        print(f"\nSIGKILL, mixed: {report.summary()}")
    assert violations_of("mixed", report, by_kind=True) == []
    assert {pattern.split()[0] for pattern in report.struck} >= VERBS
    assert report.num_kills >= 60


def test_operations_of_other_steps_and_participants_are_of_one_kind() -> None:
    name = "rename .stepseal/staging/step-20.1.* -> step-20#1"
    assert kind_of(name) == kind_of(name.replace("20", "40").replace("#1", "#12"))
    assert kind_of(name) != kind_of(name.replace("rename", "link"))
    report = Report(struck=["sync_dir #1"], performed=["sync_dir #1", "sync_dir #2", "close 1#1"])
    assert report.missed_kinds == {"close N"}


@pytest.mark.nightly
def test_killed_before_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign("mixed")
    check("mixed", report, capsys)
    assert {pattern.split()[0] for pattern in report.struck} >= VERBS


def test_what_was_not_tried_is_a_violation_of_its_row() -> None:
    report = Report(num_kills=1, struck=["make_dir x#1"], performed=["make_dir x#1", "sync_dir #2"])
    assert violations_of("mixed", report) == [
        "mixed: no job died before: sync_dir #2",
        "mixed: no run completed, so that there may be further operations",
    ]
    broken = Broken("3", "sync_dir #2", "lost", "step 10 is gone", "python ...")
    whole = Report(num_kills=1, untouched=True, broken=[broken])
    assert violations_of("mixed", whole) == ["python ...  # lost: step 10 is gone"]


def test_only_what_every_run_performed_must_be_struck() -> None:
    report = Report(struck=["sync_dir #1"])
    for names in (["sync_dir #1", "sync_dir #2"], [], ["sync_dir #1", "sync_dir #2", "close x#1"]):
        report.completed(names)
    assert report.missed == ["sync_dir #2"]


def test_a_reproduction_names_the_operation_and_the_seed() -> None:
    command = Options("mixed", seed=3, flagless=True).reproduction(7, "sync_dir #2")
    assert command == (
        "python -m tests.campaigns.kill.point mixed --flagless --seed 3 --kill-at 'sync_dir #2'"
    )


def test_the_second_of_two_operations_of_one_pattern_is_struck() -> None:
    points = ("--kill-at", "sync_dir #1", "--kill-at", "sync_dir #8")
    ((report,),) = run_jobs(["alone", *points])
    assert report.struck == ["sync_dir #1", "sync_dir #8"]
    assert (report.num_kills, report.num_torn) == (2, 1)


def test_killed_between_the_two_moves_of_a_superseding(capsys: pytest.CaptureFixture[str]) -> None:
    points = [text for pattern in TWO_MOVES for text in ("--kill-at", pattern)]
    ((report,),) = run_jobs(["two-moves", *points])
    with capsys.disabled():
        print(f"\nSIGKILL, superseding without rename flags: {report.summary()}")
    assert not report.broken, report.text("two-moves")
    assert report.struck == sorted(TWO_MOVES)


@pytest.fixture(scope="module")
def caught() -> dict[str, Report]:
    """Run the campaign on each broken protocol until it is caught."""
    return run_variants(BROKEN, known=True)


@pytest.mark.parametrize("variant", BROKEN)
def test_broken_protocols_are_caught(variant: str, caught: dict[str, Report]) -> None:
    report = caught[variant]
    assert report.kinds & VARIANTS[variant].caught_as, report.text(variant)


@pytest.mark.nightly
def test_broken_protocols_are_found() -> None:
    found = run_variants(BROKEN)
    for name, report in found.items():
        assert report.kinds & VARIANTS[name].caught_as, report.text(name)


@pytest.mark.nightly
@pytest.mark.parametrize("action", ["kill", "tear"])
@pytest.mark.parametrize("workload", WORKLOADS[1:])
def test_killed_in_other_workloads(
    workload: str, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = campaign(workload, "--action", action)
    check(f"{workload}, {action}", report, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("workload", ["mixed", "superseding"])
def test_killed_without_rename_flags(workload: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign(workload, "--flagless")
    check(f"{workload}, flagless", report, capsys)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(len(SWITCH_INTERVALS_S)))
def test_killed_under_other_interleavings(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    report = campaign("mixed", "--seed", str(seed))
    check(f"mixed, seed {seed}", report, capsys)
