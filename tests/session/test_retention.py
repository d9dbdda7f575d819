"""`keep=`: steps are pruned behind the job, and nothing of it can hurt it."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import pytest

import stepseal as ss
from stepseal import errors
from stepseal.steps._leases import LEASES, read_leases
from stepseal.steps._pins import pin
from stepseal.storage import LocalStorage
from stepseal.testing import Fail, Fault, FaultyStorage, MemoryStorage, World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def save_steps(root: Path, steps: Sequence[int], keep: object = None) -> ss.Restored | None:
    counters = {"seen": 0}
    with ss.Checkpointer(root, keep=keep) as checkpointer:  # type: ignore[arg-type]
        checkpointer.add("counters", counters)
        restored = checkpointer.restore()
        for step in steps:
            counters["seen"] = step
            checkpointer.save(step).wait()
    return restored


def test_the_newest_steps_stay(tmp_path: Path) -> None:
    save_steps(tmp_path, [9, 10, 11, 12], ss.latest(2))
    run = ss.open(tmp_path)
    assert run.steps() == (11, 12)
    assert all(run.step(step).verify() == () for step in run.steps())
    assert list((tmp_path / ".stepseal" / "trash").iterdir()) == []


def test_without_keep_every_step_stays(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2, 3])
    assert ss.open(tmp_path).steps() == (1, 2, 3)


def test_the_step_a_job_resumed_from_stays_beside_the_newest(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2], ss.latest(1))
    restored = save_steps(tmp_path, [3, 4, 5], ss.latest(1))
    assert restored is not None
    assert restored.step == 2
    assert ss.open(tmp_path).steps() == (2, 5)


def test_pinned_steps_stay(tmp_path: Path) -> None:
    save_steps(tmp_path, [1, 2])
    run = ss.open(tmp_path)
    pin(LocalStorage.open(str(tmp_path)), 1, run.run_id)
    save_steps(tmp_path, [3, 4], ss.latest(1))
    assert run.steps() == (1, 2, 4)


def test_a_restore_holds_no_lease_afterwards(tmp_path: Path) -> None:
    save_steps(tmp_path, [1])
    save_steps(tmp_path, [2])
    assert list((tmp_path / LEASES).iterdir()) == []


def test_a_restore_that_failed_holds_no_lease_once_closed(tmp_path: Path) -> None:
    save_steps(tmp_path, [1])
    with ss.Checkpointer(tmp_path) as checkpointer:
        checkpointer.add("other", {"seen": 0})
        with pytest.raises(errors.StateMismatch):
            checkpointer.restore()
        assert list(read_leases(LocalStorage.open(str(tmp_path)), 0.0)) == [1]
    assert list((tmp_path / LEASES).iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOSPC])
def test_a_prune_that_fails_never_fails_the_job(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    inner = MemoryStorage()
    in_trash = Fault(
        lambda verb, key: verb == "remove_file" and "/trash/" in key, Fail(number), True
    )
    world = World(2, lambda _: FaultyStorage(inner, [in_trash]), keep=ss.latest(1))

    def work(rank: int, checkpointer: ss.Checkpointer) -> list[int]:
        checkpointer.add("rank", {"rank": rank}, sharing=ss.PER_RANK)
        with checkpointer:
            checkpointer.restore()
            return [checkpointer.save(step).wait().step for step in (1, 2, 3)]

    with caplog.at_level(logging.WARNING):
        assert world.run(work) == [[1, 2, 3], [1, 2, 3]]
    assert "prune" in caplog.text


@pytest.mark.parametrize("keep", [3, "latest(3)"])
def test_what_is_no_keep_rule_is_refused(tmp_path: Path, keep: object) -> None:
    with pytest.raises(errors.InvalidInput, match="keep="):
        ss.Checkpointer(tmp_path / "root", keep=keep)  # type: ignore[arg-type]
    assert not (tmp_path / "root").exists()
