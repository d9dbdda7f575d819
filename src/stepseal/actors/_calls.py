"""Calls of a coordinator's user, one at a time; only gated saves let others begin.

Invariant: a call runs to its end, also if the one who awaits it is cancelled, and a failure that
nobody saw is raised by the next call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, TypeVar

from stepseal.errors import CheckpointError, InvalidInput
from stepseal.process import Home

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["Calls"]

T = TypeVar("T")
_log = logging.getLogger("stepseal")


class Calls:
    """Runs calls one after the other.

    Args:
        before: what runs at the start of every call.
    """

    def __init__(self, before: Callable[[], Awaitable[None]]) -> None:
        self._before = before
        self._lock = asyncio.Lock()
        self._unseen: CheckpointError | None = None
        self._running: set[asyncio.Task[object]] = set()
        self.closed = False
        self.home = Home()
        """The process of the coordinator; no forked child of it makes calls."""

    async def run(self, work: Coroutine[None, None, T], *, alone: bool = True) -> T:
        """Run a call to its end, after the one before it, whoever is cancelled meanwhile.

        Args:
            work: the call.
            alone: False lets calls that come after it begin before it has ended.

        Raises:
            InvalidInput: `finish` was called, or this is a forked child.
            CheckpointError: an earlier call failed, and nobody saw it; this one did not begin.
        """
        try:
            self.check_open()
        except InvalidInput:
            work.close()
            raise
        left = asyncio.Event()
        task = asyncio.ensure_future(self._locked(work, left, alone))
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            left.set()
            task.add_done_callback(_retrieve)
            raise

    def check_open(self) -> None:
        """Refuse a call in a forked child, or after `finish`.

        Raises:
            InvalidInput: it is one.
        """
        self.home.check("this Coordinator")
        if self.closed:
            raise InvalidInput("this Coordinator is closed; make a new one")

    async def finish(self, end: Callable[[], Awaitable[object]]) -> None:
        """Take no more calls; await `end` once those that were made have ended."""
        self.closed = True
        while self._running:
            await asyncio.wait(self._running)
        await end()

    def raise_unseen(self) -> None:
        """Raise the failure that nobody saw, if there is one."""
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            raise unseen

    async def _locked(self, work: Coroutine[None, None, T], left: asyncio.Event, alone: bool) -> T:
        async with contextlib.AsyncExitStack() as held:
            await held.enter_async_context(self._lock)
            try:
                self.raise_unseen()
                await self._before()
            except BaseException:
                work.close()
                raise
            if not alone:
                await held.aclose()
            try:
                return await work
            except CheckpointError as error:
                if left.is_set():
                    self._unseen = error
                raise


def _retrieve(task: asyncio.Task[T]) -> None:
    """Let asyncio know that a failure was seen to."""
    if not task.cancelled() and task.exception() is not None:
        _log.debug("stepseal: a call that nobody awaits failed: %r", task.exception())
