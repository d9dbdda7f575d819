"""Participants of a meeting see each other, and say who was not seen, how late, by which clock."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from stepseal.doctor import Meeting, meet
from stepseal.errors import InvalidInput, RootNotFound
from stepseal.storage import LocalStorage, create_durable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def gather(
    roots: Sequence[Path], expected: int, *, timeout_s: float = 20, clocks: Sequence[float] = ()
) -> list[Meeting]:
    """Let one participant per root meet, with clocks that are so much ahead."""
    ahead = [*clocks, *[0.0] * len(roots)]

    def one(number: int) -> Meeting:
        return meet(
            str(roots[number]),
            "try-1",
            num_participants=expected,
            timeout_s=timeout_s,
            clock=lambda: time.time() + ahead[number],
        )

    with ThreadPoolExecutor(len(roots)) as pool:
        return list(pool.map(one, range(len(roots))))


@pytest.mark.parametrize("is_root", [True, False])
def test_all_see_all_and_leave_nothing(root: Path, *, is_root: bool) -> None:
    if is_root:
        (root / ".stepseal").mkdir()
    found = gather([root] * 4, 4)
    for meeting in found:
        assert meeting.delay_s is not None
        assert meeting.delay_s < 20
        assert len(meeting.peers) == 3
        assert all(peer.answered for peer in meeting.peers)
        assert all(peer.clock_off_s == 0 for peer in meeting.peers)
    assert [path.name for path in root.rglob("*")] == ([".stepseal"] if is_root else [])


def test_clocks_that_are_minutes_apart_are_noticed(root: Path) -> None:
    for meeting, off_s in zip(gather([root] * 2, 2, clocks=[0.0, 300.0]), (300, -300), strict=True):
        (peer,) = meeting.peers
        assert abs(peer.clock_off_s - off_s) < 20


def test_who_does_not_come_is_counted(root: Path) -> None:
    first, second = gather([root] * 2, 3, timeout_s=0.5)
    for meeting in (first, second):
        assert meeting.delay_s is None
        assert [peer.answered for peer in meeting.peers] == [False]
    assert list(root.iterdir()) == []


def test_directories_that_only_look_the_same_are_told_apart(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    for root in roots:
        root.mkdir()
    for meeting in gather(roots, 2, timeout_s=0.3):
        assert (meeting.delay_s, meeting.peers) == (None, ())


def test_who_is_seen_but_does_not_answer_is_told(root: Path) -> None:
    with LocalStorage.open(root) as storage:
        folder = ".stepseal-doctor-meet-try-1"
        storage.make_dir(folder)
        create_durable(storage, f"{folder}/token-{'0' * 16}", b'{"name": "mute:1", "clock": 1.0}')
        (found,) = gather([root], 2, timeout_s=0.3)
    (peer,) = found.peers
    assert (peer.name, peer.answered) == ("mute:1", False)
    assert found.delay_s is None
    assert [path.name for path in (root / folder).iterdir()] == [f"token-{'0' * 16}"]


def test_a_name_that_was_used_before_is_refused(root: Path) -> None:
    with LocalStorage.open(root) as storage:
        folder = ".stepseal-doctor-meet-try-1"
        storage.make_dir(folder)
        for number in range(2):
            key = f"{folder}/token-{number:016}"
            create_durable(storage, key, b'{"name": "old:1", "clock": 1.0}')
    with pytest.raises(InvalidInput, match="not used before"):
        gather([root], 2, timeout_s=5)


def test_who_comes_first_waits_for_who_comes_late(root: Path) -> None:
    results: list[Meeting] = []
    waiter = threading.Thread(target=lambda: results.extend(gather([root], 2)))
    waiter.start()
    while not list(root.glob("*/token-*")):
        time.sleep(0.001)
    (late,) = gather([root], 2)
    waiter.join(20)
    for meeting in (late, *results):
        assert meeting.delay_s is not None
    assert not waiter.is_alive()
    assert list(root.iterdir()) == []


def test_no_place_to_meet_is_no_root(tmp_path: Path) -> None:
    with pytest.raises(RootNotFound):
        gather([tmp_path / "none"], 2)
