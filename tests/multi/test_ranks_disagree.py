"""Real ranks that do not do the same: everybody is told, with the name of who, and can go on."""

from __future__ import annotations

import errno
import functools
import itertools
import multiprocessing
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from tests.multi._job import DEADLINES, Gate, gated_join

import stepseal as ss
from stepseal import errors
from stepseal.session import _job
from stepseal.testing import run_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.serial]

Answer = tuple[str, str, tuple[str, ...], float]
"""Error kind (`ok` for none), message, who failed, and how long the call took."""


def ask(run: Callable[[], Any]) -> Answer:
    begun = time.monotonic()
    try:
        run()
    except errors.CheckpointError as error:
        return error.kind, str(error), tuple(error.failures), time.monotonic() - begun
    return "ok", "", (), time.monotonic() - begun


def checkpointer(root: Path) -> ss.Checkpointer:
    ckpt = ss.Checkpointer(root, deadlines=DEADLINES, mode="sync")
    ckpt.add("model", {"weight": torch.arange(4.0)}, kind="tensors", sharing=ss.REPLICATED)
    return ckpt


class Moody:
    """A component whose state cannot be taken while it is `angry`."""

    def __init__(self) -> None:
        self.angry = False

    def state_dict(self) -> dict[str, int]:
        if self.angry:
            raise RuntimeError("not now")
        return {"value": 7}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state == {"value": 7}


def _one_raises(rank: int, root: Path) -> list[Answer]:
    moody = Moody()
    with checkpointer(root) as ckpt:
        ckpt.add("moody", moody, sharing=ss.PER_RANK)
        answers = [ask(lambda: ckpt.save(1))]
        moody.angry = rank == 1
        answers.append(ask(lambda: ckpt.save(2)))
        moody.angry = False
        return [*answers, ask(lambda: ckpt.save(3))]


def test_a_rank_whose_state_cannot_be_taken_is_named_and_the_next_save_succeeds(
    tmp_path: Path,
) -> None:
    root = tmp_path / "root"
    for first, failed, last in run_ranks(3, _one_raises, root):
        assert (first[0], last[0]) == ("ok", "ok")
        kind, message, failures, took_s = failed
        assert kind == "participant_failed"
        assert failures == ("trainer/1",)
        assert "moody" in message
        assert "not now" in message
        assert took_s < DEADLINES.capture_s
    assert ss.open(root).steps() == (1, 3)


def _one_has_other_components(rank: int, root: Path, names: tuple[str, str]) -> list[Answer]:
    with checkpointer(root) as ckpt:
        if names[rank]:
            ckpt.add(names[rank], {"value": rank}, sharing=ss.PER_RANK)
        return [ask(ckpt.restore), ask(lambda: ckpt.save(1))]


@pytest.mark.parametrize("names", [("extra", ""), ("", "extra"), ("one", "other")])
def test_different_components_are_refused_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    results = run_ranks(2, _one_has_other_components, tmp_path / "root", names)
    for call in range(2):
        assert len({results[rank][call][:3] for rank in range(2)}) == 1
        kind, message, failures, _ = results[0][call]
        assert kind in {"state_mismatch", "participant_failed"}
        assert len(failures) == 1  # of two that differ, either is the other one
        assert all(name in message for name in (*names, "trainer/0", "trainer/1"))
    assert ss.open(tmp_path / "root").steps() == ()


def _one_counts_differently(rank: int, root: Path) -> list[Answer]:
    with checkpointer(root) as ckpt:
        return [ask(lambda: ckpt.save(1 + rank)), ask(lambda: ckpt.save(5))]


def test_different_step_numbers_are_refused_and_the_next_save_succeeds(tmp_path: Path) -> None:
    for differing, same in run_ranks(2, _one_counts_differently, tmp_path / "root"):
        kind, message, failures, _ = differing
        assert kind in {"state_mismatch", "participant_failed"}
        assert failures in {("trainer/0",), ("trainer/1",)}
        assert all(text in message for text in ("step 1", "step 2", "trainer/0", "trainer/1"))
        assert same[0] == "ok"
    assert ss.open(tmp_path / "root").steps() == (5,)


def _one_does_not_save(rank: int, root: Path) -> list[Answer]:
    with checkpointer(root) as ckpt:
        answers = []
        if rank != 1:
            answers.append(ask(lambda: ckpt.save(1)))
        dist.barrier()
        if rank == 1:
            answers.append(ask(lambda: ckpt.save(1)))
        return [*answers, ask(lambda: ckpt.save(2))]


