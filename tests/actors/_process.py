"""A member in a process of its own: serves its coordinator between two pieces of its work."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Any

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

__all__ = ["Started", "started"]

_SPAWN = multiprocessing.get_context("forkserver")
_SPAWN.set_forkserver_preload(["stepseal.session", "stepseal.actors"])


class Counter:
    """Component of a process; may die in a call."""

    def __init__(self, name: str, dies_in: str | None) -> None:
        self.name = name
        self.value = 0
        self.dies_in = dies_in

    def state_dict(self) -> dict[str, Any]:
        self._die("capture")
        return {"value": self.value, "data": [self.name] * 100}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._die("apply")
        self.value = state["value"]

    def _die(self, where: str) -> None:
        if self.dies_in == where:
            os.kill(os.getpid(), signal.SIGKILL)


def live(role: str, rank: int, size: int, dies_in: str | None, pipe: Connection, work: Any) -> None:  # noqa: ANN401 - a pipe
    """Be one member, until the other end is gone."""
    counter = Counter(role, dies_in)
    with ss.Participant(role, rank=rank, size=size, cut=lambda: {role: counter.value}) as own:
        own.add(f"{role}-state", counter, sharing=ss.PER_RANK if size > 1 else ss.GLOBAL)
        while ss.serve(own, pipe, timeout_s=0.05):
            while work.poll():
                counter.value += work.recv()
                work.send(counter.value)


class Started:
    """A process that was started, and both pipes to it."""

    def __init__(self, role: str, rank: int = 0, size: int = 1, dies_in: str | None = None) -> None:
        self.admissions, theirs = _SPAWN.Pipe()
        self._work, work = _SPAWN.Pipe()
        arguments = (role, rank, size, dies_in, theirs, work)
        self.process = _SPAWN.Process(target=live, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        work.close()

    def work(self, amount: int) -> int:
        """Let it work; return its value afterwards."""
        self._work.send(amount)
        assert self._work.poll(60)
        value: int = self._work.recv()
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.join(60)

    def end(self) -> None:
        self.admissions.close()
        self._work.close()
        self.process.join(10)
        self.process.kill()
        self.process.join(60)
        self.process.close()


@contextlib.contextmanager
def started(*members: Started) -> Iterator[list[Started]]:
    """End all processes of a test after it."""
    held = list(members)
    try:
        yield held
    finally:
        for one in held:
            one.end()
