"""One run of a case of the hang proofs: hit the job once, start it again, judge what was seen."""

from __future__ import annotations

import functools
import shutil
import signal
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.campaigns.hang._cases import LIMIT_S, Case, Result
from tests.campaigns.hang._job import Start, live, start_again
from tests.campaigns.hang._judge import (
    commits_of,
    expect_unchanged,
    judge_calls,
    judge_root,
    judge_words,
)
from tests.campaigns.hang._relay import relay
from tests.campaigns.harness._processes import Child, fast_directory
from tests.multi._ranks import read_calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.multi._ranks import Call
    from typing_extensions import Self

__all__ = ["run_case"]


_TRIES = 3


class _TooLateError(Exception):
    """The victim had left its gate by the time that it was to be stopped: this machine is busy."""


class _Job:
    """The processes of the job that is hit."""

    def __init__(self, case: Case, start: Start, limit_s: float) -> None:
        self.case = case
        self.limit_s = limit_s
        self.start = start
        self.relay: Child | None = None
        if start.relayed:
            ranks = range(1, case.world)
            to = functools.partial(relay, start.folder, ranks)
            self.relay = Child(to)
        self.members = [
            Child(
                functools.partial(live, start, rank), start.folder / f"stack.{rank}", 0.8 * limit_s
            )
            for rank in range(case.world)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in [*self.members, *([] if self.relay is None else [self.relay])]:
            child.end()

    def hit(self) -> float | None:
        """Wait until the victim stands at its gate, and hit it; return when that was."""
        victim = self.members[self.case.victim]
        if not victim.pipe.poll(LIMIT_S / 2) or not _told(victim, "reached"):
            return None
        match self.case.how:
            case "kill":
                at = victim.signal(signal.SIGKILL)
            case "stop" | "zombie":
                at = victim.signal(signal.SIGSTOP)
                if not victim.running:
                    raise _TooLateError
            case "block":
                at = time.monotonic()
            case "leave":
                at = time.monotonic()
                victim.pipe.send("leave")
            case _:
                at = self._part()
                victim.pipe.send("go")
        if self.case.gate == "save/prepared":
            self.members[0].pipe.send("go")  # the coordinator may publish now
        return at

    def _part(self) -> float:
        assert self.relay is not None
        victim = self.case.victim
        ranks = [victim] if victim else list(range(1, self.case.world))
        self.relay.pipe.send((ranks, self.case.how))
        assert self.relay.pipe.poll(10.0)
        return time.monotonic() if _told(self.relay, "parted") else float("nan")

    def wake(self) -> None:
        """Let a stopped victim go on."""
        victim = self.members[self.case.victim]
        victim.pipe.send("go")
        victim.signal(signal.SIGCONT)

    def wait_ended(self, ranks: tuple[int, ...]) -> list[int]:
        """Wait for participants to end by themselves; return those that still run."""
        end = time.monotonic() + self.limit_s
        waiting: dict[Any, int] = {self.members[rank].sentinel: rank for rank in ranks}
        while waiting and (left := end - time.monotonic()) > 0:
            for sentinel in connection.wait(list(waiting), left):
                del waiting[sentinel]
        return sorted(waiting.values())

    def calls(self, rank: int) -> list[Call]:
        """Return what a participant did so far."""
        return read_calls(rank, self.start.events(rank))


def _told(child: Child, word: str) -> bool:
    try:
        found = child.pipe.recv()
    except EOFError:
        return False
    return word in (found, found[0])


def run_case(
    case: Case,
    template: Path,
    patch: Callable[[], None] | None = None,
    limit_s: float = LIMIT_S,
) -> Result:
    """Hit the job once, start it again, and judge everything that was seen.

    Args:
        case: who, where, how.
        template: a root that a world of this size made.
        patch: breaks the protocol, in all processes of the case.
        limit_s: who runs for longer hangs.
    """
    if patch is not None:
        patch()
    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix="stepseal-hang-", dir=fast_directory()))
        try:
            shutil.copytree(template, folder / "root", symlinks=True)
            return _run(case, folder, limit_s)
        except _TooLateError:
            continue
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Result(case, [f"in {_TRIES} tries its victim had ended before it could be stopped"])


def _run(case: Case, folder: Path, limit_s: float) -> Result:
    in_flight = case.gate == "close/in-flight"
    gate = "save/write" if in_flight else case.gate
    start = Start(
        folder, case.world, gate, case.victim, case.deadlines, in_flight, relayed=case.parted
    )
    result = Result(case)
    with _Job(case, start, limit_s) as job:
        hit_at = job.hit()
        if hit_at is None:
            text = "\n".join(str(c) for r in range(case.world) for c in job.calls(r))
            result.violations.append(f"participant {case.victim} never reached {gate}:\n{text}")
            return result
        _expect_ended(job, case.judged, result)
        if case.how == "stop":
            _wake(job, result)
        if case.how == "zombie":
            _start_again(case, start.root, result)
            before = commits_of(start.root)
            _wake(job, result)
            expect_unchanged(before, commits_of(start.root), result)
        told = [call for rank in range(case.world) for call in job.calls(rank)]
    calls = [call for call in told if call.rank in case.judged]
    judge_calls(case, calls, hit_at, result)
    judge_words(told, commits_of(start.root), result)
    _start_again(case, start.root, result)
    judge_words(told, commits_of(start.root), result)
    judge_root(start.root, result)
    return result


def _wake(job: _Job, result: Result) -> None:
    victim = job.case.victim
    job.wake()
    _expect_ended(job, (victim,), result)
    for call in job.calls(victim):
        if call.outcome == "pending" or (call.outcome == "raised" and not call.facts["typed"]):
            result.violations.append(f"awakened {call}")


def _expect_ended(job: _Job, ranks: tuple[int, ...], result: Result) -> None:
    running = job.wait_ended(ranks)
    for rank in ranks:
        if rank not in running and (code := job.members[rank].exit_code()) != 0:
            result.violations.append(f"participant {rank} ended with exit code {code}, expected 0")
    for rank in running:
        stack = (job.start.folder / f"stack.{rank}").read_text("utf-8")
        result.violations.append(f"participant {rank} hangs:\n{stack}")


def _start_again(case: Case, root: Path, result: Result) -> None:
    child = Child(lambda pipe: pipe.send(start_again(root, case.world)))
    try:
        if not child.pipe.poll(LIMIT_S):
            result.violations.append("start again: hangs")
            return
        result.violations += child.pipe.recv()
    except EOFError:
        result.violations.append("start again: died")
    finally:
        child.end()
