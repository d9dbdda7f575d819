"""The coordinator's lines, with a doorbell at the end of some: begins calls by ringing."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from stepseal.errors import ParticipantFailed
from stepseal.protocol import BeginRestore, BeginSave, Failure, failure_of

if TYPE_CHECKING:
    from stepseal.actors._doorbell import Doorbell, Member
    from stepseal.protocol import (
        Begin,
        CoordinatorDriver,
        FromCoordinator,
        FromLinks,
        SocketHub,
    )

__all__ = ["BellHub"]


class BellHub:
    """A hub that rings the doorbell of a member where it has one, to begin a call.

    Args:
        inner: the connections.
    """

    def __init__(self, inner: SocketHub) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._members: dict[str, tuple[Member, str]] = {}
        self._lost: set[str] = set()
        """Ids of those whose life was lost."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where doorbells are rung."""
        self.driver: CoordinatorDriver | None = None
        """Who is told that a doorbell reached nobody."""

    def loop_of(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the call in flight."""
        assert self.loop is not None
        return self.loop

    def put(self, member: Member, life: str) -> None:
        """Ring this member in its new life; the one that had its id leaves."""
        with self._lock:
            self._leave(member.id)
            self._members[member.id] = (member, life)

    def remove(self, participant: str) -> None:
        """Ring a member no more; it leaves."""
        with self._lock:
            self._leave(participant)

    def members(self) -> list[Member]:
        """Return all members."""
        with self._lock:
            return [member for member, _ in self._members.values()]

    def start(self, on_message: FromLinks) -> None:
        """Begin to deliver messages."""

        def deliver(participant: str, message: Any, life: str) -> None:  # noqa: ANN401 - of links
            if isinstance(message, Failure):
                self._lose(participant, life)
            on_message(participant, message, life)

        self._inner.start(deliver)

    def send(self, participant: str, message: FromCoordinator) -> None:
        """Send a message, or ring; never blocks."""
        if isinstance(message, (BeginSave, BeginRestore)):
            with self._lock:
                member, life = self._members.get(participant, (None, ""))
            if member is not None and member.doorbell is not None and life == message.life:
                loop, bell = self.loop_of(), member.doorbell
                try:
                    loop.call_soon_threadsafe(self._start, participant, bell, message)
                except RuntimeError as error:  # the loop was closed
                    self._failed(participant, bell, message, error)
                return
        self._inner.send(participant, message)

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()

    def _lose(self, participant: str, life: str) -> None:
        with self._lock:
            if self._members.get(participant, (None, None))[1] == life:
                self._lost.add(participant)

    def _leave(self, participant: str) -> None:
        """Let a member go, if there is one; the lock is held."""
        member, _ = self._members.pop(participant, (None, ""))
        if member is not None:
            member.leave(is_lost=participant in self._lost)
        self._lost.discard(participant)

    def _start(self, participant: str, bell: Doorbell, begin: Begin) -> None:
        task = asyncio.ensure_future(self._ring(participant, bell, begin))
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _ring(self, participant: str, bell: Doorbell, begin: Begin) -> None:
        try:
            if isinstance(begin, BeginSave):
                await bell.capture(begin)
            else:
                await bell.restore(begin)
        except Exception as error:
            self._failed(participant, bell, begin, error)
        except asyncio.CancelledError:
            cancelled = ParticipantFailed(f"{participant}: the call to begin was cancelled")
            self._failed(participant, bell, begin, cancelled)
            raise

    def _failed(self, participant: str, bell: Doorbell, begin: Begin, error: BaseException) -> None:
        """Report that a call raised; a participant that has reported itself is not touched."""
        assert self.driver is not None
        cause = failure_of(error)
        if bell.is_death(error):
            self._lose(participant, begin.life)
            self.driver.lost(participant, begin.life, cause)
        else:
            self.driver.unreached(begin.call, participant, cause)
