from __future__ import annotations

import contextlib
import errno
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
    arena = Arena(headroom=left_of(18 << 20))
    arena.take(1 << 20)
    assert arena.held_bytes == 1 << 20


def test_what_is_not_known_is_no_limit() -> None:
    arena = Arena(headroom=lambda: None)
    assert len(arena.take(17 << 20)) == 17 << 20


class Sharer(Arena):
    """One of two processes under one limit, which another one overtakes before it touches."""

    def __init__(self, limit_bytes: int, num_sharers: int) -> None:
        super().__init__(num_sharers=num_sharers, headroom=self._left)
        self.limit_bytes = limit_bytes
        self.sharers = [self]
        self.overtakes: Callable[[], None] = lambda: None
        self.granted = self.touched = 0
        """Bytes that may be touched, and those that certainly are."""

    def _left(self) -> Headroom:
        self.touched = self.granted  # all but what this call may grant
        left = self.limit_bytes - sum(one.touched for one in self.sharers)
        self.overtakes()
        return Headroom(left, "the limit of both")

    def _check_left(self, size_bytes: int, chunk_bytes: int) -> None:
        super()._check_left(size_bytes, chunk_bytes)
        self.granted += min(size_bytes, chunk_bytes)


def granted_to_two(limit_bytes: int, size_bytes: int, num_sharers: int) -> int:
    """Return what two may touch together that both need `size_bytes`, in the worst order."""
    first, second = Sharer(limit_bytes, num_sharers), Sharer(limit_bytes, num_sharers)
    first.sharers = second.sharers = [first, second]
    looks = iter(range(1_000))

    def step_of_second() -> None:
        if next(looks) == 3:  # the first one has looked, and touches by what it saw
            with contextlib.suppress(StorageUnavailable):
                second.reserve(size_bytes)

    first.overtakes = step_of_second
    with contextlib.suppress(StorageUnavailable):
        first.reserve(size_bytes)
    return first.granted + second.granted


@pytest.mark.parametrize("limit_mb", [64, 96, 112, 128, 144])
def test_two_that_share_a_limit_never_touch_more_than_it_whoever_looked_first(
    limit_mb: int,
) -> None:
    assert granted_to_two(limit_mb << 20, 64 << 20, num_sharers=2) <= limit_mb << 20


def test_a_look_for_oneself_alone_is_caught() -> None:
    naive = [granted_to_two(mb << 20, 64 << 20, num_sharers=1) > mb << 20 for mb in (96, 112)]
    assert any(naive)


def test_a_limit_above_what_two_need_refuses_neither() -> None:
    assert granted_to_two(192 << 20, 64 << 20, num_sharers=2) == 128 << 20
