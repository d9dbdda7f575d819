"""Real processes with a gloo process group, for the few tests that need them.

Processes are forked from a server that has only imported torch and stepseal, so they start in a
fraction of a second and inherit no threads. Invariant: no process outlives the call.
"""

from __future__ import annotations

import faulthandler
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch._C._distributed_c10d import FileStore

from stepseal.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection

__all__ = ["RanksFailed", "run_ranks"]

T = TypeVar("T")

PRELOAD = [
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch._dynamo",  # which the first optimizer imports
    "stepseal.session",
]
_GRACE_S = 3.0
"""Seconds that the other ranks have to end by themselves after one has failed."""


class RanksFailed(AssertionError):
    """At least one rank raised, died, or did not end; the message holds every traceback.

    Args:
        failures: rank to its traceback, or to a text that says how it ended.
    """

    def __init__(self, failures: Mapping[int, str]) -> None:
        self.failures = dict(failures)
        lines = [f"rank {rank}: {text.rstrip()}" for rank, text in sorted(failures.items())]
        super().__init__("ranks failed:\n" + "\n".join(lines))


def run_ranks(
    num_ranks: int, work: Callable[..., T], *args: object, timeout_s: float = 60.0
) -> list[T]:
    """Run `work(rank, *args)` in separate processes that share a default gloo process group.

    Each process has one torch thread, and starts its own children, such as the workers of a loader,
    by Python's default method. Blocks until all have ended. If one fails, the others get a few
    seconds to end by themselves, and are then killed.

    Args:
        num_ranks: number of processes, at least 1.
        work: a top-level function of a module, because it is pickled by name.
        args: further arguments; they and the result must pickle.
        timeout_s: seconds until everything must have ended.

    Returns:
        What each rank returned, in rank order.

    Raises:
        InvalidInput: `num_ranks` or `timeout_s` is out of bounds.
        RanksFailed: a rank raised, died, or was still running after `timeout_s`. `.failures` has
            the reason per rank, and the stack of a rank that hangs.
    """
    if num_ranks < 1 or timeout_s <= 0:
        raise InvalidInput(
            f"run_ranks: expected at least 1 rank and a positive timeout_s, found {num_ranks} and "
            f"{timeout_s}. Pass such values."
        )
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with tempfile.TemporaryDirectory(prefix="stepseal-ranks-") as folder:
        ranks = []
        try:
            for rank in range(num_ranks):
                ours, theirs = context.Pipe()
                job = (theirs, folder, rank, num_ranks, timeout_s, work, args)
                process = context.Process(target=_serve, args=job)  # a rank may have workers
                process.start()
                theirs.close()
                ranks.append((process, ours))
            return _collect([ours for _, ours in ranks], Path(folder), timeout_s)
        finally:
            for process, ours in ranks:
                ours.close()
                process.kill()
                process.join()


def _collect(pipes: list[Connection[Any, Any]], folder: Path, timeout_s: float) -> list[Any]:
    """Return all results; collect failures, and shorten the timeout of the others after one."""
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    waiting = dict(enumerate(pipes))
    deadline = time.monotonic() + timeout_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        ready = connection.wait(list(waiting.values()), left)
        for rank, pipe in list(waiting.items()):
            if pipe not in ready:
                continue
            del waiting[rank]
            try:
                failure, result = pipe.recv()
                pipe.send(None)
            except (EOFError, ConnectionError):
                failure, result = "died without a report", None
            if failure is None:
                results[rank] = result
            else:
                failures[rank] = failure
                deadline = min(deadline, time.monotonic() + _GRACE_S)
    if not failures:
        failures = {rank: _hanging(folder, rank, timeout_s) for rank in waiting}
    if failures:
        raise RanksFailed(failures)
    return [results[rank] for rank in range(len(pipes))]


def _hanging(folder: Path, rank: int, timeout_s: float) -> str:
    stack = _stack_file(folder, rank)
    where = stack.read_text("utf-8") if stack.exists() else ""
    return f"still running after {timeout_s:g} s\n{where}"


def _stack_file(folder: Path, rank: int) -> Path:
    return folder / f"stack.{rank}"


def _serve(
    pipe: Connection[Any, Any],
    folder: str,
    rank: int,
    num_ranks: int,
    timeout_s: float,
    work: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    """Run the work of one rank and report the result."""
    with _stack_file(Path(folder), rank).open("w") as stack:
        faulthandler.dump_traceback_later(0.8 * timeout_s, file=stack)
        torch.set_num_threads(1)
        mp.set_start_method(None, force=True)  # the server left its own, which imports all anew
        try:
            dist.init_process_group(
                "gloo",
                store=FileStore(f"{folder}/store", num_ranks),
                rank=rank,
                world_size=num_ranks,
                timeout=timedelta(seconds=timeout_s),
            )
            outcome: tuple[str | None, object] = (None, work(rank, *args))
        except BaseException:
            outcome = (traceback.format_exc(), None)
        try:
            pipe.send(outcome)
        except Exception:  # the result does not pickle
            outcome = (traceback.format_exc(), None)
            pipe.send(outcome)
        pipe.recv()  # tensors are in shared memory of this process: wait until they were received
        if outcome[0] is None:
            dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()
