from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch

import stepseal as ss
from stepseal.testing import FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_S = 30.0


def held_back(gate: threading.Event) -> Callable[[int, str, str], None]:
    def before(index: int, operation: str, key: str) -> None:
        if operation == "write" and key.endswith(".distcp"):
            assert gate.wait(WAIT_S)

    return before


def test_a_wait_that_runs_out_tells_so_and_the_save_goes_on() -> None:
    gate = threading.Event()
    world = World(1, lambda _: FaultyStorage(MemoryStorage(), before=held_back(gate)))
    with world.checkpointer(0) as checkpointer:
        checkpointer.add("model", {"w": torch.ones(2)})
        pending = checkpointer.save(3)
        assert not pending.done()
        start = time.monotonic()
        with pytest.raises(ss.errors.WaitTimeout, match=r"step 3.*0\.05 s; it goes on") as caught:
            pending.wait(0.05)
        assert time.monotonic() - start < WAIT_S / 2
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(ss.errors.WaitTimeout):
            pending.wait(0)
        assert checkpointer.step(4) is None  # training goes on meanwhile
        gate.set()
        saved = pending.wait(WAIT_S)
        assert pending.done()
        assert (saved.step, saved.path) == (3, "/world/step-3")
        assert pending.wait() == saved
    assert pending.wait(0) == saved  # also after close


def test_a_synchronous_save_is_done_when_it_returns() -> None:
    with World(1, lambda _: MemoryStorage()).checkpointer(0, mode="sync") as checkpointer:
        checkpointer.add("model", {"w": torch.ones(2)})
        pending = checkpointer.save(1)
        assert pending.done()
        assert len(pending.wait(0).manifest_sha256) == 64


def test_all_participants_get_the_same_answer() -> None:
    memory = MemoryStorage()

    def work(rank: int, checkpointer: ss.Checkpointer) -> list[ss.Saved]:
        with checkpointer:
            checkpointer.add("mine", {"rank": rank}, sharing=ss.PER_RANK)
            return [checkpointer.save(step).wait(WAIT_S) for step in (1, 2)]

    answers = World(3, lambda _: memory).run(work)
    assert answers[0] == answers[1] == answers[2]
    assert answers[0][0].manifest_sha256 != answers[0][1].manifest_sha256
