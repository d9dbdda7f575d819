from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
import torch.distributed as dist

from stepseal.errors import InvalidInput
from stepseal.testing import RanksFailed, run_ranks

pytestmark = pytest.mark.slow


def _sum(rank: int, factor: int) -> tuple[int, torch.Tensor, int]:
    total = torch.tensor(rank * factor)
    dist.all_reduce(total)
    return dist.get_world_size(), total, torch.get_num_threads()


def test_results_come_in_rank_order() -> None:
    for world, total, threads in run_ranks(3, _sum, 10):
        assert (world, int(total), threads) == (3, 30, 1)


def _start_method(rank: int) -> str:
    return multiprocessing.get_start_method()


def test_a_rank_starts_children_as_a_process_of_the_user_does() -> None:
    asked = "import multiprocessing; print(multiprocessing.get_start_method())"
    default = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout
    assert run_ranks(1, _start_method) == [default.strip()]


def _fail_on_one(rank: int) -> None:
    if rank == 1:
        raise LookupError("rank 1 lost its way")
    threading.Event().wait()


def test_one_failure_ends_all_and_shows_its_traceback() -> None:
    with pytest.raises(RanksFailed, match="rank 1 lost its way") as caught:
        run_ranks(2, _fail_on_one, timeout_s=30)
    assert list(caught.value.failures) == [1]


def _die(rank: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang(rank: int) -> None:
    threading.Event().wait()


def test_death_and_hanging_are_told_apart() -> None:
    with pytest.raises(RanksFailed, match="died without a report"):
        run_ranks(1, _die)
    with pytest.raises(RanksFailed, match=r"(?s)still running after 6 s.*in _hang"):
        run_ranks(1, _hang, timeout_s=6)


def test_bounds_are_checked() -> None:
    with pytest.raises(InvalidInput):
        run_ranks(0, _hang)
    with pytest.raises(InvalidInput):
        run_ranks(1, _hang, timeout_s=0)


def _local_class(rank: int) -> object:
    class Local:
        pass

    return Local()


def test_a_result_that_does_not_pickle_is_a_failure() -> None:
    with pytest.raises(RanksFailed, match="Local"):
        run_ranks(1, _local_class)
