from __future__ import annotations

import mmap

import pytest
import torch

from stepseal.components._arena import Arena
from stepseal.components._live_data import tensor_over
from stepseal.errors import InvalidInput


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
