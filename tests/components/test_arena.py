from __future__ import annotations

import contextlib
import errno
import functools
import mmap
from typing import TYPE_CHECKING

import pytest
import torch

from stepseal.components._arena import Arena
from stepseal.components._headroom import Headroom
from stepseal.components._live_data import tensor_over
from stepseal.errors import InvalidInput, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable


def address(view: memoryview) -> int:
    return tensor_over(view, torch.uint8).data_ptr()


def test_slices_are_aligned_private_and_writable() -> None:
    arena = Arena()
    first, second = arena.take(3), arena.take(100)
    assert (first.format, first.ndim, first.nbytes) == ("B", 1, 3)
    assert not first.readonly
    assert address(first) % mmap.PAGESIZE == 0
    assert address(second) % 64 == 0
    first[:] = b"abc"
    assert bytes(second) == bytes(100)


def test_reset_hands_the_same_memory_out_again() -> None:
    arena = Arena()
    before = address(arena.take(1000))
    held = arena.held_bytes
    arena.reset()
    assert address(arena.take(1000)) == before
    assert arena.held_bytes == held


def test_growing_keeps_older_slices_and_reset_joins_the_regions() -> None:
    arena = Arena()
    old = arena.take(5)
    old[:] = b"older"
    arena.reserve(17 << 20)
    big = arena.take(17 << 20)
    big[-1] = 7
    assert bytes(old) == b"older"
    arena.reset()
    held = arena.held_bytes
    arena.take(5)
    arena.take(17 << 20)
    assert arena.held_bytes == held


def test_release_frees_nothing_that_is_still_held() -> None:
    arena = Arena()
    view = arena.take(4)
    view[:] = b"kept"
    arena.release()
    assert arena.held_bytes == 0
    assert bytes(view) == b"kept"


def test_the_limit_is_an_error_that_names_it() -> None:
    arena = Arena(max_staging_bytes=1 << 20)
    arena.take(1 << 19)
    with pytest.raises(InvalidInput, match="max_staging_bytes") as caught:
        arena.take(1 << 20)
    assert caught.value.expected == 1 << 20
    assert arena.held_bytes <= 1 << 20


def left_of(left_bytes: int) -> Callable[[], Headroom]:
    return lambda: Headroom(left_bytes, "a limit (1.0 GiB)")


def test_memory_that_the_system_would_kill_for_is_refused_before_it_is_touched() -> None:
    arena = Arena(headroom=left_of(40 << 20))
    with pytest.raises(StorageUnavailable, match=r"mode='sync'.*max_staging_bytes") as caught:
        arena.take(41 << 20)
    assert (caught.value.expected, caught.value.found) == (41 << 20, 40 << 20)
    assert caught.value.errno == errno.ENOMEM
    assert arena.held_bytes == 0


def test_a_refusal_lets_go_of_what_was_held() -> None:
    left = [1 << 30]
    arena = Arena(headroom=lambda: Headroom(left[0], "a limit"))
    arena.take(17 << 20)
    left[0] = 1 << 20
    with pytest.raises(StorageUnavailable):
        arena.take(17 << 20)
    assert arena.held_bytes == 0
    left[0] = 1 << 30
    arena.reset()
    assert len(arena.take(17 << 20)) == 17 << 20


def test_no_more_is_taken_than_needed_where_memory_is_scarce() -> None:
    arena = Arena(headroom=left_of(40 << 20))
    arena.take(1 << 20)
    assert arena.held_bytes == 1 << 20


def test_the_last_of_the_memory_is_left_to_the_writer() -> None:
    with pytest.raises(StorageUnavailable):
        Arena(headroom=left_of(40 << 20)).take(39 << 20)


def test_what_is_not_known_is_no_limit() -> None:
    arena = Arena(headroom=lambda: None)
    assert len(arena.take(17 << 20)) == 17 << 20


class Sharer(Arena):
    """One of several processes under one limit; others overtake it between its look and touch."""

    def __init__(self, limit_bytes: int, num_sharers: int, sharers: list[Sharer]) -> None:
        super().__init__(num_sharers=num_sharers, headroom=self._left)
        self._limit_bytes = limit_bytes
        self._sharers = sharers
        self._num_looks = 0
        self.overtakes: Callable[[], None] = lambda: None
        self.granted = self.touched = self.peak = 0
        """Bytes that may be touched, those that certainly are, and the most that all ever might."""
        sharers.append(self)

    def _left(self) -> Headroom:
        self.touched = self.granted  # all but what this look may grant
        left = self._limit_bytes - sum(one.touched for one in self._sharers)
        self._num_looks += 1
        if self._num_looks == 3:
            self.overtakes()  # and then this one touches, by what it saw before
        return Headroom(left, "the limit of all")

    def _check_left(self, size_bytes: int, chunk_bytes: int) -> None:
        super()._check_left(size_bytes, chunk_bytes)
        self.granted += min(size_bytes, chunk_bytes)
        self.peak = sum(one.granted for one in self._sharers)

    def release(self) -> None:
        super().release()
        self.granted = self.touched = 0


def peak_of_four(limit_mb: int, num_sharers: int) -> int:
    """Return the most that four may touch together that need 48 MiB each, each overtaking one."""
    sharers: list[Sharer] = []
    for _ in range(4):
        Sharer(limit_mb << 20, num_sharers, sharers)

    def run(number: int) -> None:
        with contextlib.suppress(StorageUnavailable):
            sharers[number].reserve(48 << 20)

    for number in range(3):
        sharers[number].overtakes = functools.partial(run, number + 1)
    run(0)
    return max(one.peak for one in sharers) >> 20


LIMITS_MB = (112, 144, 176)


def test_those_who_share_a_limit_never_touch_more_whoever_looked_first() -> None:
    found = {limit: peak_of_four(limit, num_sharers=4) for limit in LIMITS_MB}
    assert [limit for limit, peak in found.items() if peak > limit] == []


def test_a_look_for_oneself_alone_is_caught() -> None:
    found = {limit: peak_of_four(limit, num_sharers=1) for limit in LIMITS_MB}
    assert [limit for limit, peak in found.items() if peak > limit] != []


def test_a_limit_above_what_all_need_refuses_nobody() -> None:
    assert peak_of_four(4 * 48 + 4 * 32, num_sharers=4) == 4 * 48