def test_a_rank_that_never_saves_is_named_at_the_deadline(tmp_path: Path) -> None:
    results = run_ranks(3, _one_does_not_save, tmp_path / "root")
    for rank, (first, second) in enumerate(results):
        kind, message, failures, took_s = first
        assert kind == "commit_timeout"
        assert failures == ("trainer/1",)
        assert "capture" in message
        assert took_s < DEADLINES.capture_s + 5
        assert rank == 1 or took_s >= DEADLINES.capture_s - 1
        assert second[0] == "ok"
    assert ss.open(tmp_path / "root").steps() == (2,)


def _one_restores(rank: int, root: Path) -> list[Answer]:
    with checkpointer(root) as ckpt:
        first = ask(ckpt.restore) if rank == 1 else ask(lambda: ckpt.save(1))
        return [first, ask(ckpt.restore), ask(lambda: ckpt.save(2))]


def test_a_rank_that_restores_while_the_others_save_is_named(tmp_path: Path) -> None:
    for mixed, restored, saved in run_ranks(2, _one_restores, tmp_path / "root"):
        kind, message, failures, took_s = mixed
        assert kind in {"state_mismatch", "participant_failed"}
        assert len(failures) == 1
        assert "restore" in message
        assert took_s < DEADLINES.capture_s
        assert (restored[0], saved[0]) == ("ok", "ok")


def _construct(rank: int, root: Path) -> Answer:
    return ask(lambda: ss.Checkpointer(root, deadlines=DEADLINES))


def test_a_bad_root_is_told_to_all(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("not a directory")
    first, *others = run_ranks(3, _construct, root)
    assert first[0] != "ok"
    for kind, message, _, took_s in others:
        assert kind == first[0]
        assert "rank 0" in message
        assert first[1] in message
        assert took_s < DEADLINES.connect_s


class FullDisk(Gate):
    """Lets one write of this rank fail."""

    def reach(self, name: str) -> None:
        if name == "save/write" and name not in self.passed:
            self.passed.add(name)
            raise errors.StorageUnavailable("no space left", errno=errno.ENOSPC)


def _one_fails_behind(rank: int, root: Path) -> tuple[int, Answer, Answer]:
    ours, _ = multiprocessing.Pipe()
    gate = FullDisk(ours, None) if rank == 1 else Gate(ours, None)
    ckpt = ss.Checkpointer(root, deadlines=DEADLINES, _join=gated_join(gate))
    ckpt.add("data", {"rank": rank}, sharing=ss.PER_RANK)
    with ckpt:
        saving = ask(lambda: ckpt.save(1))
        assert saving[0] == "ok"
        steps = range(2, 1_000_000)
        answers = ((step, ask(functools.partial(ckpt.step, step))) for step in steps)
        step, failed = next(found for found in answers if found[1][0] != "ok")
        return step, failed, ask(lambda: ckpt.save(1_000_000))


def test_a_failure_behind_is_raised_by_all_at_the_same_step(tmp_path: Path) -> None:
    results = run_ranks(3, _one_fails_behind, tmp_path / "root")
    assert len({step for step, _, _ in results}) == 1
    for _, (kind, message, failures, _), after in results:
        assert kind == "participant_failed"
        assert failures == ("trainer/1",)
        assert "no space left" in message
        assert after[0] == "ok"
    assert ss.open(tmp_path / "root").steps() == (1_000_000,)


def _second_life_on_the_same_store(rank: int, roots: tuple[Path, Path]) -> tuple[str, str]:
    """Rank 1 is back before rank 0, and finds what the first life left in the store."""
    first = ask(lambda: checkpointer(roots[0]).close())[0]
    dist.barrier()
    _job._numbers = itertools.count()  # as in new processes
    if rank == 0:
        threading.Event().wait(0.8)
    with checkpointer(roots[1]) as ckpt:
        return first, ask(lambda: ckpt.save(1))[0]


@pytest.mark.parametrize("refused", [False, True])
def test_what_an_earlier_life_left_in_the_store_is_not_taken(tmp_path: Path, refused: bool) -> None:
    old = tmp_path / "old"
    if refused:
        old.write_text("not a directory")
    results = run_ranks(2, _second_life_on_the_same_store, (old, tmp_path / "root"))
    assert all((first == "ok") is not refused for first, _ in results)
    assert [saved for _, saved in results] == ["ok", "ok"]
