"""What each missing ability means for each promise."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from stepseal.steps import judge_promises
from stepseal.storage import ABILITIES, Finding, Meeting, Mount, Peer, Probe

if TYPE_CHECKING:
    from stepseal.storage import Ability

DISK = Mount("ext4", "/", "/dev/sda1", ("rw",))
GOOD = Probe(
    path="/runs/a",
    findings=tuple(Finding(ability, honoured=True) for ability in ABILITIES),
    mount=DISK,
    sync_doubts=(),
    free_bytes=1 << 40,
    free_inodes=1 << 20,
    quota=None,
    fsync_s=0.001,
    clock_skew_s=0.001,
    clock_skew_error_s=0.01,
)
MET = Meeting("try", "a:1", 2, (Peer("b:1", 0.1, 0.0, 0.05),), 0.2)


def without(*lacking: Ability, honoured: bool | None = False) -> Probe:
    findings = tuple(
        Finding(ability, honoured, "EINVAL") if ability in lacking else Finding(ability, True)
        for ability in ABILITIES
    )
    return dataclasses.replace(GOOD, findings=findings)


def weak(probe: Probe, meeting: Meeting | None = MET) -> dict[str, str]:
    """Return promises that do not simply hold, and what becomes of them."""
    return {v.promise: v.state for v in judge_promises(probe, meeting) if v.state != "holds"}


def test_a_good_disk_keeps_every_promise() -> None:
    assert weak(GOOD) == {}


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        (["fsync_file"], {"atomic": "does not hold", "durable": "does not hold"}),
        (["fsync_dir"], {"durable": "best effort"}),
        (["rename_dir"], {"atomic": "does not hold"}),
        (["exclusive_create"], {"concurrent jobs": "does not hold"}),
        (["link"], {"concurrent jobs": "does not hold"}),
        (["one_winner"], {"concurrent jobs": "does not hold"}),
        (["exchange"], {"never strands you": "best effort"}),
        (["noreplace_dir"], {"never strands you": "best effort"}),
        (["noreplace_file", "noreplace_dir", "exchange"], {"never strands you": "best effort"}),
        (["exchange", "rename_keeps_full_dir"], {"never strands you": "does not hold"}),
        (["nofollow"], {"safe to load": "does not hold"}),
        (["modes"], {"safe to load": "does not hold"}),
        (["seen_at_once"], {"one view, this host": "does not hold"}),
        (["direct_io"], {"fast": "best effort"}),
    ],
)
def test_each_missing_ability_weakens_its_promises_alone(
    lacking: list[Ability], expected: dict[str, str]
) -> None:
    assert weak(without(*lacking)) == expected


def test_each_ability_is_needed_by_a_promise() -> None:
    for ability in ABILITIES:
        substituted = ability == "rename_keeps_full_dir"  # only where the flags are missing
        assert substituted or weak(without(ability))


@pytest.mark.parametrize("ability", [a for a in ABILITIES if a not in {"direct_io", "noreplace_file", "rename_keeps_full_dir"}])  # fmt: skip  # noqa: E501
def test_what_could_not_be_told_is_not_called_good(ability: Ability) -> None:
    assert set(weak(without(ability, honoured=None)).values()) == {"not tested"}


@pytest.mark.parametrize(
    ("mount", "doubts", "state"),
    [
        (Mount("tmpfs", "/t", "tmpfs", ("rw",)), ("in memory",), "does not hold"),
        (Mount("overlay", "/", "overlay", ("volatile",)), ("left out",), "does not hold"),
        (Mount("ext4", "/", "/dev/sda1", ("nobarrier",)), ("not flushed",), "best effort"),
        (Mount("fuse.x", "/", "x", ("rw",)), ("a program decides",), "best effort"),
    ],
)
def test_the_mount_decides_what_a_sync_is_worth(
    mount: Mount, doubts: tuple[str, ...], state: str
) -> None:
    probe = dataclasses.replace(GOOD, mount=mount, sync_doubts=doubts)
    assert weak(probe) == {"durable": state}
    (judgement,) = [v for v in judge_promises(probe) if v.promise == "durable"]
    assert doubts[0] in judgement.why
    assert judgement.advice


@pytest.mark.parametrize(("fs_type", "word"), [("nfs4", "export"), ("overlay", "layer")])
def test_what_nobody_here_can_see_is_said(fs_type: str, word: str) -> None:
    probe = dataclasses.replace(GOOD, mount=dataclasses.replace(DISK, fs_type=fs_type))
    assert weak(probe) == {}
    assert word in next(v.why for v in judge_promises(probe) if v.promise == "durable")


@pytest.mark.parametrize(("detail", "advice"), [("ENOSPC", "Free space"), ("EMFILE", "Run it")])
def test_what_a_full_disk_kept_from_being_told_asks_for_space(detail: str, advice: str) -> None:
    probe = without("fsync_file", honoured=None)
    found = tuple(dataclasses.replace(f, detail=detail) for f in probe.findings)
    judgements = judge_promises(dataclasses.replace(probe, findings=found))
    told = [v.advice for v in judgements if v.promise in ("atomic", "durable")]
    assert len(told) == 2
    assert all(text.startswith(advice) for text in told)


def test_hosts_are_not_vouched_for_without_a_meeting() -> None:
    assert weak(GOOD, None) == {"one view, all hosts": "not tested"}


@pytest.mark.parametrize(
    "meeting",
    [
        dataclasses.replace(MET, num_expected=3),
        dataclasses.replace(MET, peers=(Peer("b:1", None, None, None),)),
    ],
)
def test_who_was_not_seen_or_did_not_answer_breaks_the_view(meeting: Meeting) -> None:
    assert weak(GOOD, meeting) == {"one view, all hosts": "does not hold"}


def test_clocks_are_complained_about_beyond_doubt_only() -> None:
    assert weak(dataclasses.replace(GOOD, clock_skew_s=60.0)) == {"clocks agree": "best effort"}
    unsure = dataclasses.replace(GOOD, clock_skew_s=60.0, clock_skew_error_s=58.0)
    assert weak(unsure) == {}
    apart = dataclasses.replace(MET, peers=(Peer("b:1", 0.1, -90.0, 0.05),))
    assert weak(GOOD, apart) == {"clocks agree": "best effort"}


def test_sync_that_was_not_timed_is_not_called_fast() -> None:
    for probe, state in ((GOOD, "holds"), (without("direct_io"), "best effort")):
        untimed = dataclasses.replace(probe, fsync_s=None)
        (fast,) = [v for v in judge_promises(untimed) if v.promise == "fast"]
        assert (fast.state, "fsync takes a time that cannot be told" in fast.why) == (state, True)


def test_a_full_disk_is_told() -> None:
    assert weak(dataclasses.replace(GOOD, free_bytes=1000)) == {"room": "best effort"}
    assert weak(dataclasses.replace(GOOD, free_inodes=3)) == {"room": "best effort"}
    assert weak(dataclasses.replace(GOOD, free_inodes=None)) == {}


def test_whatever_is_weak_says_why_and_what_to_do() -> None:
    for ability in ABILITIES:
        for judgement in judge_promises(without(ability)):
            assert judgement.why
            assert (judgement.state == "holds") or judgement.advice, judgement
