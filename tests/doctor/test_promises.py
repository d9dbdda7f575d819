"""What each missing ability means for each promise."""

from __future__ import annotations

import dataclasses

import pytest

from stepseal.doctor import ABILITIES, Meeting, Peer, Probe, judge_promises
from stepseal.storage import Mount

DISK = Mount("ext4", "/", "/dev/sda1", ("rw",))
GOOD = Probe(
    missing={},
    mount=DISK,
    sync_doubts=(),
    free_bytes=1 << 40,
    free_doubts=(),
    clock_off_s=0.001,
)
MET = Meeting("a:1", 2, (Peer("b:1", answered=True, clock_off_s=0.0),), 0.2)


def without(*lacking: str) -> Probe:
    return dataclasses.replace(GOOD, missing=dict.fromkeys(lacking, "EINVAL"))


def weak(probe: Probe, meeting: Meeting | None = MET) -> dict[str, str]:
    """Return promises that do not simply hold, and what becomes of them."""
    return {v.promise: v.state for v in judge_promises(probe, meeting) if v.state != "holds"}


def test_a_good_disk_keeps_every_promise() -> None:
    assert weak(GOOD) == {}


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        (["fsync"], {"atomic": "does not hold", "durable": "does not hold"}),
        (["rename_dir"], {"atomic": "does not hold"}),
        (["exclusive_create"], {"concurrent jobs": "does not hold"}),
        (["link"], {"concurrent jobs": "does not hold"}),
        (["exchange"], {"never strands you": "best effort"}),
        (["noreplace"], {"never strands you": "best effort"}),
        (["noreplace", "exchange"], {"never strands you": "best effort"}),
        (["exchange", "rename_keeps_full_dir"], {"never strands you": "does not hold"}),
        (["modes"], {"safe to load": "does not hold"}),
    ],
)
def test_each_missing_ability_weakens_its_promises_alone(
    lacking: list[str], expected: dict[str, str]
) -> None:
    assert weak(without(*lacking)) == expected


def test_each_ability_is_needed_by_a_promise() -> None:
    for ability in ABILITIES:
        substituted = ability == "rename_keeps_full_dir"  # only where the flags are missing
        assert substituted or weak(without(ability))


@pytest.mark.parametrize(
    ("mount", "doubts", "state"),
    [
        (Mount("tmpfs", "/t", "tmpfs", ("rw",)), ("in memory",), "does not hold"),
        (Mount("overlay", "/", "overlay", ("volatile",)), ("left out",), "does not hold"),
        (Mount("ext4", "/", "/dev/sda1", ("nobarrier",)), ("not flushed",), "best effort"),
        (Mount("fuse.x", "/", "x", ("rw",)), ("which decides",), "best effort"),
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


def test_steps_that_cannot_be_moved_are_named_with_a_way_out() -> None:
    stuck = [f"step-{number}" for number in range(1, 8)]
    (judgement,) = [
        v for v in judge_promises(GOOD, MET, immovable=stuck) if v.promise == "never strands you"
    ]
    assert judgement.state == "does not hold"
    assert "step-1, step-2, step-3, step-4, step-5 (7 in all)" in judgement.why
    assert "cp -a" in judgement.advice


def test_hosts_are_not_vouched_for_without_a_meeting() -> None:
    assert weak(GOOD, None) == {"one view, all hosts": "not tested"}


@pytest.mark.parametrize(
    ("meeting", "word"),
    [
        (dataclasses.replace(MET, num_expected=3, delay_s=None), "1 of 3"),
        (Meeting("a:1", 2, (), None), "nobody"),
        (Meeting("a:1", 2, (Peer("b:1", answered=False, clock_off_s=0.0),), None), "no answer"),
    ],
)
def test_who_was_not_seen_or_did_not_answer_breaks_the_view(meeting: Meeting, word: str) -> None:
    assert weak(GOOD, meeting) == {"one view, all hosts": "does not hold"}
    assert any(word in v.why and v.advice for v in judge_promises(GOOD, meeting))


@pytest.mark.parametrize(("off_s", "expected"), [(-90.0, {"clocks agree": "best effort"}), (5, {})])
def test_clocks_are_complained_about_where_it_matters(
    off_s: float, expected: dict[str, str]
) -> None:
    assert weak(dataclasses.replace(GOOD, clock_off_s=off_s)) == expected
    peers = (Peer("b:1", answered=True, clock_off_s=off_s),)
    assert weak(GOOD, dataclasses.replace(MET, peers=peers)) == expected


def test_whatever_is_weak_says_why_and_what_to_do() -> None:
    for ability in ABILITIES:
        for judgement in judge_promises(without(ability)):
            assert judgement.why
            assert (judgement.state == "holds") or judgement.advice, judgement
