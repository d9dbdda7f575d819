"""One life of a job as its test sees it: processes that can be signalled, and what they wrote."""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.multi._job import Life, live

from stepseal.testing._ranks import PRELOAD

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self

_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call of one rank."""

    rank: int
    name: str
    started: float
    ended: float | None
    """None when it never came back."""
    outcome: str
    """`returned`, `raised`, or `pending`."""
    facts: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """Error kind, or `ok`."""
        return str(self.facts.get("kind", "ok" if self.outcome == "returned" else "pending"))

    def __str__(self) -> str:
        """Return the call in one line."""
        took = "" if self.ended is None else f" after {self.ended - self.started:.2f} s"
        message = self.facts.get("message", "")
        return f"rank {self.rank}: {self.name}: {self.kind}{took}: {message}"


class Ranks:
    """The processes of one life; leaving the block kills what still runs.

    Args:
        life: what they run.
    """

    def __init__(self, life: Life) -> None:
        self.life = life
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        for rank in range(life.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=live, args=(rank, life, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        assert self._pipes[0].poll(_START_S), "rank 0 did not start"
        _, port = self._pipes[0].recv()
        for pipe in self._pipes[1:]:
            pipe.send(port)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.kill()
            process.join()
            pipe.close()

    def wait_reached(self, rank: int, timeout_s: float) -> bool:
        """Wait until a rank stands at its gate."""
        pipe = self._pipes[rank]
        try:
            return bool(pipe.poll(timeout_s)) and pipe.recv()[0] == "reached"
        except (EOFError, ConnectionError):
            return False

    def hit(self, rank: int, number: int) -> float:
        """Signal a rank, wait until it is dead or stopped, and return when that was."""
        process = self._processes[rank]
        os.kill(process.pid, number)
        if number == signal.SIGKILL:
            process.join(10.0)
            assert not process.is_alive()
        while number == signal.SIGSTOP and _state(process.pid) != "T":
            time.sleep(0.002)
        return time.monotonic()

    def release(self, rank: int, how: str = "go") -> None:
        """Let a rank pass its gate, or `raise` there."""
        with contextlib.suppress(ConnectionError):  # it is dead
            self._pipes[rank].send(how)

    def wait_ended(self, ranks: Iterable[int], timeout_s: float) -> list[int]:
        """Wait for ranks to end by themselves; return those that still run."""
        end = time.monotonic() + timeout_s
        waiting = {self._processes[rank].sentinel: rank for rank in ranks}
        while waiting and (left := end - time.monotonic()) > 0:
            for sentinel in connection.wait(list(waiting), left):
                del waiting[sentinel]
        return sorted(waiting.values())

    def calls(self, rank: int) -> list[Call]:
        """Return what a rank did so far, oldest first."""
        return read_calls(rank, self.life.file("events", rank))

    def values(self, rank: int) -> str | None:
        """Return `right` or `wrong` if the rank restored something."""
        events = _events(self.life.file("events", rank))
        return next((e["what"] for e in events if e["call"] == "values"), None)

    def stack(self, rank: int) -> str:
        """Return the stack of a rank that hung."""
        path = self.life.file("stack", rank)
        return path.read_text("utf-8") if path.exists() else ""


def read_calls(rank: int, path: Path) -> list[Call]:
    """Return what a rank wrote to its file of events, oldest call first."""
    events = _events(path)
    calls = []
    for index, event in enumerate(events):
        if event["what"] != "started":
            continue
        later = (e for e in events[index + 1 :] if e["call"] == event["call"])
        end: dict[str, Any] = next(later, {"at": None, "what": "pending"})
        calls.append(Call(rank, event["call"], event["at"], end["at"], end["what"], end))
    return calls


def _events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()[0]
