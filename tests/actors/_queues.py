"""Actors on threads of this process: each works off its calls in a queue of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import stepseal as ss

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from stepseal.actors import Admission
    from stepseal.protocol import BeginRestore, BeginSave

__all__ = ["QueueActor"]


class QueueActor:
    """An actor that owns a number, and a member of the coordinator with a doorbell.

    Args:
        role: its role.
    """

    def __init__(self, role: str) -> None:
        self.id = f"{role}/0"
        self.doorbell = self
        self.value = 0
        self.participant = ss.Participant(role, cut=lambda: {role: self.value})
        self.participant.add(f"{role}-state", (self._get, self._set), kind="tree")
        self.captured = threading.Event()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _get(self) -> dict[str, int]:
        self.captured.set()
        return {"value": self.value}

    def _set(self, state: dict[str, int]) -> None:
        self.value = state["value"]

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def call(self, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Run a function in the queue of the actor."""
        outcome: Future[Any] = Future()

        def run() -> None:
            try:
                outcome.set_result(work(*arguments))
            except Exception as error:  # handed to who called
                outcome.set_exception(error)

        self._calls.put(run)
        return outcome

    def add(self, amount: int = 1) -> int:
        """Change the state; a call of the actor."""
        self.value += amount
        return self.value

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.participant.close()

    # -- the member ------------------------------------------------------------------------------

    async def admit(self, admission: Admission, executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(executor, self.participant.admit, admission)

    def leave(self, *, is_lost: bool) -> None: ...

    async def capture(self, begin: BeginSave) -> None:
        await asyncio.wrap_future(self.call(self.participant.capture, begin))

    async def restore(self, begin: BeginRestore) -> None:
        await asyncio.wrap_future(self.call(self.participant.restore, begin))

    def is_death(self, error: BaseException) -> bool:
        del error
        return False
